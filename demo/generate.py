"""Fills the demo's sources with a believable CRM, or changes what is there.

    generate.py --postgres URL --mongo URL --s3 ENDPOINT [--mutate] [--scale 1.0] [--seed 7]

The same seed and scale always give the same data: no clock is read, every timestamp is counted
from a fixed day. Nothing here knows Polder; `expect.py` says what a reader must find.
"""

import argparse
import os
import time

import conversations
import crm
import exports
from world import World


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgres", required=True, help="address of the database to fill")
    parser.add_argument("--mongo", required=True, help="address of the MongoDB-protocol server")
    parser.add_argument("--mongo-database", default="conversations")
    parser.add_argument("--s3", required=True, help="endpoint of the S3 server")
    parser.add_argument("--exports", default="exports", help="bucket for the uploaded files")
    parser.add_argument("--lake", default="lake", help="bucket for the lake, created empty")
    parser.add_argument("--mutate", action="store_true", help="change the data instead")
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is about 300 k rows")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    world = World(args.seed, args.scale)
    started = time.monotonic()
    s3 = exports.connect(args.s3, os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"])
    rows = {}
    if args.mutate:
        rows |= crm.mutate(world, args.postgres)
        rows |= conversations.mutate(world, args.mongo, args.mongo_database)
        rows |= exports.mutate(world, s3, args.exports)
    else:
        rows |= crm.create(world, args.postgres)
        rows |= conversations.create(world, args.mongo, args.mongo_database)
        rows |= exports.create(world, s3, args.exports, args.lake)
    for name, count in rows.items():
        print(f"  {name:<28} {count:>9,} rows")
    verb = "changed" if args.mutate else "generated"
    print(f"  {sum(rows.values()):,} rows {verb} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
