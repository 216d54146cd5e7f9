"""A merged table of Polder's in every engine at once, through `polder serve`, on local disk and on S3:
after rows were deleted by position, after columns evolved, a repartitioning and a rollback."""

from collections.abc import Iterator

import pytest
from lakes import PLACES

from test_merge import CHANGES, DEALS, ORG, TABLE, Merged, check_polder, check_readers, merged_in
from test_rest_catalog import serving
from test_spark import catalog as spark_catalog
from test_spark import values
from test_trino import catalog as trino_catalog

UPDATED, DELETED, _, INSERTED, EVOLVED, _ = CHANGES


@pytest.fixture(params=PLACES)
def merged(request, services, suffix, tmp_path) -> Iterator[Merged]:
    with merged_in(request.param, services, suffix, tmp_path) as merged:
        yield merged


def test_a_merged_table_is_the_same_in_every_engine(trino, spark, merged: Merged):
    lake = merged.lake
    merged.sql(DEALS)
    assert merged.run(TABLE)["version"] == "v1"
    with serving(lake.services.polder, lake.work, lake.env) as uri:
        served = lake.through(uri)
        of_spark = spark_catalog(spark, uri, served.for_spark())
        with trino_catalog(trino, uri, served.for_trino()) as of_trino:

            def check(columns: list[str], rows: list[tuple]) -> None:
                """The engines see these rows; of their times, those that are null."""
                check_readers(served, columns, rows)
                check_polder(lake, columns, rows)
                names = [name for name in columns if name != "updated_at"]
                expected = [[row[columns.index(name)] for name in names] for row in rows]
                query = f"SELECT {', '.join(names)} FROM {{}}.org_{ORG}.{TABLE} ORDER BY region, id"
                assert trino.sql(query.format(of_trino)) == expected, "Trino"
                assert values(spark, query.format(of_spark)) == expected, "Spark"

            first = merged.deals()
            check(*first)
            for change in [UPDATED, DELETED, INSERTED]:
                merged.sql(change)
                assert merged.run(TABLE)["outcome"] == "merge"
            assert served.load(ORG, TABLE).inspect.delete_files().num_rows > 0
            check(*merged.deals())
            merged.sql(EVOLVED)
            assert merged.run(TABLE)["outcome"] == "merge"
            check(*merged.deals())
            pipeline = lake.work / "pipelines/merge.yaml"
            pipeline.write_text(pipeline.read_text().replace("bucket(3, id)", "bucket(2, id)"))
            lake.polder("maintain", "repartition", "--json", "--table", TABLE)
            check(*merged.deals())
            back = ["rollback", "--org", ORG, "--table", TABLE, "--json", "--to"]
            kept_as = lake.polder(*back, "v1")["rollback"]["kept_as"]
            check(*first)
            lake.polder(*back, kept_as)
            check(*merged.deals())
