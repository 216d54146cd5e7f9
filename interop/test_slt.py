"""The files of `slt/`: the same SQL on Polder's own engine and on Trino, over the same tables."""

import json
import os
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pyarrow as pa
import pytest
import slt
from lakes import FROM_FILES, Lake, Services
from test_rest_catalog import serving
from test_trino import catalog
from trino_server import Trino

FILES = sorted(Path(__file__).with_name("slt").glob("*.slt"))
# Of all files together, of either engine.
QUERIES_MIN = 150
PIPELINE = """
orgs:
  - id: slt
    tables:
      - name: deal
        source: files
        from: "deal/*.csv"
        mode: append
        partition: ["month(closed)"]
        types:
          { id: long, account: int, amount: "decimal(12, 2)", score: double, closed: date, seen: timestamptz,
            local: timestamp, won: boolean, note: string }
      - name: account
        source: files
        from: account.csv
        mode: full_refresh
        types: { id: int, name: string, region: string, employees: long, since: date }
"""
ACCOUNTS = """id,name,region,employees,since
1,{name},north,120,2019-03-01
2,Bolt,south,15,2021-11-30
3,Cargo,north,,2020-02-29
4,Delta,east,3000,
5,Echo,,7,2024-12-31
"""
HEAD = "id,account,stage,amount,score,closed,seen,local,won,note\n"
FIRST = HEAD + """\
1,1,won,100.50,0.5,2026-01-15,2026-01-15 10:00:00Z,2026-01-15 11:00:00,true,first
2,1,lost,200.00,0.25,2026-01-31,2026-01-31 23:59:59.999999Z,2026-02-01 00:59:59.999999,false,
3,2,won,300.25,1.5,2026-02-01,2026-02-01 00:00:00Z,2026-02-01 01:00:00,true,second
4,2,open,,,,2026-02-02 08:30:00Z,,,naïve café
5,3,open,50.00,-2.5,2026-02-14,2026-02-14 12:00:00.5Z,2026-02-14 13:00:00.5,,x'y
6,,won,0.01,0,2026-02-28,2026-02-28 23:00:00Z,2026-03-01 00:00:00,true,a_b%c
"""
SECOND = HEAD + """\
7,4,lost,99999999.99,100,2026-03-01,2026-03-01 00:00:00Z,2026-03-01 01:00:00,false,UPPER
8,4,won,-12.34,0.125,2026-03-31,2026-03-31 11:11:11Z,2026-03-31 13:11:11,true,lower
9,9,won,70.00,3.75,2025-12-31,2025-12-31 23:59:59Z,2026-01-01 00:59:59,true,
10,1,open,100.50,0.5,2026-03-15,2026-03-15 06:00:00Z,2026-03-15 07:00:00,,first
"""


@dataclass
class Engine:
    """Answers SQL, or raises; `names` is what the files' `${…}` stand for."""

    ask: Callable[[str], list]
    names: dict[str, str]


def post(uri: str, sql: str, **more: str) -> list[list]:
    """What `POST /v1/query` answers, as Python has it."""
    request = urllib.request.Request(
        f"{uri.removesuffix('/iceberg')}/v1/query",
        json.dumps({"sql": sql} | more).encode(),
        {"Content-Type": "application/json", "Accept": "application/vnd.apache.arrow.stream"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            found = pa.ipc.open_stream(answer.read()).read_all()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None
    return [list(row) for row in zip(*(column.to_pylist() for column in found.columns))]


@pytest.fixture(scope="module")
def engines(trino: Trino, services: Services, tmp_path_factory):
    work = tmp_path_factory.mktemp("slt")
    lake = "lake_slt_" + uuid.uuid4().hex[:8]
    trino_section = f'[trino]\nurl = "http://127.0.0.1:{trino.port}"\nuser = "test"\ncatalog = "{lake}"\n'
    (work / "polder.toml").write_text(FROM_FILES + trino_section)
    for folder in ["pipelines", "exports/deal"]:
        (work / folder).mkdir(parents=True)
    (work / "pipelines/orgs.yaml").write_text(PIPELINE)
    made = Lake(services, work, {})
    for number, (deals, name) in enumerate([(FIRST, "Acme"), (SECOND, "Acme Inc")]):
        (work / f"exports/deal/{number}.csv").write_text(deals)
        (work / "exports/account.csv").write_text(ACCOUNTS.format(name=name))
        made.polder("run", "--json")
    with serving(services.polder, work, dict(os.environ)) as uri:
        with catalog(trino, uri, made.through(uri).for_trino(), lake):
            history = 'SELECT made_current_at, snapshot_id FROM lake.org_slt."deal$history" ORDER BY 1 LIMIT 1'
            [(at, first)] = post(uri, history)
            names = {"first": str(first), "between": f"{at:%Y-%m-%d %H:%M:%S.%f}+00:00"}
            own = names | {"lake": "lake.org_slt"}
            other = names | {"lake": f"{lake}.org_slt"}
            yield {
                "polder": Engine(lambda sql: post(uri, sql), own),
                "trino": Engine(trino.sql, other),
                # The same Trino, by way of Polder: every value has to arrive as it was.
                "through": Engine(lambda sql: post(uri, sql, engine="trino"), other),
            }


@pytest.mark.parametrize("dialect, engine", [("polder", "polder"), ("trino", "trino"), ("trino", "through")])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_answers(file: Path, dialect: str, engine: str, engines):
    wrong = []
    for record in slt.read(file):
        if not record.is_for(dialect):
            continue
        sql = slt.filled(record.sql, engines[engine].names)
        try:
            rows = engines[engine].ask(sql)
        except Exception as error:
            if record.kind != "error":
                wrong.append(f"{record.place}: {sql}\n  failed: {error}")
            continue
        if record.kind == "error":
            wrong.append(f"{record.place}: {sql}\n  should fail, and is {rows}")
            continue
        found = slt.lines(record, rows)
        if found != record.rows:
            wrong.append(f"{record.place}: {sql}\n  should be {record.rows}\n  and is    {found}")
    assert not wrong, "\n".join(wrong)


def test_the_files_are_enough_and_the_same_on_both():
    queries = [record for file in FILES for record in slt.read(file) if record.kind == "query"]
    shared = [record for record in queries if not record.only and not record.skip]
    assert len(shared) >= QUERIES_MIN and len(shared) >= 0.9 * len(queries)
    # A forgotten answer looks like an empty one.
    assert sum(not record.rows for record in queries) == 3
