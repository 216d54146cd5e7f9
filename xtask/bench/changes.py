"""What a run costs when little has changed, measured next to the plain ways to fetch the same rows.

Started by `cargo xtask bench changes`. lineitem gets a key and a time of change. In each round one row of
a hundred changes, and then, one after the other:

  copy     COPY … (FORMAT binary) of the rows that changed into /dev/null
  merge    `polder run` of a table in `mode: merge`
  append   the same in `mode: append`
  xmin     the same in `mode: merge` by `cursor: xmin`, which scans the table
  duckdb   DuckDB's postgres extension: the rows that changed into a Parquet file
  refresh  `polder run --full-refresh`
  nothing  `polder run` of the three tables once more, each for itself

With --upsert, PyIceberg's upsert of the changed rows into a table of its own, once: it takes minutes.
With --orgs N, a pass over N orgs of five tables each in which nothing has changed.
What the lake holds is checked by count and sums at the end.
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

import ingest
import psycopg
from ingest import CONFIG, measured, say

TABLE = "item"
SETUP = """
DROP TABLE IF EXISTS item;
CREATE TABLE item AS SELECT row_number() OVER ()::bigint AS id, l.*,
  timestamptz '2025-01-01 00:00Z' + row_number() OVER () * interval '1 ms' AS updated_at
  FROM lineitem AS l;
ALTER TABLE item ADD PRIMARY KEY (id), ALTER updated_at SET NOT NULL;
CREATE INDEX item_updated_at ON item (updated_at);
"""
CHANGE = """
UPDATE item SET l_quantity = l_quantity + 1, updated_at = clock_timestamp() WHERE id %% 100 = %s
"""
SUMS = ("id", "l_quantity")
MODES = {
    "merge": "mode: merge, key: [id], cursor: updated_at",
    "append": "mode: append, key: [id], cursor: updated_at",
    "xmin": "mode: merge, key: [id], cursor: xmin",
    "refresh": "mode: full_refresh",
}
PIPELINE = """
orgs:
  - id: bench
    tables:
      - {{ name: item, source: bench, from: public.item, {mode} }}
