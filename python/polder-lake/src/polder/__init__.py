"""Reads an org's lake tables through `polder serve`.

    import polder

    org = polder.connect("http://127.0.0.1:7070", key="acme:…").org("401")
    org.table("opportunity").where("stage = 'won'").select("id", "amount").to_polars()

The server answers for metadata and hands out the keys to storage; rows of a table are read from the
files themselves, by PyIceberg. `Org.bootstrap` and `Org.documents` have the server send all tables at one
moment as one stream. Nothing here writes.
"""

from polder._bootstrap import Batch, Bootstrap, Documents
from polder._connection import Connection, Org, connect
from polder._errors import AccessDenied, Invalid, NotFound, PolderError, Unavailable
from polder._history import Pin, Version
from polder._table import Table

__all__ = [
    "AccessDenied",
    "Batch",
    "Bootstrap",
    "Connection",
    "Documents",
    "Invalid",
    "NotFound",
    "Org",
    "Pin",
    "PolderError",
    "Table",
    "Unavailable",
    "Version",
    "connect",
]
