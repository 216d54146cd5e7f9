"""PostgreSQL to Iceberg on local disk, measured against draining the same table.

Started by `cargo xtask bench ingest`. Every run measures all ways one after the other, so that a
busy moment of the machine hits all of them; medians and ratios are what counts. The ways:

  drain    COPY … (FORMAT binary) over two ctid ranges into /dev/null: what the server can give
  polder   `polder run --full-refresh` into an empty lake
  duckdb   DuckDB's postgres extension into one Parquet file, as a peer
  …        the peers of `peers.py` into Iceberg tables: DuckDB, ConnectorX and ADBC with PyIceberg, dlt;
           with --spark Spark too

What each has stored is checked by count and sums, and held to Polder's types: those that differ are
listed as lost. A peer that cannot do it is said to have failed.
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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

STREAMS = 2
TABLES = ["lineitem", "opportunity_wide"]
LINEITEM = """
CREATE TABLE lineitem (
  l_orderkey bigint NOT NULL, l_partkey bigint NOT NULL, l_suppkey bigint NOT NULL,
  l_linenumber integer NOT NULL, l_quantity numeric(15,2) NOT NULL,
  l_extendedprice numeric(15,2) NOT NULL, l_discount numeric(15,2) NOT NULL,
  l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL,
  l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL,
  l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL
)"""
# The sums that a result is checked by: a key and an amount.
SUMS = {"lineitem": ("l_orderkey", "l_extendedprice"), "opportunity_wide": ("id", "amount")}
PEERS = ["duckdb", "connectorx", "adbc", "dlt"]
DUCKDB = """
import sys, duckdb
from duckdb_extensions import import_extension
import_extension("postgres_scanner")
url, table, path, threads = sys.argv[1:]
db = duckdb.connect(config={"threads": threads, "autoinstall_known_extensions": "false"})
db.execute(f"ATTACH '{url}' AS pg (TYPE postgres, READ_ONLY)")
db.execute(f"COPY (SELECT * FROM pg.public.{table}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
"""
DBGEN = """
import sys, duckdb
from duckdb_extensions import import_extension
for extension in ("tpch", "postgres_scanner"):
    import_extension(extension)
url, scale = sys.argv[1:]
db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
db.execute("SET enable_progress_bar = false")
db.execute("CALL dbgen(sf=?)", [float(scale)])
db.execute(f"ATTACH '{url}' AS pg (TYPE postgres)")
db.execute("INSERT INTO pg.public.lineitem SELECT * FROM lineitem")
"""
CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.bench]
type = "postgres"
url = "env:BENCH_URL"
[limits]
runs = 1
splits = {streams}
"""
PIPELINE = """
orgs:
  - id: bench
    tables:
      - {{ name: {table}, source: bench, from: public.{table}, mode: full_refresh }}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--psql", required=True)
    parser.add_argument("--polder", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peers", required=True, help="the Python of the peers' environment")
    parser.add_argument("--no-peers", action="store_true", help="only Polder, the drain and DuckDB")
    parser.add_argument("--spark", action="store_true", help="Spark as well, which takes minutes")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    load(args)
    ways = {"drain": drain, "polder": polder, "duckdb": duckdb_parquet}
    peers = [] if args.no_peers else PEERS + ["spark"] * args.spark
    ways |= {f"{name}→ice": partial(peer, name) for name in peers}
    samples = {table: {way: [] for way in ways} for table in TABLES}
    for run in range(args.runs):
        for table in TABLES:
            for way, measure in ways.items():
                say(f"run {run + 1} of {args.runs}: {table}, {way}")
                samples[table][way].append(measure(args, table))
                said_failed(samples[table][way][-1])
    report = {"machine": machine(args), "tables": {}}
    for table in TABLES:
        report["tables"][table] = summarise(rows_of(args, table), samples[table])
        find_lost(report["tables"][table], samples[table])
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(args: argparse.Namespace) -> None:
    """Fills the database unless the last call left it filled at the same scale."""
    stamp = f"loaded at scale {args.scale}"
    parts = urlsplit(args.postgres)
    name = parts.path.lstrip("/")
    server = urlunsplit(parts._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as connection:
        query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        found = connection.execute(query, [name]).fetchone()
        if found == (stamp,):
            return
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    say(f"loading lineitem and opportunity_wide at scale {args.scale}")
    load_lineitem(args)
    script = Path(__file__).with_name("opportunity_wide.sql")
    psql = [args.psql, "-Xq", "-v", "ON_ERROR_STOP=1", "-d", args.postgres]
    rows = f"rows={round(1_000_000 * args.scale)}"
    subprocess.run([*psql, "-v", rows, "-f", script], check=True)
    with psycopg.connect(args.postgres, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f"VACUUM (FREEZE, ANALYZE) {table}")
        connection.execute("CHECKPOINT")
        connection.execute(f"COMMENT ON DATABASE {name} IS '{stamp}'")


def load_lineitem(args: argparse.Namespace) -> None:
    with psycopg.connect(args.postgres) as connection:
        connection.execute(LINEITEM)
    # In a process of its own: the kernel counts our memory into our children's peak.
    command = [sys.executable, "-c", DBGEN, args.postgres, str(args.scale)]
    subprocess.run(command, check=True)


def rows_of(args: argparse.Namespace, table: str) -> int:
    with psycopg.connect(args.postgres) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def drain(args: argparse.Namespace, table: str) -> dict:
    with psycopg.connect(args.postgres) as connection:
        size = f"SELECT pg_relation_size('{table}') / 8192"
        pages = connection.execute(size).fetchone()[0]
    bounds = [pages * i // STREAMS for i in range(STREAMS)] + [2**32 - 1]
    copies = [
        f"COPY (SELECT * FROM {table} WHERE ctid >= '({low},0)' AND ctid < '({high},0)')"
        " TO STDOUT (FORMAT binary)"
        for low, high in zip(bounds, bounds[1:])
    ]
    started = time.perf_counter()
    children = [
        subprocess.Popen([args.psql, "-Xq", "-d", args.postgres, "-c", copy], stdout=subprocess.DEVNULL)
        for copy in copies
    ]
    if any([child.wait() for child in children]):
        raise SystemExit(f"the drain of {table} failed")
    return {"wall_s": time.perf_counter() - started}


def polder(args: argparse.Namespace, table: str) -> dict:
    work = args.work / table
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    (work / "polder.toml").write_text(CONFIG.format(streams=STREAMS))
    (work / "pipelines/bench.yaml").write_text(PIPELINE.format(table=table))
    env = os.environ | {"BENCH_URL": args.postgres}
    sample = measured([args.polder, "run", "--full-refresh", "--json"], cwd=work, env=env)
    listed = subprocess.run(
        [args.polder, "tables", "--json"], cwd=work, env=env, check=True, capture_output=True
    )
    tables = json.loads(listed.stdout)
    sample |= checked(args, table, tables[0]["metadata_location"])
    if "failed" in sample:
        raise SystemExit(f"polder: {sample['failed']}")
    sample["stored_mb"] = folder_mb(work / "lake")
    return sample


def peer(name: str, args: argparse.Namespace, table: str) -> dict:
    work = args.work / f"peer-{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    python = sys.executable if name == "spark" else args.peers
    env = os.environ | {
        "RUNTIME__DLTHUB_TELEMETRY": "false", "PYICEBERG_DOWNCAST_NS_TIMESTAMP_TO_US_ON_WRITE": "true",
    }
    command = [python, str(Path(__file__).with_name("peers.py")), name, args.postgres, table, str(work)]
    try:
        sample, said = measured_with_words(command, env=env)
    except Failed as failed:
        return {"failed": str(failed)}
    # Some say more once they have ended.
    told = [line for line in said.splitlines() if line.startswith('{"metadata"')]
    sample |= checked(args, table, json.loads(told[-1])["metadata"])
    sample["stored_mb"] = folder_mb(work)
    return sample


def checked(args: argparse.Namespace, table: str, metadata: str) -> dict:
    """The types of what is stored, if its rows are the source's."""
    key, amount = SUMS[table]
    command = [args.peers, str(Path(__file__).with_name("peers.py")), "check", metadata, key, amount]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with psycopg.connect(args.postgres) as connection:
        query = f"SELECT count(*), sum({key})::text, sum({amount})::text FROM {table}"
        rows, *sums = connection.execute(query).fetchone()
    if (found["rows"], found["sums"]) != (rows, sums):
        return {"failed": f"{found['rows']} rows with sums {found['sums']}, not {rows} with {sums}"}
    return {"types": found["types"]}


def duckdb_parquet(args: argparse.Namespace, table: str) -> dict:
    path = args.work / f"{table}.parquet"
    threads = str(os.cpu_count())
    sample = measured([sys.executable, "-c", DUCKDB, args.postgres, table, str(path), threads])
    sample["stored_mb"] = path.stat().st_size / 1e6
    path.unlink()
    return sample


class Failed(Exception):
    """A program that did not do what it was to do; its last words."""


def measured(command: list[str], **options) -> dict:
    try:
        return measured_with_words(command, **options)[0]
    except Failed as failed:
        raise SystemExit(f"{command[0]} failed:\n{failed}") from failed


def measured_with_words(command: list[str], **options) -> tuple[dict, str]:
    """Runs the command alone and reads what the kernel counted for it."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise Failed(said.decode(errors="replace")[-4000:])
    cpu = usage.ru_utime + usage.ru_stime
    figures = {"wall_s": wall, "cpu_s": cpu, "rss_mb": usage.ru_maxrss * 1024 / 1e6}
    return figures, said.decode(errors="replace")


def said_failed(sample: dict) -> None:
    if "failed" in sample:
        say(f"  failed: {last_words(sample['failed'])}")


def last_words(text: str) -> str:
    """The last line that is not indented: Java's programs end with where they were."""
    lines = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1] if lines else text.strip()


