"""TPC-H's 22 queries, and a point query by key and month, on the same Iceberg tables.

Started by `cargo xtask bench query`. DuckDB's generator writes the rows, `polder run` makes tables of
them. Every run asks each query of all ways one after the other, so that a busy moment of the machine
hits all of them, and every other run does so backwards: what a way still does after its answer, as Trino
compiles and collects garbage, hits all others alike. A first run warms them up and is not counted. All
answers are compared with DuckDB's.
The ways:

  polder   `POST /v1/query` of `polder serve`, answers as Arrow
  duckdb   DuckDB, which reads the tables by their metadata files, answers as Arrow
  trino    Trino, through the served catalog, answers as its Python client has them

Last, what it costs that queries run in processes of their own: `SELECT 1` of the same server, and of one
that answers in its own process, in turns.
"""

import argparse
import datetime
import decimal
import http.client
import io
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "interop"))

TABLES = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.tpch]
type = "files"
url = "./exports"
[server]
auth = "keys"
rate_limit = {{ per_second = 10000, burst = 10000 }}
{processes}
[limits]
runs = 1
query_memory_mb = {memory_mb}
"""
PIPELINE = """
orgs:
  - id: bench
    tables:
{tables}
      - {{ name: order_by_month, source: tpch, from: orders.parquet, mode: full_refresh, partition: ["month(o_orderdate)"] }}
"""
DBGEN = """
import sys, duckdb
from duckdb_extensions import import_extension
import_extension("tpch")
scale, folder, *tables = sys.argv[1:]
db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
db.execute("SET enable_progress_bar = false")
db.execute("CALL dbgen(sf=?)", [float(scale)])
for table in tables:
    db.execute(f"COPY {table} TO '{folder}/{table}.parquet' (FORMAT parquet, COMPRESSION zstd)")
