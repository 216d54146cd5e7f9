"""What all sources agree on: the orgs, their sizes, people and words, and the passage of time."""

import datetime as dt
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

UTC = dt.timezone.utc

# The first day of the story, its last day before `--mutate`, and the day `--mutate` plays on.
FIRST = dt.datetime(2024, 1, 1, tzinfo=UTC)
LAST = dt.datetime(2025, 6, 30, tzinfo=UTC)
CHANGED = dt.datetime(2025, 7, 1, tzinfo=UTC)
SPAN_SECONDS = int((LAST - FIRST).total_seconds())
MONTHS = [f"{2024 + m // 12}-{m % 12 + 1:02d}" for m in range(18)]


@dataclass(frozen=True)
class Org:
    id: int
    name: str
    domain: str
    share: float
    stages_bias: float


ORGS = [
    Org(401, "Acme Cloud", "acme.example", 0.6, 0.9),
    Org(402, "Borealis Logistics", "borealis.example", 0.3, 1.0),
    Org(403, "Corvus Education", "corvus.example", 0.1, 1.2),
]

# Rows of all orgs together at scale 1.
SIZES = {
    "account": 12_000,
    "crm_user": 600,
    "opportunity": 60_000,
    "activity": 120_000,
    "emails": 50_000,
    "transcripts": 5_000,
    "forecast": 24_000,
    "usage": 30_000,
}

# How much `--mutate` touches, as a share of the table.
CHANGES = {"inserted": 0.02, "updated": 0.03}

FIRST_NAMES = "Ada Bo Chloé Dmitri Elif Farid Grace Hana Ines José Kwame Lena Mai Nils Olu Zoë".split()
LAST_NAMES = "Abara Becker Castro Dubois Eriksen Fischer García Haddad Ito Jensen Kowalski".split()
WORDS = (
    "renewal platform rollout pilot budget security review contract quarter expansion training "
    "migration discount legal procurement timeline integration support onboarding roadmap"
).split()
COMPANY = "Blue Delta Evergreen Falcon Granite Harbor Iron Juniper Kestrel Lumen Mesa Nova".split()
KIND = "Foods Labs Motors Bank Health Energy Media Robotics Textiles Airlines".split()
COUNTRIES = ["US", "DE", "FR", "NL", "GB", "BR", "JP", "IN"]
CURRENCIES = ["USD", "EUR", "GBP", "JPY"]


class World:
    """A seed, a scale and what follows from them."""

    def __init__(self, seed: int, scale: float) -> None:
        self.seed = seed
        self.scale = scale

    def random(self, *purpose: Any) -> random.Random:
        """A generator of its own for each purpose: one table's rows do not depend on another's."""
        return random.Random("/".join(map(str, (self.seed, *purpose))))

    def rows(self, table: str, org: Org) -> int:
        return max(10, round(SIZES[table] * self.scale * org.share))

    def inserted(self, table: str, org: Org) -> int:
        return max(3, round(self.rows(table, org) * CHANGES["inserted"]))

    def updated(self, table: str, org: Org) -> int:
        return max(3, round(self.rows(table, org) * CHANGES["updated"]))

    def first_id(self, table: str, org: Org) -> int:
        """Ids of one table run through all orgs, as they do in one shared table."""
        before = ORGS[: ORGS.index(org)]
        room = sum(self.rows(table, other) + self.inserted(table, other) for other in before)
        return 1 + room


def moment(rng: random.Random) -> dt.datetime:
    """Some moment of the story, to the microsecond."""
    return FIRST + dt.timedelta(
        seconds=rng.randrange(SPAN_SECONDS), microseconds=rng.randrange(1_000_000)
    )


def later(rng: random.Random, since: dt.datetime, days: int) -> dt.datetime:
    """A moment after `since`, still before the story's last day."""
    at = since + dt.timedelta(seconds=rng.randrange(days * 86_400), microseconds=rng.randrange(999))
    return min(at, LAST)


def changed_moment(rng: random.Random) -> dt.datetime:
    return CHANGED + dt.timedelta(seconds=rng.randrange(86_400), microseconds=rng.randrange(1_000_000))


def money(rng: random.Random, low: int, high: int) -> Decimal:
    return Decimal(rng.randrange(low * 100, high * 100)).scaleb(-2)


def maybe(rng: random.Random, chance: float, value: Any) -> Any:
    return value if rng.random() < chance else None


def person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def email_of(name: str, domain: str) -> str:
    return name.lower().replace(" ", ".") + "@" + domain
