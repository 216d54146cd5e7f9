"""What a reader must find in the lake, computed from the sources themselves.

    expect.py --postgres URL --mongo URL --s3 ENDPOINT        prints one JSON document

For every org and lake table: the rows, the distinct keys and one exact sum (as text).
"""

import argparse
import csv
import gzip
import io
import json
import os
from decimal import Decimal

import psycopg
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bson import Decimal128
from psycopg import sql
from pymongo import MongoClient

import exports
from world import ORGS

# Lake table: (source table, key, summed column).
POSTGRES = {
    "account": ("account", "id", "annual_revenue"),
    "crm_user": ("crm_user", "id", "quota"),
    "opportunity": ("opportunity", "id", "amount"),
    "activity": ("activity", "id", "duration_minutes"),
}
MONGO = {
    "email": ("emails", "_id", "size_bytes"),
    "transcript": ("transcripts", "_id", "cost"),
}
FILES = {
    "forecast_upload": ("forecast", None, "amount"),
    "usage": ("usage", None, "credits"),
}

Expected = dict[str, dict[str, dict]]


def from_postgres(url: str) -> Expected:
    found: Expected = {str(org.id): {} for org in ORGS}
    with psycopg.connect(url) as connection:
        for table, (source, key, summed) in POSTGRES.items():
            query = sql.SQL(
                "SELECT org_id::text, count(*), count(DISTINCT {key}), sum({summed})::text"
                " FROM {source} GROUP BY 1"
            ).format(
                key=sql.Identifier(key), summed=sql.Identifier(summed), source=sql.Identifier(source)
            )
            for org, count, keys, total in connection.execute(query):
                found[org][table] = expected(count, keys, Decimal(total))
    return found


def from_mongo(url: str, database: str) -> Expected:
    found: Expected = {str(org.id): {} for org in ORGS}
    with MongoClient(url) as client:
        for table, (source, key, summed) in MONGO.items():
            for org in found:
                count, keys, total = 0, set(), Decimal(0)
                for document in client[database][source].find({"org": org}, {key: 1, summed: 1}):
                    count += 1
                    keys.add(document[key])
                    value = document[summed]
                    total += value.to_decimal() if isinstance(value, Decimal128) else value
                found[org][table] = expected(count, len(keys), total)
    return found


def from_files(s3, bucket: str) -> Expected:
    found: Expected = {}
    for org in (str(org.id) for org in ORGS):
        totals = {table: [0, Decimal(0)] for table in FILES}
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{org}/"):
            for entry in page.get("Contents", []):
                body = s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
                table = "usage" if "/usage/" in entry["Key"] else "forecast_upload"
                count, total = (parquet_file if table == "usage" else csv_file)(body)
                totals[table][0] += count
                totals[table][1] += total
        found[org] = {table: expected(count, None, total) for table, (count, total) in totals.items()}
    return found


def csv_file(body: bytes) -> tuple[int, Decimal]:
    plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    lines = list(csv.DictReader(io.StringIO(plain.decode(), newline="")))
    return len(lines), sum((Decimal(line["amount"]) for line in lines), Decimal(0))


def parquet_file(body: bytes) -> tuple[int, Decimal]:
    column = pq.read_table(io.BytesIO(body), columns=["credits"])["credits"]
    return len(column), pc.sum(column).as_py()


def expected(count: int, keys: int | None, total: Decimal) -> dict:
    return {"count": count, "keys": keys, "sum": f"{total:f}"}


def everything(postgres: str, mongo: str, mongo_database: str, s3, bucket: str) -> Expected:
    parts = [from_postgres(postgres), from_mongo(mongo, mongo_database), from_files(s3, bucket)]
    return {org: parts[0][org] | parts[1][org] | parts[2][org] for org in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--mongo", required=True)
    parser.add_argument("--mongo-database", default="conversations")
    parser.add_argument("--s3", required=True)
    parser.add_argument("--exports", default="exports")
    args = parser.parse_args()
    s3 = exports.connect(args.s3, os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"])
    found = everything(args.postgres, args.mongo, args.mongo_database, s3, args.exports)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
