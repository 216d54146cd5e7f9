"""1,000 files of about 1 MB each, merged by `polder maintain optimize`.

Started by `cargo xtask bench optimize`. PyIceberg writes the files into a table that Polder made; a
copy of that lake is optimized in every run, so that all runs do the same work. Said are megabytes of
input a second, the peak of memory, and how long a query takes before and after; then how long Spark's
`rewrite_data_files` and Trino's `optimize` take over the same copy, unless `--alone` is given. Polder's
time is that of its whole process, theirs that of the statement.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.exports]
type = "files"
url = "./exports"
"""
PIPELINE = """
orgs:
  - id: bench
    tables:
      - { name: event, source: exports, from: "*.parquet", mode: append }
"""
QUERY = "SELECT kind, count(*) AS n, sum(amount) AS amount FROM lake.org_bench.event GROUP BY kind ORDER BY kind"
FIRST = """
import sys
sys.path.insert(0, sys.argv[1])
import optimize, pyarrow.parquet as parquet
parquet.write_table(optimize.rows(0), sys.argv[2])
"""
FILL = """
import sys
sys.path.insert(0, sys.argv[1])
import optimize
optimize.fill(sys.argv[2], int(sys.argv[3]))
"""
ROWS = 36_000  # of about 29 bytes each in a file: some 1 MB


