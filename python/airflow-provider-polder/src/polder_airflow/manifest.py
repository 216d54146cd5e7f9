"""The manifest: what `polder manifest` writes, as far as Airflow needs it.

Read from a file and from nowhere else: Airflow reads DAG files every few seconds, in many processes.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polder_airflow.work import Work

FORMAT = 1
# What names an org in Polder; also safe in a DAG's id.
_ORG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class ManifestError(Exception):
    """The manifest as a whole cannot be read. Airflow shows it as the DAG file's import error."""


EXTERNAL = "external"
"""Instead of a cron text: Airflow has the clock."""


@dataclass(frozen=True)
class Clock:
    """When Polder's own configuration says that all tables of an org run."""

    times: Mapping[str, str]
    """By work: cron texts, or `EXTERNAL`."""
    timezone: str


@dataclass(frozen=True)
class Org:
    """One org's pipeline."""

    id: str
    name: str | None
    tables: tuple[str, ...]
    sources: Mapping[str, str]
    """By table, as far as the manifest names them."""
    clock: Clock
    schedules: Mapping[str, str | None]
    """By work, over the clock; only what the manifest says."""
    retries: int | None
    runs_max: int | None
    """Steps of this org at the same time."""


@dataclass(frozen=True)
class Broken:
    """An org whose entry cannot be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """All orgs, those that cannot be used included; entries are looked at when they are asked for."""

    hash: str
    runs_max: int | None
    _entries: list[Any] = field(repr=False)

    def orgs(self, only: frozenset[str] | None = None) -> list[Org | Broken]:
        """The orgs in the manifest's order, or those of these ids."""
        entries = self._entries
        if only is not None:
            entries = [e for e in entries if isinstance(e, dict) and e.get("id") in only]
        seen: set[str] = set()
        found: list[Org | Broken] = []
        for place, entry in enumerate(entries):
            org = _org(entry, place)
            if org.id in seen:
                org = Broken(org.id, "stands twice in the manifest")
                found = [other for other in found if other.id != org.id]
            seen.add(org.id)
            found.append(org)
        return found


_cache: dict[str, tuple[tuple[int, int, int], Manifest]] = {}


def load(path: str | Path) -> Manifest:
    """The manifest of a file; parsed again only when the file is another than the last time.

    Raises `ManifestError`.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            about = os.fstat(file.fileno())
            state = (about.st_mtime_ns, about.st_size, about.st_ino)
            cached = _cache.get(name)
            if cached is not None and cached[0] == state:
                return cached[1]
            text = file.read()
    except OSError as error:
        raise ManifestError(
            f"the manifest {name} cannot be read: {error.strerror}; write it with"
            f" `polder manifest --out {name}`"
        ) from error
    manifest = _parse(name, text)
    _cache[name] = (state, manifest)
    return manifest


def _parse(name: str, text: bytes) -> Manifest:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"the manifest {name} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise ManifestError(
            f"the manifest {name} has format {found!r}, and this provider reads {FORMAT}: install"
            " the provider of the same release as `polder`"
        )
    orgs = document.get("orgs")
    if not isinstance(orgs, list):
        raise ManifestError(f"the manifest {name} lists no orgs")
    limits = document.get("limits")
    runs = limits.get("runs") if isinstance(limits, dict) else None
    return Manifest(str(document.get("hash")), runs if _is_count(runs) else None, orgs)


def _org(entry: Any, place: int) -> Org | Broken:
    id = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(id, str) or not _ORG.fullmatch(id):
        return Broken(f"entry-{place}", f"has no id that can name an org: {id!r}")
    try:
        return _checked(id, entry)
    except ValueError as error:
        return Broken(id, str(error))


def _checked(id: str, entry: dict[str, Any]) -> Org:
    tables = entry.get("tables")
    if not isinstance(tables, list):
        raise ValueError("lists no tables")
    names = tuple(table.get("name") if isinstance(table, dict) else None for table in tables)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("has a table without a name")
    if len(set(names)) != len(names):
        raise ValueError("has a table twice")
    schedules = entry.get("schedules", {})
    if not isinstance(schedules, dict) or not schedules.keys() <= {str(work) for work in Work}:
        raise ValueError(f"has schedules that are none: {schedules!r}")
    if not all(when is None or isinstance(when, str) for when in schedules.values()):
        raise ValueError(f"has a schedule that is no text: {schedules!r}")
    retries, runs = entry.get("retries"), entry.get("runs")
    for what, count in (("retries", retries), ("runs", runs)):
        if count is not None and not _is_count(count):
            raise ValueError(f"{what} is {count!r}, no number")
    runs = _runs(entry) if runs is None else runs
    name = entry.get("name")
    return Org(
        id=id,
        name=name if isinstance(name, str) else None,
        tables=names,
        sources={t["name"]: t["source"] for t in tables if isinstance(t.get("source"), str)},
        clock=_clock(entry.get("schedule")),
        schedules=schedules,
        retries=retries,
        runs_max=runs,
    )


def _clock(schedule: Any) -> Clock:
    """Parts that this provider does not know are left alone: they are a newer Polder's."""
    if schedule is None or schedule == EXTERNAL:
        return Clock({}, "UTC")
    if not isinstance(schedule, dict):
        raise ValueError(f"has a schedule that is none: {schedule!r}")
    times = {str(work): schedule[work] for work in Work if schedule.get(work) is not None}
    timezone = schedule.get("timezone", "UTC")
    if not all(isinstance(text, str) for text in (*times.values(), timezone)):
        raise ValueError(f"has a schedule that is no text: {schedule!r}")
    return Clock(times, timezone)


def _runs(entry: dict[str, Any]) -> int | None:
    limits = entry.get("limits")
    if limits is None:
        return None
    runs = limits.get("runs") if isinstance(limits, dict) else ""
    if runs is not None and not _is_count(runs):
        raise ValueError(f"has limits that are none: {limits!r}")
    return runs


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
