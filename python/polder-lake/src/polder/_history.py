"""The named states of a table: versions are the tags `v1`, `v2`, …; pins are other tags."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot

from polder._errors import Invalid, NotFound, named

_VERSION = re.compile(r"v([1-9][0-9]*)")
# What a rollback leaves behind so that it can be undone: a version's shadow, and nobody's pin.
_UNDO = re.compile(r"before-rollback-[0-9]+")


@dataclass(frozen=True)
class Version:
    """A published state of a table."""

    name: str
    snapshot_id: int
    published_at: datetime
    """In UTC."""
    rows: int | None
    """As its snapshot counts them."""
    current: bool
    """Whether the table's rows come from this version; runs may have added rows since."""


@dataclass(frozen=True)
class Pin:
    """A state that somebody gave a name of their own: an Iceberg tag."""

    name: str
    snapshot_id: int
    published_at: datetime
    """When the state became the table's, in UTC; the pin may be younger."""
    rows: int | None


def versions(metadata: TableMetadata) -> list[Version]:
    """The table's versions, oldest first."""
    tagged = {name: id for name, id in _tags(metadata).items() if _VERSION.fullmatch(name)}
    ordered = sorted(tagged, key=lambda name: int(name[1:]))
    ids = {tagged[name]: name for name in ordered}
    current = next((ids[s.snapshot_id] for s in _ancestors(metadata) if s.snapshot_id in ids), None)
    found = []
    for name in ordered:
        snapshot = metadata.snapshot_by_id(tagged[name])
        if snapshot is not None:
            state = (name, snapshot.snapshot_id, _published(metadata, snapshot), _rows(snapshot))
            found.append(Version(*state, current=name == current))
    return found


def pins(metadata: TableMetadata) -> list[Pin]:
    """The table's pins, by name."""
    found = []
    for name, id in sorted(_tags(metadata).items()):
        snapshot = metadata.snapshot_by_id(id)
        own = not _VERSION.fullmatch(name) and not _UNDO.fullmatch(name)
        if own and snapshot is not None:
            found.append(Pin(name, id, _published(metadata, snapshot), _rows(snapshot)))
    return found


def snapshot_at(metadata: TableMetadata, state: str | int | datetime | Version | Pin) -> int:
    """The snapshot that a version, a pin, a snapshot's id or a time means.

    A time means the state that was the current one then. Raises `NotFound` where there is none, with
    what there is; `Invalid` for a time without a zone.
    """
    if isinstance(state, (Version, Pin)):
        state = state.snapshot_id
    if isinstance(state, datetime):
        return _snapshot_of_time(metadata, state)
    if isinstance(state, str):
        tags = _tags(metadata)
        if state not in tags:
            raise named("version or pin", state, tags)
        return tags[state]
    if isinstance(state, bool) or not isinstance(state, int):
        raise Invalid(f"{state!r} names no state: give a version, a pin, a snapshot's id or a datetime")
    if metadata.snapshot_by_id(state) is None:
        near = f': versions are named as text, "v{state}"' if 0 < state < 1_000_000 else ""
        raise NotFound(f"there is no snapshot {state}{near}; it may have expired")
    return state


def _snapshot_of_time(metadata: TableMetadata, time: datetime) -> int:
    if time.tzinfo is None:
        raise Invalid(f"{time.isoformat()} has no time zone: add one, for instance tzinfo=datetime.UTC")
    # Whole milliseconds: a float would round up into a commit that came a moment later.
    since = time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    wanted = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    log = metadata.snapshot_log
    past = [entry for entry in log if entry.timestamp_ms <= wanted]
    if not past:
        first = f"its history begins at {_moment(log[0].timestamp_ms).isoformat()}" if log else "it is empty"
        raise NotFound(f"the table has no state of {time.isoformat()}: {first}")
    id = past[-1].snapshot_id
    if metadata.snapshot_by_id(id) is None:
        raise NotFound(f"the state of {time.isoformat()} has expired")
    return id


def _tags(metadata: TableMetadata) -> dict[str, int]:
    refs = metadata.refs.items()
    tags = {n: r.snapshot_id for n, r in refs if r.snapshot_ref_type == SnapshotRefType.TAG}
    return dict(sorted(tags.items()))


def _ancestors(metadata: TableMetadata) -> Iterator[Snapshot]:
    snapshot = metadata.current_snapshot()
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else metadata.snapshot_by_id(parent)


def _rows(snapshot: Snapshot) -> int | None:
    text = snapshot.summary.additional_properties.get("total-records") if snapshot.summary else None
    return None if text is None else int(text)


def _published(metadata: TableMetadata, snapshot: Snapshot) -> datetime:
    """When the snapshot became the current one: it is written, and audited, a little before."""
    log = (e.timestamp_ms for e in metadata.snapshot_log if e.snapshot_id == snapshot.snapshot_id)
    return _moment(next(log, snapshot.timestamp_ms))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