def folder_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def summarise(rows: int, samples: dict[str, list[dict]]) -> dict:
    ways = {}
    for way, runs in samples.items():
        failed = [run["failed"] for run in runs if "failed" in run]
        if failed:
            ways[way] = {"failed": last_words(failed[-1])}
            continue
        keys = [key for key in runs[0] if key != "types"]
        ways[way] = {key: statistics.median(run[key] for run in runs) for key in keys}
        # The ratio of each run to the drain beside it, then the median of those.
        ratios = [run["wall_s"] / beside["wall_s"] for run, beside in zip(runs, samples["drain"])]
        ways[way]["wall_to_drain"] = statistics.median(ratios)
        ways[way]["wall_s_all"] = [round(run["wall_s"], 3) for run in runs]
        if "cpu_s" in ways[way]:
            ways[way]["cpu_us_per_row"] = ways[way]["cpu_s"] * 1e6 / rows
    return {"rows": rows, "ways": ways}


def find_lost(report: dict, samples: dict[str, list[dict]]) -> None:
    """Lists the columns whose type is another one than in Polder's table."""
    own = samples["polder"][-1]["types"]
    for way, figures in report["ways"].items():
        types = samples[way][-1].get("types")
        if types and "failed" not in figures:
            lost = [f"{n} {kind} as {types.get(n)}" for n, kind in own.items() if types.get(n) != kind]
            figures["lost_types"] = lost


