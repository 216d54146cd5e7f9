"""The CRM database: accounts, users, opportunities and activities of all orgs in shared tables."""

import datetime as dt
import json
import random
import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from world import (
    COMPANY, COUNTRIES, CURRENCIES, KIND, LAST, ORGS, Org, World, changed_moment, email_of, later,
    maybe, moment, money, person, sentence,
)

STAGES = ["prospecting", "qualification", "proposal", "negotiation", "closed won", "closed lost"]
PROBABILITY = dict(zip(STAGES, map(Decimal, ["10.00", "25.00", "50.00", "75.50", "100", "0"])))
INDUSTRIES = ["Software", "Retail", "Transport", "Education", "Health", "Énergie"]
REGIONS = ["AMER", "EMEA", "APAC", None]

Row = dict[str, object]


def create(world: World, url: str) -> dict[str, int]:
    """Creates the database anew and fills it."""
    recreate_database(url)
    schema = Path(__file__).with_name("crm.sql").read_text()
    rows = {}
    with psycopg.connect(url) as connection:
        connection.execute(schema)
        for table, make in MAKERS.items():
            made = (
                make(world, org, number)
                for org in ORGS
                for number in range(world.rows(table, org))
            )
            rows[f"revdb.{table}"] = copy(connection, table, made)
        for table in ("opportunity", "activity"):
            name = sql.Identifier(table)
            connection.execute(sql.SQL("CREATE INDEX ON {} (org_id, updated_at)").format(name))
        connection.commit()
        connection.autocommit = True
        connection.execute("ANALYZE")
    return rows


def mutate(world: World, url: str) -> dict[str, int]:
    """A day later: new rows, changed rows, and a column that was not there."""
    rows = {}
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE opportunity ADD COLUMN next_step_due date")
        # Old rows get a value too, and their updated_at does not tell.
        connection.execute(
            "UPDATE opportunity SET next_step_due = close_date - 14 WHERE NOT is_closed"
        )
        for table in ("opportunity", "activity"):
            made = (
                fresh(MAKERS[table](world, org, world.rows(table, org) + number), world, table)
                for org in ORGS
                for number in range(world.inserted(table, org))
            )
            rows[f"revdb.{table} inserted"] = copy(connection, table, made)
        for table in ("account", "opportunity"):
            updates = [update for org in ORGS for update in changes(world, table, org)]
            with connection.cursor() as cursor:
                cursor.executemany(CHANGE[table], updates)
            rows[f"revdb.{table} updated"] = len(updates)
    return rows


CHANGE = {
    "account": (
        "UPDATE account SET employees = coalesce(employees, 0) + %(step)s,"
        " annual_revenue = annual_revenue + %(step)s, updated_at = %(at)s WHERE id = %(id)s"
    ),
    "opportunity": (
        "UPDATE opportunity SET stage = 'closed won', is_closed = true, is_won = true,"
        " probability = 100, amount = amount + %(step)s, signed_at = %(at)s,"
        " next_step_due = NULL, updated_at = %(at)s WHERE id = %(id)s"
    ),
}


def changes(world: World, table: str, org: Org) -> Iterator[Row]:
    rng = world.random(table, org.id, "update")
    first = world.first_id(table, org)
    for id_ in sorted(rng.sample(range(first, first + world.rows(table, org)), world.updated(table, org))):
        yield {"id": id_, "step": rng.randrange(1, 500), "at": changed_moment(rng)}


def fresh(row: Row, world: World, table: str) -> Row:
    """The row as if it had been entered on the day after the story."""
    at = changed_moment(world.random(table, row["id"], "fresh"))
    row = row | {"created_at": at, "updated_at": at}
    if table == "opportunity":
        row["next_step_due"] = at.date() + dt.timedelta(days=7)
    return row


def recreate_database(url: str) -> None:
    parts = urlsplit(url)
    name = sql.Identifier(parts.path.lstrip("/"))
    server = urlunsplit(parts._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))


def copy(connection: psycopg.Connection, table: str, rows: Iterable[Row]) -> int:
    """COPYs the rows; each has the same keys in the same order."""
    count, copying, statement = 0, None, None
    with connection.cursor() as cursor:
        for row in rows:
            if copying is None:
                columns = sql.SQL(", ").join(map(sql.Identifier, row))
                text = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
                statement = cursor.copy(text)
                copying = statement.__enter__()
            copying.write_row(tuple(row.values()))
            count += 1
        if statement is not None:
            statement.__exit__(None, None, None)
    return count