"""
DUCKDB = """
import sys, duckdb
from duckdb_extensions import import_extension
import_extension("postgres_scanner")
url, since, path = sys.argv[1:]
db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
db.execute(f"ATTACH '{url}' AS pg (TYPE postgres, READ_ONLY)")
changed = f"SELECT * FROM pg.public.item WHERE updated_at >= '{since}'"
db.execute(f"COPY ({changed}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
"""
# Loads all rows, waits for the word that they have changed, and then takes the changed ones.
UPSERT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import peers
from adbc_driver_postgresql import dbapi
from pyiceberg.catalog.sql import SqlCatalog
url, since, folder = sys.argv[2], sys.argv[3], Path(sys.argv[4])
peers.KEYS["item"] = "id"
def rows(condition):
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        columns = peers.selected(url, "item", "adbc")
        cursor.execute(f"SELECT {columns} FROM item WHERE {condition}")
        return cursor.fetch_arrow_table()
before = f"updated_at < '{since}'"
peers.stored("item", folder, [rows(before)])
table = SqlCatalog("peer", uri=f"sqlite:///{folder}/peer.db", warehouse=(folder / "lake").as_uri()).load_table("bench.item")
started = time.perf_counter()
table.upsert(rows(f"NOT ({before})"), join_cols=["id"])
print(time.perf_counter() - started)
"""
ORG_TABLES = 5
ORGS_SETUP = """
DROP TABLE IF EXISTS deal;
CREATE TABLE deal AS SELECT i::bigint AS id, i %% {orgs} AS org_id, md5(i::text) AS note,
  timestamptz '2025-01-01 00:00Z' + i * interval '1 ms' AS updated_at
  FROM generate_series(1, {orgs} * 20) AS i;
ALTER TABLE deal ADD PRIMARY KEY (id), ALTER updated_at SET NOT NULL;
CREATE INDEX ON deal (org_id, updated_at);
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--psql", required=True)
    parser.add_argument("--polder", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--orgs", type=int, default=0)
    parser.add_argument("--upsert", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    ingest.load(args)
    say("making the table")
    sql(args, SETUP)
    with psycopg.connect(args.postgres, autocommit=True) as connection:
        connection.execute("VACUUM (FREEZE, ANALYZE) item")
    for lake in MODES:
        say(f"loading {lake}")
        make(args, lake)
        polder(args, lake)
    rounds = [changed(args, number) for number in range(args.runs)]
    for lake in ["merge", "xmin", "refresh"]:
        check(args, lake)
    report = {"machine": ingest.machine(args), "rows": ingest.rows_of(args, TABLE), "ways": summarise(rounds)}
    if args.upsert:
        report["pyiceberg_upsert_s"] = upsert(args)
    if args.orgs:
        report["pass_over_orgs_s"] = orgs(args)
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def sql(args: argparse.Namespace, text: str) -> None:
    with psycopg.connect(args.postgres) as connection:
        connection.execute(text)


def make(args: argparse.Namespace, lake: str) -> None:
    work = args.work / lake
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    (work / "polder.toml").write_text(CONFIG.format(streams=ingest.STREAMS))
    (work / "pipelines/bench.yaml").write_text(PIPELINE.format(mode=MODES[lake]))


def polder(args: argparse.Namespace, lake: str, *more: str) -> dict:
    """One run, with what it says of itself."""
    env = os.environ | {"BENCH_URL": args.postgres}
    command = [args.polder, "run", "--json", *more]
    sample, said = ingest.measured_with_words(command, cwd=args.work / lake, env=env)
    runs = json.loads(said[said.index("{"):])["runs"]
    reports = [run["report"] for run in runs]
    sample["own_ms"] = sum(report["duration_ms"] for report in reports) / len(reports)
    sample["rows_written"] = sum(report["rows_written"] for report in reports)
    return sample


def changed(args: argparse.Namespace, number: int) -> dict[str, dict]:
    say(f"round {number + 1} of {args.runs}")
    with psycopg.connect(args.postgres) as connection:
        since = connection.execute("SELECT clock_timestamp()::text").fetchone()[0]
        count = connection.execute(CHANGE, [number % 100]).rowcount
    # The mark stays a second behind the clock.
    time.sleep(1.5)
    copy = f"COPY (SELECT * FROM {TABLE} WHERE updated_at >= '{since}') TO STDOUT (FORMAT binary)"
    command = [args.psql, "-Xq", "-d", args.postgres, "-c", copy]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    samples = {"copy": {"wall_s": time.perf_counter() - started}}
    for lake in ["merge", "append", "xmin"]:
        samples[lake] = polder(args, lake)
        if samples[lake]["rows_written"] != count:
            raise SystemExit(f"{lake}: {samples[lake]['rows_written']} rows written, {count} changed")
    path = args.work / "changed.parquet"
    samples["duckdb"] = measured([sys.executable, "-c", DUCKDB, args.postgres, since, str(path)])
    path.unlink()
    samples["refresh"] = polder(args, "refresh", "--full-refresh")
    for lake in ["merge", "append", "xmin"]:
        samples[f"nothing ({lake})"] = polder(args, lake)
    return samples


def check(args: argparse.Namespace, lake: str) -> None:
    work = args.work / lake
    listed = subprocess.run([args.polder, "tables", "--json"], cwd=work, check=True, capture_output=True,
                            env=os.environ | {"BENCH_URL": args.postgres})
    metadata = json.loads(listed.stdout)[0]["metadata_location"]
    ingest.SUMS[TABLE] = SUMS
    found = ingest.checked(args, TABLE, metadata)
    if "failed" in found:
        raise SystemExit(f"{lake}: {found['failed']}")


def upsert(args: argparse.Namespace) -> float:
    say("PyIceberg's upsert")
    folder = args.work / "upsert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with psycopg.connect(args.postgres) as connection:
        since = connection.execute("SELECT clock_timestamp()::text").fetchone()[0]
        connection.execute(CHANGE, [99])
    here = str(Path(__file__).parent)
    command = [args.peers, "-c", UPSERT, here, args.postgres, since, str(folder)]
    _, said = ingest.measured_with_words(command)
    return float(said.splitlines()[-1])


def orgs(args: argparse.Namespace) -> float:
    """Seconds of a pass over all orgs' tables in which nothing is new."""
    say(f"loading {args.orgs} orgs of {ORG_TABLES} tables")
    sql(args, ORGS_SETUP.format(orgs=args.orgs).replace("%%", "%"))
    work = args.work / "orgs"
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    config = CONFIG.format(streams=1).replace("runs = 1", "runs = 4")
    (work / "polder.toml").write_text(config)
    spec = "source: bench, from: public.deal, filter: 'org_id = {org}', mode: merge, key: [id], cursor: updated_at"
    tables = "".join(f"      - {{ name: deal_{number}, {spec} }}\n" for number in range(ORG_TABLES))
    listed = "".join(f'  - {{ id: "{org}", template: crm }}\n' for org in range(args.orgs))
    (work / "pipelines/orgs.yaml").write_text(f"templates:\n  crm:\n    tables:\n{tables}orgs:\n{listed}")
    polder(args, "orgs")
    say("the pass")
    sample = polder(args, "orgs")
    if sample["rows_written"]:
        raise SystemExit(f"{sample['rows_written']} rows were new")
    return sample["wall_s"]


def summarise(rounds: list[dict[str, dict]]) -> dict:
    ways = {}
    for way in rounds[0]:
        keys = [key for key in rounds[0][way] if key != "rows_written"]
        ways[way] = {key: statistics.median(samples[way][key] for samples in rounds) for key in keys}
        ratios = [samples[way]["wall_s"] / samples["copy"]["wall_s"] for samples in rounds]
        ways[way]["wall_to_copy"] = statistics.median(ratios)
        ratios = [samples["refresh"]["wall_s"] / samples[way]["wall_s"] for samples in rounds]
        ways[way]["refresh_to_wall"] = statistics.median(ratios)
    return ways


def as_text(report: dict) -> str:
    lines = [f"{report['rows']} rows, 1 % changed", "",
             f"{'way':<18}{'wall s':>8}{'÷ copy':>9}{'refresh ÷':>11}{'own ms':>9}{'CPU s':>8}{'RSS MB':>8}"]
    for way, found in report["ways"].items():
        cells = [f"{found['wall_s']:8.3f}", f"{found['wall_to_copy']:9.2f}", f"{found['refresh_to_wall']:11.1f}"]
        cells += [f"{found[key]:{width}.{digits}f}" if key in found else " " * width
                  for key, width, digits in [("own_ms", 9, 0), ("cpu_s", 8, 2), ("rss_mb", 8, 0)]]
        lines.append(f"{way:<18}" + "".join(cells))
    for key, words in [("pyiceberg_upsert_s", "PyIceberg's upsert"), ("pass_over_orgs_s", "pass over all orgs")]:
        if key in report:
            lines.append(f"{words}: {report[key]:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