def machine(args: argparse.Namespace) -> dict:
    own = subprocess.run([args.polder, "version"], capture_output=True, text=True, check=True)
    with psycopg.connect(args.postgres) as connection:
        server = connection.execute("SHOW server_version").fetchone()[0]
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cores": os.cpu_count(),
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "polder": own.stdout.strip(),
        "postgresql": server,
        "duckdb": version("duckdb"),
        "streams": STREAMS,
        "runs": args.runs,
    }


def as_text(report: dict) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), PostgreSQL {machine['postgresql']},"
        f" {machine['polder']}, DuckDB {machine['duckdb']};"
        f" medians of {machine['runs']} interleaved runs, {STREAMS} streams",
        "",
        f"{'table':<18}{'way':<15}{'wall s':>8}{'÷ drain':>9}{'CPU s':>8}{'µs/row':>8}"
        f"{'RSS MB':>8}{'stored MB':>11}",
    ]
    for table, found in report["tables"].items():
        for way, figures in found["ways"].items():
            if "failed" in figures:
                lines.append(f"{table:<18}{way:<15}failed: {figures['failed'][:90]}")
                continue
            cells = [
                f"{figures['wall_s']:8.2f}", f"{figures['wall_to_drain']:9.2f}",
                f"{figures['cpu_s']:8.2f}" if "cpu_s" in figures else " " * 8,
                f"{figures['cpu_us_per_row']:8.2f}" if "cpu_s" in figures else " " * 8,
                f"{figures['rss_mb']:8.0f}" if "rss_mb" in figures else " " * 8,
                f"{figures['stored_mb']:11.0f}" if "stored_mb" in figures else "",
            ]
            lines.append(f"{table:<18}{way:<15}" + "".join(cells))
            if lost := figures.get("lost_types"):
                lines.append(f"{'':<18}{len(lost)} lost types: {', '.join(lost)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
