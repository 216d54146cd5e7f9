"""The conversation store: emails and call transcripts as nested documents of all orgs."""

import datetime as dt
import itertools
from collections.abc import Iterator

from bson import Decimal128, Int64, ObjectId
from pymongo import MongoClient

from world import CHANGED, ORGS, Org, World, email_of, moment, person, sentence

BATCH = 2_000


def create(world: World, url: str, database: str) -> dict[str, int]:
    """Creates the database anew and fills it."""
    with MongoClient(url, tz_aware=True) as client:
        client.drop_database(database)
        rows = {}
        for name, make in MAKERS.items():
            documents = (
                make(world, org, n) for org in ORGS for n in range(world.rows(name, org))
            )
            rows[f"conversations.{name}"] = insert(client[database][name], documents)
            client[database][name].create_index([("org", 1), (CURSORS[name], 1)])
        return rows


def mutate(world: World, url: str, database: str) -> dict[str, int]:
    """A day later: new conversations."""
    with MongoClient(url, tz_aware=True) as client:
        rows = {}
        for name, make in MAKERS.items():
            documents = (
                fresh(make(world, org, world.rows(name, org) + n), CURSORS[name], n)
                for org in ORGS
                for n in range(world.inserted(name, org))
            )
            rows[f"conversations.{name} inserted"] = insert(client[database][name], documents)
        return rows


def fresh(document: dict, cursor: str, number: int) -> dict:
    return document | {cursor: CHANGED + dt.timedelta(minutes=number, milliseconds=number % 1000)}


def insert(collection, documents: Iterator[dict]) -> int:
    count = 0
    while batch := list(itertools.islice(documents, BATCH)):
        collection.insert_many(batch, ordered=False)
        count += len(batch)
    return count


def object_id(kind: int, org: Org, number: int) -> ObjectId:
    """Like a server's own: unique, and the same for the same seed."""
    return ObjectId(f"66{kind:02x}{org.id:08x}{number:012x}")


def email(world: World, org: Org, number: int) -> dict:
    rng = world.random("emails", org.id, number)
    sender, receiver = person(rng), person(rng)
    sent = moment(rng)
    sent = sent.replace(microsecond=sent.microsecond // 1000 * 1000)
    document = {
        "_id": object_id(1, org, number),
        "org": str(org.id),
        "account_id": Int64(world.first_id("account", org) + number % world.rows("account", org)),
        "subject": sentence(rng, 4),
        "body": sentence(rng, rng.randrange(8, 30)),
        "participants": [
            {"address": email_of(sender, org.domain), "name": sender, "role": "from"},
            {"address": email_of(receiver, "customer.example"), "name": receiver, "role": "to"},
        ],
        "headers": {
            "message_id": f"<{number}.{org.id}@{org.domain}>",
            "x_mailer": rng.choice(["webmail", "outbox 3.1"]),
        },
        "size_bytes": rng.randrange(400, 90_000),
        "spam_score": Decimal128(f"{rng.randrange(-500, 1500) / 100:.2f}"),
        "is_read": rng.random() < 0.7,
        "sent_at": sent,
    }
    # What not every mail has: a schema seen in the first documents alone would lose it.
    if number % 5 == 0:
        name = rng.choice(["offer.pdf", "Vertrag – final.docx"])
        document["attachments"] = [{"name": name, "bytes": rng.randrange(1_000, 5_000_000)}]
    if number % 7 == 0:
        document["headers"]["in_reply_to"] = f"<{max(number - 1, 0)}.{org.id}@{org.domain}>"
    if number % 11 == 0:
        document["thread"] = {"id": object_id(3, org, number // 11), "position": number % 4}
    return document


def transcript(world: World, org: Org, number: int) -> dict:
    rng = world.random("transcripts", org.id, number)
    started = moment(rng)
    started = started.replace(microsecond=started.microsecond // 1000 * 1000)
    speakers = [person(rng), person(rng)]
    segments, clock = [], 0.0
    for position in range(rng.randrange(3, 12)):
        length = rng.randrange(4, 240) / 4
        segments.append({
            "speaker": speakers[position % 2],
            "start": clock,
            "end": clock + length,
            "text": sentence(rng, rng.randrange(4, 14)),
        })
        clock += length
    # Three programs wrote this field over the years, each in its own way.
    rating = [rng.randrange(1, 6), f"{rng.randrange(1, 6)} stars", {"stars": rng.randrange(1, 6)}]
    return {
        "_id": object_id(2, org, number),
        "org": str(org.id),
        "opportunity_id": Int64(
            world.first_id("opportunity", org) + rng.randrange(world.rows("opportunity", org))
        ),
        "title": sentence(rng, 3),
        "participants": [{"name": name, "internal": i == 0} for i, name in enumerate(speakers)],
        "segments": segments,
        "duration_seconds": clock,
        "rating": rating[number % 3],
        "language": rng.choice(["en", "de", "pt"]),
        "cost": Decimal128(f"{rng.randrange(10_000_000) / 10**6:.6f}"),
        "started_at": started,
    }


MAKERS = {"emails": email, "transcripts": transcript}
CURSORS = {"emails": "sent_at", "transcripts": "started_at"}
