"""MongoDB to Iceberg on local disk, next to a raw drain and pymongoarrow.

Started by `cargo xtask bench documents`. Half a million nested conversations, from the protocol server of
the tests, which is itself the slowest part: the CPU and the memory of the one who reads are what counts.
All ways in each round, one after the other:

  drain         pymongo's raw batches, counted and dropped
  polder        `polder run --full-refresh` into an empty lake
  pymongoarrow  `find_arrow_all`, its schema from the first documents, into one Parquet file

The lake's documents are counted, and a number of theirs is summed up, nested as it is.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ingest
import pymongo
from ingest import Failed, folder_mb, measured_with_words, say

DATABASE, COLLECTION = "bench", "conversation"
CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.bench]
type = "mongodb"
url = "env:BENCH_URL"
database = "bench"
[limits]
runs = 1
splits = 2
"""
PIPELINE = """
orgs:
  - id: bench
    tables:
      - { name: conversation, source: bench, from: conversation, mode: full_refresh }
"""
DRAIN = """
import sys, pymongo
collection = pymongo.MongoClient(sys.argv[1])["bench"]["conversation"]
print(sum(len(batch) for batch in collection.find_raw_batches({})))
"""
PYMONGOARROW = """
import sys, pymongo
import pyarrow.parquet as parquet
from pymongoarrow.api import find_arrow_all
collection = pymongo.MongoClient(sys.argv[1])["bench"]["conversation"]
rows = find_arrow_all(collection, {})
parquet.write_table(rows, sys.argv[2], compression="zstd")
print(rows.num_rows)
"""
WORDS = "offer call price renewal seats pilot legal budget quarter demo contract next week".split()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mongo", required=True)
    parser.add_argument("--polder", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    load(args)
    ways = {"drain": drain, "polder": polder, "pymongoarrow": pymongoarrow}
    samples = {way: [] for way in ways}
    for run in range(args.runs):
        for way, measure in ways.items():
            say(f"run {run + 1} of {args.runs}: {way}")
            samples[way].append(measure(args))
            ingest.said_failed(samples[way][-1])
    report = ingest.summarise(args.documents, samples)
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def conversation(number: int) -> dict:
    rng = random.Random(number)
    text = " ".join(rng.choices(WORDS, k=rng.randrange(10, 60)))
    document = {
        "_id": number,
        "subject": " ".join(rng.choices(WORDS, k=4)),
        "sent_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        "participants": [
            {"name": rng.choice(WORDS), "role": role, "seconds": rng.randrange(3000)} for role in ("from", "to")
        ],
        "body": {"text": text, "language": rng.choice(["de", "en"]), "size": len(text)},
        "scores": [rng.random() for _ in range(3)],
        "is_read": rng.random() < 0.7,
    }
    if number % 5 == 0:
        document["attachment"] = {"name": f"offer {number}.pdf", "bytes": rng.randrange(1 << 20)}
    return document


def load(args: argparse.Namespace) -> None:
    """Fills the collection unless the last call left it filled."""
    collection = pymongo.MongoClient(args.mongo)[DATABASE][COLLECTION]
    if collection.count_documents({}) == args.documents:
        return
    say(f"loading {args.documents} documents")
    collection.drop()
    for first in range(0, args.documents, 1000):
        last = min(first + 1000, args.documents)
        collection.insert_many(map(conversation, range(first, last)), ordered=False)


def drain(args: argparse.Namespace) -> dict:
    sample, _ = measured_with_words([sys.executable, "-c", DRAIN, args.mongo])
    return sample


def polder(args: argparse.Namespace) -> dict:
    work = args.work / "polder"
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    (work / "polder.toml").write_text(CONFIG)
    (work / "pipelines/bench.yaml").write_text(PIPELINE)
    env = os.environ | {"BENCH_URL": args.mongo}
    sample, _ = measured_with_words([args.polder, "run", "--full-refresh", "--json"], cwd=work, env=env)
    query = "SELECT count(*) AS n, sum(body['size']) AS size FROM lake.org_bench.conversation"
    command = [args.polder, "query", "--format", "json", query]
    _, said = measured_with_words(command, cwd=work, env=env)
    found = json.loads(said[said.index("["):])[0]
    size = sum(conversation(number)["body"]["size"] for number in range(0, args.documents, 1000))
    every = f"{query} WHERE _id % 1000 = 0"
    _, said = measured_with_words([*command[:-1], every], cwd=work, env=env)
    sampled = json.loads(said[said.index("["):])[0]
    if found["n"] != args.documents or int(sampled["size"]) != size:
        raise SystemExit(f"polder stored {found} and, of each thousandth, {sampled}, not {size}")
    sample["stored_mb"] = folder_mb(work / "lake")
    return sample


def pymongoarrow(args: argparse.Namespace) -> dict:
    path = args.work / "conversation.parquet"
    try:
        sample, said = measured_with_words([args.peers, "-c", PYMONGOARROW, args.mongo, str(path)])
    except Failed as failed:
        return {"failed": str(failed)}
    if int(said.splitlines()[-1]) != args.documents:
        return {"failed": f"{said.splitlines()[-1]} rows"}
    sample["stored_mb"] = path.stat().st_size / 1e6
    path.unlink()
    return sample


def as_text(report: dict) -> str:
    lines = [f"{report['rows']} documents", "", f"{'way':<15}{'wall s':>8}{'÷ drain':>9}{'CPU s':>8}{'RSS MB':>8}"]
    for way, found in report["ways"].items():
        if "failed" in found:
            lines.append(f"{way:<15}failed: {found['failed'][:90]}")
            continue
        cells = [f"{found['wall_s']:8.2f}", f"{found['wall_to_drain']:9.2f}",
                 f"{found['cpu_s']:8.2f}", f"{found['rss_mb']:8.0f}"]
        lines.append(f"{way:<15}" + "".join(cells))
    cpu = {way: found.get("cpu_s") for way, found in report["ways"].items()}
    if cpu["pymongoarrow"]:
        lines.append(f"CPU: {cpu['polder'] / cpu['pymongoarrow']:.2f} × pymongoarrow's")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
