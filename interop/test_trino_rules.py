"""`polder trino catalogs --etc`: with the rules it writes, a real Trino shows an org's user the org's schema alone,
holds the org to its limits, and lets operators do everything."""

import json
import os
import urllib.request

import pytest
from lakes import FROM_FILES, Lake
from test_rest_catalog import serving
from test_trino import catalog
from trino.exceptions import TrinoQueryError
from trino_server import RULED, Trino

ROWS = {"401": 30, "402": 7}
OTHER = "rules_source"


@pytest.fixture(scope="module")
def ruled(services, trino: Trino, tmp_path_factory):
    """Trino with the lake of both orgs as `lake`, and a catalog of something else; no test changes any of it."""
    work = tmp_path_factory.mktemp("ruled")
    (work / "polder.toml").write_text(FROM_FILES)
    (work / "pipelines").mkdir()
    (work / "pipelines/orgs.yaml").write_text(RULED)
    for org, rows in ROWS.items():
        folder = work / "exports" / org
        folder.mkdir(parents=True)
        (folder / "1.csv").write_text("id,amount\n" + "".join(f"{i},{i}.25\n" for i in range(rows)))
    lake = Lake(services, work, {})
    lake.polder("run", "--json")
    with serving(services.polder, work, dict(os.environ)) as uri:
        trino.sql(f"CREATE CATALOG {OTHER} USING tpch")
        try:
            with catalog(trino, uri, lake.through(uri).for_trino(), "lake"):
                yield trino
        finally:
            trino.sql(f"DROP CATALOG {OTHER}")


def names(trino: Trino, sql: str, user: str) -> set[str]:
    return {name for [name] in trino.sql(sql, user)}


def refusal(trino: Trino, sql: str, user: str) -> str:
    with pytest.raises(TrinoQueryError) as refused:
        print(sql, user, trino.sql(sql, user))
    return refused.value.error_name


def test_an_orgs_user_sees_and_selects_its_own_schema_alone(ruled: Trino):
    for org, rows in ROWS.items():
        user = f"org_{org}"
        sql = f"SELECT count(*), sum(amount) FROM lake.org_{org}.deal"
        assert ruled.sql(sql, user) == ruled.sql(sql) and ruled.sql(sql, user)[0][0] == rows
        assert names(ruled, "SHOW CATALOGS", user) == {"lake"}
        assert names(ruled, "SHOW SCHEMAS FROM lake", user) - {"information_schema"} == {user}
        for table in ["tables", "columns"]:
            sql = f"SELECT DISTINCT table_schema FROM lake.information_schema.{table}"
            assert names(ruled, sql, user) - {"information_schema"} == {user}
    for sql in [
        "SELECT * FROM lake.org_402.deal", 'SELECT * FROM lake.org_402."deal$snapshots"',
        "SHOW TABLES FROM lake.org_402", "DESCRIBE lake.org_402.deal", "SHOW STATS FOR lake.org_402.deal",
        "SELECT o.id FROM lake.org_401.deal o JOIN lake.org_402.deal t ON o.id = t.id",
        "EXPLAIN SELECT * FROM lake.org_402.deal",
        f"SELECT * FROM {OTHER}.tiny.nation", "SELECT * FROM system.runtime.queries",
        "SELECT * FROM system.metadata.catalogs",
    ]:
        assert refusal(ruled, sql, "org_401") == "PERMISSION_DENIED", sql


def test_an_orgs_user_changes_nothing(ruled: Trino):
    before = ruled.sql('SELECT snapshot_id FROM lake.org_402."deal$snapshots"')
    for sql in [
        "INSERT INTO lake.org_401.deal SELECT * FROM lake.org_401.deal", "DELETE FROM lake.org_401.deal",
        "DROP TABLE lake.org_401.deal", "CREATE TABLE lake.org_401.other AS SELECT 1 AS n",
        # Trino's access rules alone would let it.
        "ALTER TABLE lake.org_401.deal EXECUTE optimize", "ALTER TABLE lake.org_402.deal EXECUTE optimize",
        "EXPLAIN ANALYZE DELETE FROM lake.org_401.deal", "SET SESSION query_max_run_time = '1h'",
    ]:
        assert refusal(ruled, sql, "org_401") in ("QUERY_REJECTED", "PERMISSION_DENIED"), sql
    assert refusal(ruled, "ALTER TABLE lake.org_402.deal EXECUTE optimize", "org_401") == "QUERY_REJECTED"
    assert ruled.sql('SELECT snapshot_id FROM lake.org_402."deal$snapshots"') == before
    assert ruled.sql("SELECT count(*) FROM lake.org_401.deal") == [[ROWS["401"]]]


@pytest.mark.parametrize("user", ["mallory", "org_40", "org_4011", "ORG_401", "tester"])
def test_nobody_else_may_anything(ruled: Trino, user):
    for sql in ["SELECT 1", "SHOW CATALOGS", "SELECT * FROM lake.org_401.deal"]:
        assert refusal(ruled, sql, user) in ("QUERY_REJECTED", "PERMISSION_DENIED"), sql


def test_an_operator_sees_all_and_an_orgs_statements_run_in_its_group(ruled: Trino):
    assert {"org_401", "org_402"} <= names(ruled, "SHOW SCHEMAS FROM lake", "notebook")
    both = "SELECT count(*) FROM (SELECT id FROM lake.org_401.deal UNION ALL SELECT id FROM lake.org_402.deal)"
    assert ruled.sql(both) == [[sum(ROWS.values())]]
    assert ruled.sql(f"SELECT count(*) FROM {OTHER}.tiny.region") == [[5]]
    mark = "SELECT 401 AS mark_of_a_group"
    ruled.sql(mark, "org_401")
    sql = f"SELECT resource_group_id FROM system.runtime.queries WHERE query = '{mark}'"
    assert [[list(group)] for [group] in ruled.sql(sql)] == [[["orgs", "org_401"]]]
    request = urllib.request.Request(
        f"http://127.0.0.1:{ruled.port}/v1/resourceGroupState/orgs/org_401", headers={"X-Trino-User": "test"}
    )
    with urllib.request.urlopen(request) as answer:
        state = json.load(answer)
    assert (state["hardConcurrencyLimit"], state["schedulingWeight"]) == (2, 3)


def test_rules_without_an_operator_are_not_written(services, tmp_path):
    (tmp_path / "polder.toml").write_text(FROM_FILES)
    lake = Lake(services, tmp_path, {})
    done = lake.run("trino", "catalogs", "--out", str(tmp_path / "catalog"), "--etc", str(tmp_path / "etc"))
    assert done.returncode == 2 and "--operator" in done.stderr
    assert not (tmp_path / "etc").exists()
