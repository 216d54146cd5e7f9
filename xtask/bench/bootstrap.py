"""All rows of an org as one Arrow stream from `polder serve`, next to PyIceberg and Trino reading the same files.

Started by `cargo xtask bench bootstrap`. Said are the rows a second that a client gets, the time until the
first byte (of Trino and PyIceberg: the first rows), and the server's peak of memory. All run on this machine,
on local disk: the stream pays for encoding and a socket, PyIceberg for planning in Python, Trino for the
text that its protocol is made of. Each reads all columns of all rows into nothing.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "interop"))

from optimize import CONFIG, PIPELINE, rows  # noqa: E402

FILES_ROWS = 36_000
ADDRESS = re.compile(r"API: (http://\S+)/v1")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--trino", type=Path, required=True, help="folder of Trino's server")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(CLIENTS[args.client[0]](args.client[1])))
        return
    work = prepare(args)
    server, address = serve(args, work)
    try:
        with trino(args, work, address) as port:
            places = {"polder": address, "pyiceberg": str(work), "trino": str(port)}
            samples = [once(places, number + 1, args.runs) for number in range(args.runs)]
    finally:
        peak = memory_mb(server.pid)
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    report = {"machine": machine(args), "rows": samples[0]["polder"]["rows"], "server_rss_mb": peak, "samples": samples}
    for name in CLIENTS:
        report[name] = {
            key: statistics.median(sample[name][key] for sample in samples) for key in samples[0][name]
        }
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def prepare(args: argparse.Namespace) -> Path:
    """A lake of so many rows, unless the last call left it."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    work = args.work / f"rows-{args.rows}"
    if (work / "ready").exists():
        return work
    print(f"writing {args.rows} rows", file=sys.stderr, flush=True)
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    (work / "exports").mkdir()
    (work / "polder.toml").write_text(CONFIG)
    (work / "pipelines/bench.yaml").write_text(PIPELINE)
    for number, first in enumerate(range(0, args.rows, 20 * FILES_ROWS)):
        count = min(20, -(-(args.rows - first) // FILES_ROWS))
        table = pa.concat_tables([rows(number * 20 + part) for part in range(count)])
        parquet.write_table(table.slice(0, args.rows - first), work / f"exports/{number}.parquet")
    subprocess.run([args.polder, "run"], cwd=work, check=True, stdout=sys.stderr)
    (work / "ready").touch()
    return work


def serve(args: argparse.Namespace, work: Path) -> tuple[subprocess.Popen, str]:
    log = work / "serve.log"
    with log.open("w") as output:
        command = [args.polder, "serve", "--listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, cwd=work, stderr=output)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        found = ADDRESS.search(log.read_text())
        if found:
            return server, found[1]
        time.sleep(0.05)
    server.kill()
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


@contextmanager
def trino(args: argparse.Namespace, work: Path, address: str):
    """A Trino with the served catalog as `lake`; its port."""
    from trino_server import Trino

    folder = work / "trino"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    server = Trino(args.trino, folder)
    try:
        server.sql(
            "CREATE CATALOG lake USING iceberg WITH (\"iceberg.catalog.type\" = 'rest',"
            f" \"iceberg.rest-catalog.uri\" = '{address}/iceberg', \"fs.hadoop.enabled\" = 'true')"
        )
        yield server.port
    finally:
        server.stop()


def once(places: dict[str, str], number: int, runs: int) -> dict:
    print(f"run {number} of {runs}", file=sys.stderr, flush=True)
    sample = {}
    for name, place in places.items():
        command = [sys.executable, __file__, "--polder", "-", "--trino", "-", "--work", "-", "--client", name, place]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sample[name] = json.loads(done.stdout)
    if len({found["rows"] for found in sample.values()}) != 1:
        raise SystemExit(f"other rows: {sample}")
    return sample


def from_polder(address: str) -> dict:
    import io

    import pyarrow as pa

    begun = time.perf_counter()
    answer = urllib.request.urlopen(f"{address}/v1/orgs/bench/bootstrap?format=arrow", timeout=60)
    answer.read1(1)
    first = time.perf_counter() - begun
    answer.close()
    begun, count = time.perf_counter(), 0
    with urllib.request.urlopen(f"{address}/v1/orgs/bench/bootstrap?format=arrow", timeout=60) as answer:
        source = pa.PythonFile(io.BufferedReader(answer, 1 << 20), "r")
        while True:
            reader = pa.ipc.open_stream(source)
            mark = (reader.schema.metadata or {}).get(b"polder.mark")
            if mark and json.loads(mark)["end"]:
                break
            count += sum(batch.num_rows for batch in reader)
    return sampled(begun, count) | {"first_byte_ms": first * 1000}


def from_pyiceberg(work: str) -> dict:
    from pyiceberg.catalog.sql import SqlCatalog

    begun = time.perf_counter()
    catalog = SqlCatalog("polder", uri=f"sqlite:///{work}/polder.db")
    scan = catalog.load_table(("org_bench", "event")).scan()
    count, first = 0, None
    for batch in scan.to_arrow_batch_reader():
        first = first or time.perf_counter() - begun
        count += batch.num_rows
    return sampled(begun, count) | {"first_byte_ms": (first or 0) * 1000}


def from_trino(port: str) -> dict:
    from trino.dbapi import connect

    begun = time.perf_counter()
    cursor = connect(host="127.0.0.1", port=int(port), user="bench").cursor()
    cursor.execute("SELECT * FROM lake.org_bench.event")
    count, first = 0, None
    while rows := cursor.fetchmany(10_000):
        first = first or time.perf_counter() - begun
        count += len(rows)
    return sampled(begun, count) | {"first_byte_ms": (first or 0) * 1000}


def sampled(begun: float, count: int) -> dict:
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": count,
        "wall_s": wall,
        "rows_per_s": count / wall,
        "client_rss_mb": used.ru_maxrss * 1024 / 1e6,
    }


CLIENTS = {"polder": from_polder, "pyiceberg": from_pyiceberg, "trino": from_trino}


def memory_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def machine(args: argparse.Namespace) -> dict:
    own = subprocess.run([args.polder, "version"], capture_output=True, text=True, check=True)
    return {"cores": os.cpu_count(), "kernel": platform.release(), "polder": own.stdout.strip()}


def as_text(report: dict) -> str:
    lines = [
        f"{report['machine']['cores']} cores; {report['rows']:,} rows; medians of {len(report['samples'])} runs",
        f"the server took {report['server_rss_mb']:.0f} MB at most",
    ]
    for name in CLIENTS:
        found = report[name]
        lines.append(
            f"{name:10} {found['rows_per_s'] / 1e6:6.2f} M rows/s, the first after"
            f" {found['first_byte_ms']:.0f} ms, {found['client_rss_mb']:.0f} MB in the client"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
