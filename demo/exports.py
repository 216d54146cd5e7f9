"""The bucket of uploads: forecasts as CSV (plain and gzip), product usage as Parquet, per org."""

import csv
import datetime as dt
import gzip
import io

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config

from world import CURRENCIES, FIRST, MONTHS, ORGS, Org, World, money, person, sentence

FEATURES = ["reports", "search", "export", "api", "präsentation"]
FORECAST = ["period", "line", "opportunity_id", "owner", "category", "amount", "currency", "comment"]
USAGE = pa.schema([
    ("account_id", pa.int64()),
    ("day", pa.date32()),
    ("feature", pa.string()),
    ("units", pa.int64()),
    ("seconds", pa.float64()),
    ("credits", pa.decimal128(12, 4)),
    ("client", pa.struct([("os", pa.string()), ("version", pa.int32())])),
    ("flags", pa.list_(pa.string())),
    ("measured_at", pa.timestamp("us", tz="UTC")),
])
NEW_MONTH = "2025-07"


def connect(endpoint: str, access_key: str, secret_key: str):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
    )


def create(world: World, s3, exports: str, lake: str) -> dict[str, int]:
    """Creates both buckets anew and uploads every month's files."""
    for bucket in (exports, lake):
        empty(s3, bucket)
    return upload(world, s3, exports, MONTHS, "")


def mutate(world: World, s3, exports: str) -> dict[str, int]:
    """A day later: the next month's files."""
    return upload(world, s3, exports, [NEW_MONTH], " inserted")


def empty(s3, bucket: str) -> None:
    if bucket not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=bucket)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=found["Key"])


def upload(world: World, s3, bucket: str, months: list[str], suffix: str) -> dict[str, int]:
    rows = {f"exports/forecast{suffix}": 0, f"exports/usage{suffix}": 0}
    for org in ORGS:
        for month in months:
            lines = forecast(world, org, month)
            name, body = forecast_file(org, month, lines)
            s3.put_object(Bucket=bucket, Key=name, Body=body)
            rows[f"exports/forecast{suffix}"] += len(lines)
            table = usage(world, org, month)
            name, body = f"{org.id}/usage/{month}.parquet", io.BytesIO()
            pq.write_table(table, body, compression="zstd")
            s3.put_object(Bucket=bucket, Key=name, Body=body.getvalue())
            rows[f"exports/usage{suffix}"] += table.num_rows
    return rows


def forecast(world: World, org: Org, month: str) -> list[dict]:
    """What the org's salespeople think they will close that month."""
    rng = world.random("forecast", org.id, month)
    first = world.first_id("opportunity", org)
    return [
        {
            "period": f"{month}-01",
            "line": line,
            "opportunity_id": first + rng.randrange(world.rows("opportunity", org)),
            "owner": person(rng),
            "category": rng.choice(["commit", "best case", "pipeline"]),
            "amount": money(rng, 500, 400_000),
            "currency": rng.choice(CURRENCIES),
            # Quotes, separators, line breaks and nothing at all, as people type them.
            "comment": rng.choice(["", 'said "maybe"', "legal, then price", "two\nlines", sentence(rng, 3)]),
        }
        for line in range(1, max(2, world.rows("forecast", org) // len(MONTHS)) + 1)
    ]


def forecast_file(org: Org, month: str, lines: list[dict]) -> tuple[str, bytes]:
    """Every second month arrives compressed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FORECAST, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    body = text.getvalue().encode()
    name = f"{org.id}/forecast/{month}.csv"
    if int(month[-1]) % 2:
        return name, body
    return name + ".gz", gzip.compress(body, mtime=0)


def usage(world: World, org: Org, month: str) -> pa.Table:
    rng = world.random("usage", org.id, month)
    count = max(2, world.rows("usage", org) // len(MONTHS))
    first = dt.datetime.fromisoformat(f"{month}-01").replace(tzinfo=FIRST.tzinfo)
    accounts = world.first_id("account", org)
    rows = []
    for _ in range(count):
        at = first + dt.timedelta(seconds=rng.randrange(28 * 86_400), microseconds=rng.randrange(10**6))
        rows.append({
            "account_id": accounts + rng.randrange(world.rows("account", org)),
            "day": at.date(),
            "feature": rng.choice(FEATURES),
            "units": rng.randrange(1, 5_000),
            "seconds": rng.randrange(1, 100_000) / 16,
            "credits": money(rng, 1, 900),
            "client": {"os": rng.choice(["linux", "mac", "web"]), "version": rng.randrange(1, 40)},
            "flags": rng.sample(["beta", "trial", "bulk"], rng.randrange(3)),
            "measured_at": at,
        })
    return pa.Table.from_pylist(rows, schema=USAGE)