def rows(number: int):
    """The rows of one file: ids, times, numbers and short texts, as tables have them."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(number)
    first = number * ROWS
    micros = 1_700_000_000_000_000 + (first + np.arange(ROWS)) * 1_000_000
    words = np.array([f"word{i:05d}" for i in range(20_000)])
    return pa.table({
        "id": pa.array(np.arange(first, first + ROWS)),
        "at": pa.array(micros + random.integers(0, 1_000_000, ROWS), pa.timestamp("us", "UTC")),
        "account": pa.array(random.integers(0, 50_000, ROWS)),
        "kind": pa.array(np.array(["call", "email", "meeting", "note"])[random.integers(0, 4, ROWS)]),
        "amount": pa.array(random.integers(0, 10_000_000, ROWS)),
        "score": pa.array(random.random(ROWS)),
        "text": pa.array(words[random.integers(0, 20_000, ROWS)]),
    })


def fill(work: str, files: int) -> None:
    """Adds files to the table until it has so many, ten to a commit."""
    import pyarrow as pa
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("polder", uri=f"sqlite:///{work}/polder.db")
    table = catalog.load_table(("org_bench", "event"))
    # A commit writes a file for every so many bytes in memory.
    size = rows(1).nbytes
    with table.transaction() as change:
        change.set_properties({"write.target-file-size-bytes": str(size)})
    for first in range(1, files, 10):
        numbers = range(first, min(first + 10, files))
        table.append(pa.concat_tables([rows(number) for number in numbers]).cast(table.schema().as_arrow()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without Spark and Trino")
    parser.add_argument("--spark", type=Path, help="the folder of Spark's jars")
    parser.add_argument("--trino", type=Path, help="the folder of Trino")
    parser.add_argument("--check", action="store_true", help="fail where a goal is not met")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    full = prepare(args)
    others = started(args)
    samples = []
    try:
        for run in range(args.runs):
            say(f"run {run + 1} of {args.runs}")
            samples.append(once(args, full) | {
                f"{name}_s": by_other(args, full, engine) for name, engine in others.items()
            })
    finally:
        for engine in others.values():
            engine.stop()
    report = {"machine": machine(args), "files": args.files, "samples": samples}
    report |= {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    report |= {f"times_{name}": report[f"{name}_s"] / report["wall_s"] for name in others}
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    missed = [text for text, met in goals(report) if not met]
    if args.check and missed:
        raise SystemExit("goals that are not met: " + "; ".join(missed))


def goals(report: dict) -> list[tuple[str, bool]]:
    found = [
        ("150 MB of input a second", report["input_mb_per_s"] >= 150),
        ("1 GB of memory", report["rss_mb"] <= 1000),
        ("a query no slower than before", report["query_after_s"] <= report["query_before_s"]),
    ]
    for name, times in [("spark", 5), ("trino", 2)]:
        if f"times_{name}" in report:
            found.append((f"{times} times {name.title()}", report[f"times_{name}"] >= times))
    return found


def started(args: argparse.Namespace) -> dict:
    """What Polder is compared with."""
    if args.alone:
        return {}
    import engines

    say("starting Spark and Trino")
    spark = engines.Spark(args.spark, args.work)
    try:
        return {"spark": spark, "trino": engines.Trino(args.trino, args.work / "trino")}
    except BaseException:
        spark.stop()
        raise


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace) -> Path:
    """A lake with the files, unless the last call left it."""
    full = args.work / f"full-{args.files}"
    if (full / "ready").exists():
        return full
    say(f"writing {args.files} files")
    shutil.rmtree(full, ignore_errors=True)
    (full / "pipelines").mkdir(parents=True)
    (full / "exports").mkdir()
    (full / "polder.toml").write_text(CONFIG)
    (full / "pipelines/bench.yaml").write_text(PIPELINE)
    here = str(Path(__file__).parent)
    # In processes of their own: the kernel counts our memory into our children's peak.
    subprocess.run([sys.executable, "-c", FIRST, here, full / "exports/0.parquet"], check=True)
    subprocess.run([args.polder, "run"], cwd=full, check=True, stdout=sys.stderr)
    subprocess.run([sys.executable, "-c", FILL, here, full, str(args.files)], check=True)
    (full / "ready").touch()
    return full


@contextmanager
def put_back(args: argparse.Namespace, full: Path):
    """Whatever is done to the lake is undone. Locations are absolute: it comes back to its own place."""
    kept = args.work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(full, kept, copy_function=os.link)
    (kept / "polder.db").unlink()
    shutil.copy2(full / "polder.db", kept / "polder.db")
    try:
        yield
    finally:
        shutil.rmtree(full)
        kept.rename(full)


def same(before: dict, after: dict) -> None:
    if before["answer"] != after["answer"]:
        raise SystemExit(f"another answer: {before['answer']} and {after['answer']}")


def by_other(args: argparse.Namespace, full: Path, engine) -> float:
    """Seconds that another engine takes for the same."""
    import engines

    with put_back(args, full):
        before = query(args, full)
        with engines.serving(args.polder, full) as address:
            seconds = engine.rewrite(address, "org_bench", "event")
        same(before, query(args, full))
    return seconds


def once(args: argparse.Namespace, full: Path) -> dict:
    with put_back(args, full):
        before = query(args, full)
        sample, said = measured([args.polder, "maintain", "optimize", "--json"], full)
        after = query(args, full)
    same(before, after)
    report = json.loads(said)["tables"][0]
    return sample | {
        "files_before": report["files_replaced"],
        "files_after": report["files_written"],
        "input_mb": report["bytes_read"] / 1e6,
        "input_mb_per_s": report["bytes_read"] / 1e6 / sample["wall_s"],
        "query_before_s": before["wall_s"],
        "query_after_s": after["wall_s"],
    }


def query(args: argparse.Namespace, work: Path) -> dict:
    sample, said = measured([args.polder, "query", "--format", "json", QUERY], work)
    return sample | {"answer": json.loads(said)}


def measured(command: list[str], work: Path) -> tuple[dict, str]:
    """Runs the command alone and reads what the kernel counted for it."""
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[0]} failed:\n{said.decode(errors='replace')[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "rss_mb": usage.ru_maxrss * 1024 / 1e6}, said.decode()


def machine(args: argparse.Namespace) -> dict:
    own = subprocess.run([args.polder, "version"], capture_output=True, text=True, check=True)
    return {"cores": os.cpu_count(), "kernel": platform.release(), "polder": own.stdout.strip()}


def as_text(report: dict) -> str:
    machine = report["machine"]
    return "\n".join([
        f"{machine['cores']} cores, {machine['polder']}; medians of {len(report['samples'])} runs",
        f"{report['files_before']:.0f} files ({report['input_mb']:.0f} MB) became"
        f" {report['files_after']:.0f} in {report['wall_s']:.2f} s:"
        f" {report['input_mb_per_s']:.0f} MB/s of input, {report['cpu_s']:.1f} s of CPU,"
        f" {report['rss_mb']:.0f} MB at most",
        f"a query took {report['query_before_s']:.2f} s before and {report['query_after_s']:.2f} s after",
        *(
            f"{name.title()} took {report[f'{name}_s']:.2f} s for the same: {report[f'times_{name}']:.1f} times as long"
            for name in ["spark", "trino"] if f"{name}_s" in report
        ),
    ])


if __name__ == "__main__":
    main()
