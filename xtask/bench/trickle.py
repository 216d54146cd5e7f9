"""A table of a thousand tiny appends, looked after by `polder maintain all`, next to one that was loaded at once.

Started by `cargo xtask bench trickle`. PyIceberg commits the appends, each a file of its own; both tables
have the same rows. Said is how long one query takes over each, before and after maintenance, as the medians
of whole processes of `polder query`, taken in turn.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from optimize import CONFIG

PIPELINE = """
orgs:
  - id: bench
    tables:
      - { name: trickle, source: exports, from: "first.parquet", mode: append }
      - { name: fresh, source: exports, from: "*.parquet", mode: append }
"""
QUERY = "SELECT kind, count(*) AS n, sum(amount) AS amount FROM lake.org_bench.{} GROUP BY kind ORDER BY kind"
GOAL = 1.2


def rows(number: int, count: int):
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(number)
    return pa.table({
        "id": pa.array(np.arange(number * count, (number + 1) * count)),
        "kind": pa.array(np.array(["call", "email", "meeting", "note"])[random.integers(0, 4, count)]),
        "amount": pa.array(random.integers(0, 10_000_000, count)),
    })


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--appends", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000, help="of one append")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="fail where a goal is not met")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lake = args.work / "lake"
    prepare(args, lake)
    before = timed(args, lake)
    say("maintaining")
    started = time.perf_counter()
    polder(args, lake, "maintain", "all", "--json", "--table", "trickle")
    maintained = time.perf_counter() - started
    after = timed(args, lake)
    report = {
        "cores": os.cpu_count(), "appends": args.appends, "rows": args.appends * args.rows,
        "maintain_s": maintained, "trickle_before_s": before["trickle"],
        "trickle_s": after["trickle"], "fresh_s": after["fresh"],
        "ratio": after["trickle"] / after["fresh"],
    }
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    if args.check and report["ratio"] > GOAL:
        raise SystemExit(f"a query takes {report['ratio']:.2f} times as long, at most {GOAL} is the goal")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def polder(args: argparse.Namespace, lake: Path, *command: str) -> str:
    done = subprocess.run([args.polder, *command], cwd=lake, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"polder {' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def prepare(args: argparse.Namespace, lake: Path) -> None:
    """A lake with both tables."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from pyiceberg.catalog.sql import SqlCatalog

    shutil.rmtree(lake, ignore_errors=True)
    (lake / "pipelines").mkdir(parents=True)
    (lake / "exports").mkdir()
    (lake / "polder.toml").write_text(CONFIG)
    (lake / "pipelines/bench.yaml").write_text(PIPELINE)
    say("loading one table at once")
    parquet.write_table(rows(0, args.rows), lake / "exports/first.parquet")
    rest = pa.concat_tables([rows(number, args.rows) for number in range(1, args.appends)])
    parquet.write_table(rest, lake / "exports/rest.parquet")
    polder(args, lake, "run", "--json")
    say(f"{args.appends} appends to the other")
    table = SqlCatalog("polder", uri=f"sqlite:///{lake}/polder.db").load_table(("org_bench", "trickle"))
    for number in range(1, args.appends):
        table.append(rows(number, args.rows).cast(table.schema().as_arrow()))


def timed(args: argparse.Namespace, lake: Path) -> dict[str, float]:
    """The medians of the query's times over both tables, which answer the same."""
    times: dict[str, list[float]] = {"trickle": [], "fresh": []}
    answers = set()
    for _ in range(args.runs):
        for table, own in times.items():
            started = time.perf_counter()
            answers.add(polder(args, lake, "query", "--format", "json", QUERY.format(table)))
            own.append(time.perf_counter() - started)
    if len(answers) != 1:
        raise SystemExit(f"the tables answer otherwise: {answers}")
    return {table: statistics.median(own) for table, own in times.items()}


def as_text(report: dict) -> str:
    return "\n".join([
        f"{report['cores']} cores; {report['rows']:,} rows in {report['appends']:,} appends, and at once",
        f"before maintenance a query takes {report['trickle_before_s']:.2f} s, after {report['maintain_s']:.1f} s"
        f" of it {report['trickle_s']:.2f} s; over the table loaded at once {report['fresh_s']:.2f} s:"
        f" {report['ratio']:.2f} times as long",
    ])


if __name__ == "__main__":
    main()