"""
POINT = "SELECT * FROM order_by_month WHERE o_orderkey = {key} AND o_orderdate >= DATE '{month}' AND o_orderdate < DATE '{month}' + INTERVAL '1' MONTH"
ADDRESS = re.compile(r"API: (http://\S+)/v1")
# What is to be reached: the first two are of geometric means, the others of medians in milliseconds.
GOALS = {"duckdb": 1.0, "trino": 0.33, "point_ms": 20.0, "process_ms": 5.0}
# Queries of which each server answers so many, to compare them.
SMALL = 300
# Averages of decimals are cut to six digits by Polder, and rounded to the column's two by Trino.
TOLERANCE = {"polder": 1e-6, "trino": 0.0051}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--trino", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--memory-mb", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    work = prepare(args)
    with serving(args, work) as (address, keys), trino(args, address, keys) as asked:
        ways = {"polder": Polder(address, keys["reader"]), "duckdb": DuckDB(work, args), "trino": asked}
        with serving(args, work, "inside.toml") as (inside, _):
            cost = cost_of_processes(ways["polder"], Polder(inside, keys["reader"]))
        report = measure(args, ways, cost)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    if args.check and report["missed"]:
        raise SystemExit(1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace) -> Path:
    """The lake with the tables, unless the last call left it."""
    work = args.work / f"scale-{args.scale:g}"
    if not (work / "ready").exists():
        say(f"making TPC-H's tables at scale {args.scale:g}")
        shutil.rmtree(work, ignore_errors=True)
        (work / "pipelines").mkdir(parents=True)
        (work / "exports").mkdir()
        subprocess.run([sys.executable, "-c", DBGEN, str(args.scale), work / "exports", *TABLES], check=True)
    for name, processes in {"polder.toml": "", "inside.toml": "query_processes = 0"}.items():
        (work / name).write_text(CONFIG.format(memory_mb=args.memory_mb, processes=processes))
    line = "      - {{ name: {0}, source: tpch, from: {0}.parquet, mode: full_refresh }}"
    tables = "\n".join(line.format(table) for table in TABLES)
    (work / "pipelines/bench.yaml").write_text(PIPELINE.format(tables=tables))
    if not (work / "ready").exists():
        subprocess.run([args.polder, "run"], cwd=work, check=True, stdout=sys.stderr)
        shutil.rmtree(work / "exports")
        (work / "ready").touch()
    return work


@contextmanager
def serving(args: argparse.Namespace, work: Path, config: str = "polder.toml"):
    """`polder serve`'s address, and keys for it."""

    def key(*who: str) -> str:
        command = [args.polder, "keys", "create", "--json", *who]
        return json.loads(subprocess.run(command, cwd=work, check=True, capture_output=True).stdout)["key"]

    keys = {"operator": key("--role", "operator"), "reader": key("--role", "reader", "--org", "bench")}
    log = work / f"{config}.log"
    with log.open("w") as output:
        command = [args.polder, "--config", config, "serve", "--listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, cwd=work, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while not (found := ADDRESS.search(log.read_text())):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield found[1], keys
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def trino(args: argparse.Namespace, address: str, keys: dict[str, str]):
    """Trino with the served catalog as `lake`."""
    from trino_server import Trino

    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        server = Trino(args.trino, Path(folder), heap_mb=args.memory_mb, query_mb=args.memory_mb // 2)
        try:
            settings = {
                "iceberg.catalog.type": "rest", "iceberg.rest-catalog.uri": f"{address}/iceberg",
                "iceberg.rest-catalog.security": "OAUTH2",
                "iceberg.rest-catalog.oauth2.token": keys["operator"], "fs.hadoop.enabled": "true",
            }
            listed = ", ".join(f"\"{key}\" = '{value}'" for key, value in settings.items())
            server.sql(f"CREATE CATALOG lake USING iceberg WITH ({listed})")
            yield TrinoWay(server.port)
        finally:
            server.stop()


class Polder:
    def __init__(self, address: str, key: str):
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
        self._headers = {
            "Authorization": f"Bearer {key}", "Content-Type": "application/json",
            "Accept": "application/vnd.apache.arrow.stream",
        }

    def ask(self, sql: str) -> list[tuple]:
        import pyarrow as pa

        self._connection.request("POST", "/v1/query", json.dumps({"sql": sql}), self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{sql}\npolder: {body.decode()}")
        return as_rows(pa.ipc.open_stream(io.BytesIO(body)).read_all())


class DuckDB:
    def __init__(self, work: Path, args: argparse.Namespace):
        import duckdb
        from duckdb_extensions import import_extension

        for extension in ("avro", "iceberg", "tpch"):
            import_extension(extension)
        self._db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        self._db.execute(f"SET memory_limit = '{args.memory_mb}MB'")
        listed = subprocess.run([args.polder, "tables", "--json"], cwd=work, check=True, capture_output=True)
        for table in json.loads(listed.stdout):
            if table["org"] == "bench":
                scan = f"iceberg_scan('{table['metadata_location']}')"
                self._db.execute(f'CREATE VIEW "{table["table"]}" AS SELECT * FROM {scan}')

    def queries(self) -> dict[str, str]:
        found = self._db.execute("SELECT query_nr, query FROM tpch_queries() ORDER BY 1").fetchall()
        # Trino groups by no other name of a column, as q15 of DuckDB's does.
        plain = [(number, re.sub(r"GROUP BY\s+supplier_no", "GROUP BY l_suppkey", sql)) for number, sql in found]
        return {f"q{number}": sql.strip().rstrip(";") for number, sql in plain}

    def ask(self, sql: str) -> list[tuple]:
        return as_rows(self._db.execute(sql).to_arrow_table())


class TrinoWay:
    def __init__(self, port: int):
        from trino.dbapi import connect

        self._connection = connect(
            host="127.0.0.1", port=port, user="bench", catalog="lake", schema="org_bench", timezone="UTC"
        )

    def ask(self, sql: str) -> list[tuple]:
        cursor = self._connection.cursor()
        cursor.execute(sql)
        return [tuple(row) for row in cursor.fetchall()]


def as_rows(table) -> list[tuple]:
    return list(zip(*(column.to_pylist() for column in table.columns)))


def cost_of_processes(own, inside) -> float:
    """Milliseconds that a query takes longer in a process of its own."""
    taken = {own: [], inside: []}
    for run in range(SMALL):
        for server, samples in taken.items():
            begun = time.perf_counter()
            server.ask("SELECT 1 AS one")
            if run >= SMALL // 10:
                samples.append(time.perf_counter() - begun)
    return (statistics.median(taken[own]) - statistics.median(taken[inside])) * 1000


def measure(args: argparse.Namespace, ways: dict, process_ms: float) -> dict:
    duck = ways["duckdb"]
    queries = duck.queries()
    key, day = duck.ask("SELECT o_orderkey, o_orderdate FROM orders ORDER BY o_orderkey OFFSET 1000 LIMIT 1")[0]
    queries["point"] = POINT.format(key=key, month=day.replace(day=1))
    samples = {name: {way: [] for way in ways} for name in queries}
    for run in range(args.runs + 1):
        say(f"run {run} of {args.runs}" if run else "warming up, and comparing the answers")
        for name, sql in queries.items():
            answers = {}
            for way, engine in list(ways.items())[:: -1 if run % 2 else 1]:
                begun = time.perf_counter()
                answers[way] = engine.ask(sql)
                if run:
                    samples[name][way].append(time.perf_counter() - begun)
            for way, tolerance in TOLERANCE.items():
                compare(name, way, answers[way], answers["duckdb"], tolerance)
    return summarise(args, samples, process_ms)


def compare(name: str, way: str, found: list[tuple], expected: list[tuple], tolerance: float) -> None:
    found, expected = in_order(found), in_order(expected)
    if len(found) != len(expected):
        raise SystemExit(f"{name}: {way} has {len(found)} rows, DuckDB {len(expected)}")
    for one, other in zip(found, expected):
        if not all(same(a, b, tolerance) for a, b in zip(one, other, strict=True)):
            raise SystemExit(f"{name}: {way} says {one}, DuckDB {other}")


def in_order(rows: list[tuple]) -> list[tuple]:
    """Rows with plain cells, by what is no fraction first: that is the same everywhere."""
    plain = [tuple(cell(value) for value in row) for row in rows]
    return sorted(plain, key=lambda row: (
        [str(value) for value in row if not isinstance(value, float)],
        [value for value in row if isinstance(value, float)],
    ))


def cell(value):
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.datetime):
        return value.date()
    return value.rstrip() if isinstance(value, str) else value


def same(one, other, tolerance: float) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=tolerance)
    return one == other


def summarise(args: argparse.Namespace, samples: dict, process_ms: float) -> dict:
    medians = {
        name: {way: statistics.median(taken) for way, taken in ways.items()} for name, ways in samples.items()
    }
    point = medians.pop("point")
    report = {"machine": machine(args), "scale": args.scale, "runs": args.runs, "seconds": medians}
    report["ratio"] = {
        other: statistics.geometric_mean([taken["polder"] / taken[other] for taken in medians.values()])
        for other in ["duckdb", "trino"]
    }
    report["point_ms"] = {way: taken * 1000 for way, taken in point.items()}
    report["process_ms"] = process_ms
    reached = report["ratio"] | {"point_ms": report["point_ms"]["polder"], "process_ms": process_ms}
    report["missed"] = [goal for goal, most in GOALS.items() if reached[goal] > most]
    return report


def machine(args: argparse.Namespace) -> dict:
    own = subprocess.run([args.polder, "version"], capture_output=True, text=True, check=True)
    return {"cores": os.cpu_count(), "kernel": platform.release(), "polder": own.stdout.splitlines()[0]}


def as_text(report: dict) -> str:
    machine, ways = report["machine"], ["polder", "duckdb", "trino"]
    lines = [
        f"{machine['cores']} cores, {machine['polder']}; TPC-H at scale {report['scale']:g}; medians of {report['runs']} runs",
        f"{'':6}" + "".join(f"{way:>10}" for way in ways) + "   of duckdb  of trino",
    ]
    for name, taken in report["seconds"].items():
        times = "".join(f"{taken[way]:9.3f}s" for way in ways)
        own = taken["polder"]
        lines.append(f"{name:6}{times}   {own / taken['duckdb']:9.2f}  {own / taken['trino']:8.2f}")
    ratio = report["ratio"]
    lines.append(f"geometric means: {ratio['duckdb']:.2f} of DuckDB's time, {ratio['trino']:.2f} of Trino's")
    point = ", ".join(f"{way} {taken:.1f} ms" for way, taken in report["point_ms"].items())
    lines.append(f"the point query by key and month: {point}")
    lines.append(f"a query in a process of its own takes {report['process_ms']:.1f} ms longer")
    lines.append("goals missed: " + (", ".join(report["missed"]) or "none"))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
