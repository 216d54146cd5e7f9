"""The way in: a server, the orgs a key may see, their tables."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from urllib.parse import quote, urlsplit

from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

from polder._bootstrap import Bootstrap, Documents, parameters
from polder._errors import Invalid, NotFound, named, translated
from polder._http import Api
from polder._table import Table

_NAMESPACE = "org_"


def connect(
    url: str, key: str | None = None, *, storage: Mapping[str, str] | None = None
) -> "Connection":
    """Connects to `polder serve`.

    `url` is the server's address (`http://127.0.0.1:7070`). `key` is an OAuth2 client's
    `<id>:<secret>`, or a token or API key that is sent as it is; without one the environment variable
    `POLDER_KEY` is asked, and without that the server has to be open to everybody. `storage` has
    PyIceberg's file settings (`s3.access-key-id`, …) for a server that hands out no keys.

    Raises `AccessDenied` for a key the server does not take, `Unavailable` where none answers.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Invalid(f"{url!r} is no address of a server: write http://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise Invalid("the server's address holds more than scheme, host, port and path; give key=…")
    uri = url.rstrip("/").removesuffix("/iceberg") + "/iceberg"
    properties = dict(storage or {}) | {"uri": uri}
    key = key or os.environ.get("POLDER_KEY")
    if key and ":" in key:
        properties |= {"credential": key, "oauth2-server-uri": f"{uri}/v1/oauth/tokens"}
    elif key:
        properties["token"] = key
    with translated(f"connecting to {uri}"):
        catalog = RestCatalog("polder", **properties)
    return Connection(catalog, Api(uri.removesuffix("/iceberg"), key))


class Connection:
    """A server and a key. Made by `connect`."""

    def __init__(self, catalog: RestCatalog, api: Api) -> None:
        self._catalog = catalog
        self._api = api

    def __repr__(self) -> str:
        return f"polder.connect({self._catalog.uri.removesuffix('/iceberg')!r})"

    def orgs(self) -> list[str]:
        """The ids of the orgs that the key may see."""
        with translated("listing orgs"):
            spaces = [space[0] for space in self._catalog.list_namespaces() if len(space) == 1]
        return sorted(s.removeprefix(_NAMESPACE) for s in spaces if s.startswith(_NAMESPACE))

    def org(self, id: str | int) -> "Org":
        """An org by its id. Asks nothing of the server yet."""
        return Org(self, str(id))


class Org:
    """One org's tables."""

    def __init__(self, connection: Connection, id: str) -> None:
        self._connection = connection
        self.id = id

    def __repr__(self) -> str:
        return f"{self._connection!r}.org({self.id!r})"

    @property
    def namespace(self) -> str:
        """The org's Iceberg namespace."""
        return f"{_NAMESPACE}{self.id}"

    def tables(self) -> list[str]:
        """The names of the org's tables.

        Raises `NotFound` for an org that is not there, or that the key may not see.
        """
        with translated(f"listing the tables of org {self.id}"):
            try:
                found = self._connection._catalog.list_tables((self.namespace,))
            except NoSuchNamespaceError as error:
                raise named("org", self.id, self._connection.orgs()) from error
        return sorted(identifier[-1] for identifier in found)

    def table(self, name: str) -> Table:
        """A table as it is now; the same rows however often it is read, until `refresh`.

        Raises `NotFound`, which names the tables there are.
        """
        catalog = self._connection._catalog
        identifier = (self.namespace, name)

        def load():
            with translated(f"loading table {name} of org {self.id}"):
                try:
                    return catalog.load_table(identifier)
                except (NoSuchTableError, NoSuchNamespaceError) as error:
                    raise self._no_table(name) from error

        return Table._open(f"{self!r}.table({name!r})", name, load)

    def bootstrap(
        self,
        tables: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        as_of: datetime | None = None,
        pin: str | None = None,
        rows_max: int | None = None,
        bytes_max: int | None = None,
        resume: str | None = None,
    ) -> Bootstrap:
        """All rows of these tables (of all, without) at one moment, whatever runs meanwhile.

        `since` leaves out rows of earlier events; `as_of` or `pin` choose the states. With a budget the
        rows end where it does, and `.token` goes on from there (`resume=`). Without one, a stream
        that breaks goes on by itself. Raises `NotFound`, `Invalid`, `AccessDenied`, `Unavailable`.
        """
        asked = parameters(
            tables, since, as_of, pin=pin, rows_max=rows_max, bytes_max=bytes_max, resume=resume
        )
        return Bootstrap(self._connection._api, self._path("bootstrap"), asked)

    def documents(
        self,
        entity: str = "opportunity",
        tables: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        as_of: datetime | None = None,
        pin: str | None = None,
        rows_max: int | None = None,
        tokens_max: int | None = None,
        resume: str | None = None,
    ) -> Documents:
        """One document for each row of `entity`, with the rows of other tables that belong to it.

        What belongs to it is said by `references` of the table specs. Otherwise as `bootstrap`.
        """
        shape = {} if resume else {"shape": "entity", "entity": entity}
        budgets = {"rows_max": rows_max, "tokens_max": tokens_max}
        asked = parameters(tables, since, as_of, pin=pin, resume=resume, **shape, **budgets)
        return Documents(self._connection._api, self._path("bootstrap"), asked)

    def _path(self, name: str) -> str:
        return f"/v1/orgs/{quote(self.id, safe='')}/{name}"

    def _no_table(self, name: str) -> NotFound:
        return named(f"table of org {self.id}", name, self.tables())
