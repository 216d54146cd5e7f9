"""`polder export sagemaker`: the channels hold the pin's rows and nothing else, in the formats that SageMaker's
training input takes. Formats are those of its API reference (*S3DataSource*), and `channels.json` is held to
AWS's own model of `CreateTrainingJob`."""

import json
import os
import re
from pathlib import Path

import boto3
import botocore.loaders
import botocore.model
import botocore.validate
import psycopg
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from lakes import Lake

from test_rest_catalog_s3 import STORAGE, bucket  # noqa: F401

CONFIG = """
[lake]
warehouse = "{warehouse}"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.pg]
type = "postgres"
url = "env:EXPORT_PG_URL"
"""
PIPELINE = """
orgs:
  - id: "401"
    tables:
      - name: deal
        source: pg
        from: public.deal
        mode: merge
        key: [id]
        cursor: updated_at
        deleted_at: deleted_at
      - { name: stage, source: pg, from: public.stage }
"""
SOURCE = """
CREATE TABLE deal (id int PRIMARY KEY, amount numeric(12, 2), won boolean, deleted_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO deal SELECT i, i / 4.0, i % 3 = 0, NULL, timestamptz '2026-01-01 00:00Z' + i * interval '1 second'
  FROM generate_series(1, 2000) AS i;
CREATE TABLE stage (name text PRIMARY KEY);
INSERT INTO stage VALUES ('open'), ('won')
"""
CHANGE = """
UPDATE deal SET amount = 0, updated_at = clock_timestamp() WHERE id % 100 = 1;
UPDATE deal SET deleted_at = now(), updated_at = clock_timestamp() WHERE id % 100 = 2
"""
PREFIX = "s3://{bucket}/training/model-1/"


@pytest.fixture
def lake(services, bucket, tmp_path) -> Lake:  # noqa: F811
    name = f"export_{bucket.replace('-', '_')}"
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = services.database(name)
    sql(url, SOURCE)
    lake = Lake(services, tmp_path, {"EXPORT_PG_URL": url})
    config = CONFIG.format(warehouse=f"s3://{bucket}/lake") + STORAGE.format(endpoint=services.s3)
    (tmp_path / "polder.toml").write_text(config)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/crm.yaml").write_text(PIPELINE)
    lake.polder("run", "--json")
    return lake