def user(world: World, org: Org, number: int) -> Row:
    rng = world.random("crm_user", org.id, number)
    name, created, first = person(rng), moment(rng), world.first_id("crm_user", org)
    return {
        "id": first + number,
        "org_id": org.id,
        "name": name,
        "email": f"{number}.{email_of(name, org.domain)}",
        "role": rng.choice(["rep", "manager", "analyst", None]),
        "manager_id": maybe(rng, 0.9, first + number // 8),
        "quota": maybe(rng, 0.8, money(rng, 50_000, 2_000_000)),
        "is_active": rng.random() < 0.9,
        "time_zone": rng.choice(["Europe/Berlin", "America/New_York", "Asia/Tokyo"]),
        "working_from": dt.time(rng.randrange(6, 11), rng.choice([0, 30])),
        "permissions": rng.sample(["read", "write", "export", "admin"], rng.randrange(4)),
        "created_at": created,
        "updated_at": later(rng, created, 90),
    }


def account(world: World, org: Org, number: int) -> Row:
    rng = world.random("account", org.id, number)
    created, first = moment(rng), world.first_id("account", org)
    name = f"{rng.choice(COMPANY)} {rng.choice(KIND)} {number}"
    city = rng.choice(["Zürich", "Austin", "São Paulo", "東京"])
    address = {"city": city, "zip": str(rng.randrange(10_000, 99_999)), "lines": [person(rng)]}
    return {
        "id": first + number,
        "org_id": org.id,
        "external_id": external_id(rng),
        "name": name,
        "industry": rng.choice(INDUSTRIES),
        "country": rng.choice(COUNTRIES),
        "website": maybe(rng, 0.7, f"https://{number}.{org.domain}"),
        "employees": maybe(rng, 0.9, rng.randrange(1, 90_000)),
        "annual_revenue": money(rng, 0, 900_000_000),
        "rating": maybe(rng, 0.6, rng.randrange(1, 6)),
        "parent_id": maybe(rng, 0.1, first + number // 3),
        "owner_id": owner(rng, world, org),
        "address": json.dumps(address, ensure_ascii=False),
        "tags": rng.sample(["key", "churn risk", "partner", "new"], rng.randrange(3)),
        "health": maybe(rng, 0.8, rng.randrange(0, 1000) / 8),
        "is_customer": maybe(rng, 0.95, rng.random() < 0.4),
        "customer_since": maybe(rng, 0.4, created.date()),
        "created_at": created,
        "updated_at": later(rng, created, 120),
    }


def opportunity(world: World, org: Org, number: int) -> Row:
    rng = world.random("opportunity", org.id, number)
    created = moment(rng)
    updated = later(rng, created, 150)
    stage = rng.choices(STAGES, weights=[3, 3, 3, 2, 4 * org.stages_bias, 4])[0]
    amount = maybe(rng, 0.95, money(rng, 500, 400_000))
    close = created.date() + dt.timedelta(days=rng.randrange(20, 240))
    accounts = world.first_id("account", org)
    contact = person(rng)
    closed, won = stage.startswith("closed"), stage == "closed won"
    account_number = int(world.rows("account", org) * rng.random() ** 2)
    return {
        "id": world.first_id("opportunity", org) + number,
        "org_id": org.id,
        "external_id": external_id(rng),
        "account_id": accounts + account_number,
        "owner_id": owner(rng, world, org),
        "name": f"{rng.choice(COMPANY)} {rng.choice(['new', 'renewal', 'upsell'])} {number}",
        "stage": stage,
        "type": rng.choice(["new business", "renewal", "expansion", None]),
        "lead_source": rng.choice(["web", "event", "partner", "referral", None]),
        "amount": amount,
        "currency": rng.choice(CURRENCIES),
        "exchange_rate": Decimal(rng.randrange(50_000_000, 150_000_000)).scaleb(-8),
        "probability": PROBABILITY[stage],
        "expected_revenue": amount and (amount * PROBABILITY[stage] / 100).quantize(Decimal("0.01")),
        "discount_percent": maybe(rng, 0.3, rng.randrange(0, 400) / 16),
        "score": rng.random() * 100,
        "close_date": close,
        "next_step": maybe(rng, 0.5, sentence(rng, 4)),
        "description": maybe(rng, 0.6, sentence(rng, 12)),
        "is_closed": closed,
        "is_won": won,
        "has_open_activity": maybe(rng, 0.9, rng.random() < 0.3),
        "fiscal_year": close.year,
        "fiscal_quarter": (close.month - 1) // 3 + 1,
        "quantity": maybe(rng, 0.8, rng.randrange(1, 500)),
        "forecast_category": rng.choice(["commit", "best case", "pipeline", "omitted"]),
        "competitors": maybe(rng, 0.4, rng.sample(COMPANY, rng.randrange(3))),
        "tags": rng.sample(["q4", "strategic", "at risk"], rng.randrange(3)),
        "stage_history": json.dumps(history(rng, stage, created)),
        "contract_term": maybe(rng, 0.5, f"{rng.choice([12, 24, 36])} mons"),
        "preferred_call_time": maybe(rng, 0.3, dt.time(rng.randrange(8, 18), 15)),
        "contact_name": contact,
        "contact_email": email_of(contact, "customer.example"),
        "contact_phone": maybe(rng, 0.6, f"+49 30 {rng.randrange(10_000_000)}"),
        "website": maybe(rng, 0.3, f"https://customer.example/{number}"),
        "region": rng.choice(REGIONS),
        "country": rng.choice(COUNTRIES),
        "industry": rng.choice(INDUSTRIES),
        "campaign_id": maybe(rng, 0.2, rng.randrange(1, 90)),
        "partner_id": maybe(rng, 0.1, rng.randrange(1, 40)),
        "contract_start": close if won else None,
        "contract_end": close + dt.timedelta(days=365) if won else None,
        "signed_at": later(rng, updated, 20) if won else None,
        "last_activity_at": maybe(rng, 0.7, updated),
        "last_stage_change_at": later(rng, created, 60),
        "loss_reason": rng.choice(["price", "timing", "no decision"]) if stage == STAGES[-1] else None,
        "source_address": maybe(rng, 0.5, f"203.0.113.{rng.randrange(256)}"),
        **custom_fields(rng, org, amount),
        "created_at": created,
        "updated_at": updated,
    }


def custom_fields(rng: random.Random, org: Org, amount: Decimal | None) -> Row:
    """Every org fills its own of the shared table's custom columns; the rest stays null."""
    columns = dict.fromkeys([
        "custom", "cf_renewal", "cf_arr", "cf_mrr", "cf_segment", "cf_health",
        "cf_procurement_stage", "cf_legal_entity", "cf_warehouses", "cf_fleet_size",
        "cf_grant_number", "cf_students", "cf_semester",
    ])
    if org.id == 401:
        own = {
            "cf_renewal": rng.random() < 0.4,
            "cf_arr": amount and amount * 12,
            "cf_mrr": amount,
            "cf_segment": rng.choice(["smb", "mid", "enterprise"]),
            "cf_health": maybe(rng, 0.7, rng.randrange(101)),
            "custom": json.dumps({"seats": rng.randrange(1, 900), "sso": rng.random() < 0.5}),
        }
    elif org.id == 402:
        own = {
            "cf_procurement_stage": rng.choice(["rfi", "rfp", "award", None]),
            "cf_legal_entity": rng.choice(["Borealis GmbH", "Borealis SA", "Boréalis SARL"]),
            "cf_warehouses": maybe(rng, 0.8, rng.randrange(1, 60)),
            "cf_fleet_size": maybe(rng, 0.8, rng.randrange(1, 4000)),
            "custom": maybe(rng, 0.5, json.dumps({"lanes": rng.sample(COUNTRIES, 3)})),
        }
    else:
        own = {
            "cf_grant_number": maybe(rng, 0.4, f"G-{rng.randrange(10_000):04d}"),
            "cf_students": rng.randrange(50, 40_000),
            "cf_semester": rng.choice(["spring", "autumn"]),
        }
    return columns | own


def history(rng: random.Random, stage: str, created: dt.datetime) -> list[Row]:
    steps = STAGES[: STAGES.index(stage) + 1][-3:]
    return [
        {"stage": step, "at": later(rng, created, 30 * (i + 1)).isoformat(), "by": rng.randrange(99)}
        for i, step in enumerate(steps)
    ]


def activity(world: World, org: Org, number: int) -> Row:
    rng = world.random("activity", org.id, number)
    created = moment(rng)
    opportunities = world.first_id("opportunity", org)
    accounts = world.first_id("account", org)
    details = {"channel": rng.choice(["zoom", "phone", "onsite"]), "attendees": rng.randrange(1, 9)}
    return {
        "id": world.first_id("activity", org) + number,
        "org_id": org.id,
        "opportunity_id": maybe(
            rng, 0.85, opportunities + rng.randrange(world.rows("opportunity", org))
        ),
        "account_id": accounts + rng.randrange(world.rows("account", org)),
        "owner_id": owner(rng, world, org),
        "kind": rng.choice(["call", "meeting", "email", "note"]),
        "subject": sentence(rng, 3),
        "body": maybe(rng, 0.6, sentence(rng, 15)),
        "duration_minutes": maybe(rng, 0.8, rng.randrange(5, 120)),
        "is_done": rng.random() < 0.8,
        "outcome": rng.choice(["reached", "voicemail", "no answer", None]),
        "due_date": maybe(rng, 0.7, created.date()),
        "details": maybe(rng, 0.5, json.dumps(details)),
        "happened_at": maybe(rng, 0.9, created),
        "created_at": created,
        "updated_at": min(later(rng, created, 10), LAST),
    }


def owner(rng: random.Random, world: World, org: Org) -> int | None:
    users = world.first_id("crm_user", org)
    return maybe(rng, 0.97, users + rng.randrange(world.rows("crm_user", org)))


def external_id(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


MAKERS = {"crm_user": user, "account": account, "opportunity": opportunity, "activity": activity}