def sql(url: str, text: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(text)


def export(lake: Lake, bucket: str, to: str, *more: str) -> tuple[dict, Path]:  # noqa: F811
    prefix = PREFIX.format(bucket=bucket)
    done = lake.polder(
        "export", "sagemaker", "--org", "401", "--pin", "model-1", "--to", to, "--prefix", prefix, "--json", *more
    )
    return done, lake.work / to


def channels(folder: Path) -> dict[str, dict]:
    """What a training job is told, by channel; held to the API."""
    inputs = json.loads((folder / "channels.json").read_text())
    model = botocore.loaders.Loader().load_service_model("sagemaker", "service-2")
    service = botocore.model.ServiceModel(model, "sagemaker")
    shape = service.operation_model("CreateTrainingJob").input_shape.members["InputDataConfig"]
    report = botocore.validate.ParamValidator().validate(inputs, shape)
    assert not report.has_errors(), report.generate_report()
    channel = shape.member
    for name, allowed in (("RecordWrapperType", None), ("CompressionType", None), ("InputMode", None)):
        allowed = channel.members[name].enum
        assert all(one.get(name, allowed[0]) in allowed for one in inputs)
    pattern = channel.members["ChannelName"].metadata["pattern"]
    assert all(re.fullmatch(pattern, one["ChannelName"]) for one in inputs)
    kinds = channel.members["DataSource"].members["S3DataSource"].members["S3DataType"].enum
    assert all(one["DataSource"]["S3DataSource"]["S3DataType"] in kinds for one in inputs)
    return {one["ChannelName"]: one for one in inputs}


class Job:
    """Reads channels as a training job would: objects of S3, after the folder was copied to its prefix."""

    def __init__(self, services, bucket: str, folder: Path):  # noqa: F811
        keys = {"aws_access_key_id": services.access_key, "aws_secret_access_key": services.secret_key}
        self.s3 = boto3.client("s3", endpoint_url=services.s3, region_name="us-east-1", **keys)
        base = PREFIX.format(bucket=bucket).removeprefix(f"s3://{bucket}/")
        for path in folder.rglob("*"):
            if path.is_file():
                self.s3.upload_file(str(path), bucket, base + str(path.relative_to(folder)))

    def get(self, address: str) -> bytes:
        bucket, _, key = address.removeprefix("s3://").partition("/")  # noqa: F811
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def objects(self, channel: dict) -> list[str]:
        source = channel["DataSource"]["S3DataSource"]
        if source["S3DataType"] == "S3Prefix":
            bucket, _, key = source["S3Uri"].removeprefix("s3://").partition("/")  # noqa: F811
            found = self.s3.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
            return [f"s3://{bucket}/{one['Key']}" for one in found]
        assert source["S3DataType"] == "ManifestFile"
        first, *rest = json.loads(self.get(source["S3Uri"]))
        assert list(first) == ["prefix"] and all(isinstance(one, str) for one in rest)
        return [first["prefix"] + one for one in rest]

    def rows(self, channel: dict) -> pa.Table:
        parts = [parquet.read_table(pa.BufferReader(self.get(one))) for one in self.objects(channel)]
        return pa.concat_tables([part.replace_schema_metadata(None) for part in parts])


def test_files_are_listed_in_place_until_rows_of_them_are_deleted(services, bucket, lake):  # noqa: F811
    lake.polder("pin", "create", "model-0", "--org", "401", "--json")
    lake.polder("pin", "create", "model-1", "--org", "401", "--json")
    done, folder = export(lake, bucket, "first")
    told = {table["channel"]: table for table in done["tables"]}
    assert told["deal"]["in_place"] >= 1 and told["deal"]["written"] == 0 and told["deal"]["rows"] == 2000
    assert not list(folder.rglob("*.parquet"))
    job, found = Job(services, bucket, folder), channels(folder)
    assert sorted(job.rows(found["deal"])["id"].to_pylist()) == list(range(1, 2001))
    assert sorted(job.rows(found["stage"])["name"].to_pylist()) == ["open", "won"]

    sql(lake.env["EXPORT_PG_URL"], CHANGE)
    lake.polder("run", "--json")
    lake.polder("pin", "release", "model-1", "--org", "401", "--json")
    lake.polder("pin", "create", "model-1", "--org", "401", "--json")
    for form, kind in (("manifest", "ManifestFile"), ("prefix", "S3Prefix")):
        done, folder = export(lake, bucket, form, "--form", form)
        told = {table["channel"]: table for table in done["tables"]}
        assert (told["deal"]["written"], told["deal"]["rows"]) == (1, 1980)
        job, found = Job(services, bucket, folder), channels(folder)
        assert found["deal"]["DataSource"]["S3DataSource"]["S3DataType"] == kind
        rows = job.rows(found["deal"]).sort_by("id")
        expected = lake.read_with_pyiceberg("401", "deal").sort_by("id")
        assert rows["id"].to_pylist() == [i for i in range(1, 2001) if i % 100 != 2]
        for column in ("id", "amount", "won"):
            assert rows[column].to_pylist() == expected[column].to_pylist(), (form, column)
    # The same pin gives the same files.
    again, second = export(lake, bucket, "again", "--form", "prefix")
    for path in second.rglob("*.parquet"):
        assert path.read_bytes() == (folder / path.relative_to(second)).read_bytes()


def test_an_augmented_manifest_has_a_line_for_each_row(services, bucket, lake):  # noqa: F811
    lake.polder("pin", "create", "model-1", "--org", "401", "--json")
    arguments = ["--form", "augmented", "--columns", "amount,won", "--table", "deal"]
    done, folder = export(lake, bucket, "lines", *arguments)
    assert [table["rows"] for table in done["tables"]] == [2000]
    [channel] = channels(folder).values()
    source = channel["DataSource"]["S3DataSource"]
    assert (source["S3DataType"], source["AttributeNames"]) == ("AugmentedManifestFile", ["amount", "won"])
    assert (channel["RecordWrapperType"], channel["InputMode"]) == ("RecordIO", "Pipe")
    lines = Job(services, bucket, folder).get(source["S3Uri"]).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2000 and all(list(row) == source["AttributeNames"] for row in rows)
    assert sum(row["won"] for row in rows) == 666


def test_what_cannot_be_is_refused_with_a_reason(services, bucket, lake):  # noqa: F811
    lake.polder("pin", "create", "model-1", "--org", "401", "--json")
    base = ["export", "sagemaker", "--org", "401", "--pin", "model-1", "--prefix", f"s3://{bucket}/x/"]
    (lake.work / "full").mkdir()
    (lake.work / "full/there").write_text("")
    cases = [
        (["--to", "full"], "not empty"),
        (["--to", "a", "--form", "augmented"], "1 to 16 attributes"),
        (["--to", "b", "--prefix", "elsewhere"], "no prefix on S3"),
        (["--to", "c", "--table", "deal,nothing"], "nothing"),
        (["--to", "d", "--columns", "amuont"], "amuont"),
        (["--to", "e", "--pin", "model-9"], "model-9"),
        (["--to", "f", "--org", "402"], "402"),
    ]
    for arguments, said in cases:
        named = set(arguments[::2])
        kept = [part for at in range(2, len(base), 2) if base[at] not in named for part in base[at : at + 2]]
        done = lake.run(*base[:2], *kept, *arguments)
        assert done.returncode != 0 and said in done.stderr, (arguments, done.stderr)
    assert os.listdir(lake.work / "full") == ["there"]
