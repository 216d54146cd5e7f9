"""`polder serve` over HTTP: starts work, asks after it, ends it.

A connection of type `polder` has the server's host, port and, as schema, `https` or `http`; as
password a key: an API key or token, sent as it is, or a client's `<id>:<secret>`, for which a token is
fetched.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from airflow.sdk import BaseHook

from polder_airflow.work import Step

if TYPE_CHECKING:
    from airflow.sdk import Connection

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PORT = 7070


class PolderRefused(Exception):
    """The server's answer to something it will not do however often it is asked."""


class PolderUnavailable(Exception):
    """No answer, or one that may be another next time."""


@dataclass(frozen=True)
class Operation:
    """Work that was started: the answer of `GET /v1/operations/{id}`."""

    id: str
    status: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    document: dict[str, Any]

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")

    @classmethod
    def of(cls, id: str, document: dict[str, Any]) -> "Operation":
        status = document.get("status")
        if status not in ("queued", "running", "succeeded", "failed", "cancelled"):
            raise PolderUnavailable(f"operation {id} has status {status!r}, which is unknown here")
        return cls(id, status, document)


class PolderHook(BaseHook):
    """One server and one key."""

    conn_name_attr = "conn_id"
    default_conn_name = "polder_default"
    conn_type = "polder"
    hook_name = "Polder"

    def __init__(self, conn_id: str = default_conn_name, **_: Any) -> None:
        super().__init__()
        self.conn_id = conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The connection form: host, port, scheme and key alone."""
        return {
            "hidden_fields": ["login", "extra"],
            "relabeling": {"schema": "http or https", "password": "Key"},
            "placeholders": {"host": "polder.internal", "port": str(_PORT), "schema": "https"},
        }

    def test_connection(self) -> tuple[bool, str]:
        """The form's test button: is there a server, and does it take the key?"""
        try:
            with self._client() as client:
                _checked(client.get("/healthz"))
                answer = client.get("/iceberg/v1/config")
                if answer.status_code in (401, 403):
                    return False, "the server answers, but does not take the key"
                _checked(answer)
        except (PolderRefused, PolderUnavailable) as error:
            return False, str(error)
        return True, "the server answers and takes the key"

    def start(self, step: Step, idempotency_key: str) -> str:
        """Starts work; gives the operation's id. With the same key the same one, not a second."""
        with self._client() as client:
            answer = _checked(
                client.post(
                    f"/v1/orgs/{quote(step.org, safe='')}/{step.resource()}",
                    json=step.body(),
                    headers={"idempotency-key": idempotency_key},
                )
            )
        location = answer.headers.get("location", "")
        id = location.rstrip("/").rpartition("/")[2]
        if answer.status_code != 202 or not id:
            raise PolderRefused(f"the server answered {answer.status_code} and named no operation")
        return id

    def operation(self, id: str) -> Operation:
        """How far an operation is."""
        with self._client() as client:
            return Operation.of(id, _checked(client.get(_path(id))).json())

    def run_url(self, org: str, run: str) -> str:
        """Where the server tells of a run, to whoever shows a key."""
        base = _settings(self.get_connection(self.conn_id))["base_url"]
        return f"{base}/v1/orgs/{quote(org, safe='')}/runs/{quote(run, safe='')}"

    def cancel(self, id: str) -> None:
        """Asks for the end of an operation's runs; those that have ended already stay as they are."""
        with self._client() as client:
            found = client.get(_path(id))
            if found.status_code == 404:
                return
            document = _checked(found).json()
            for run in document.get("runs", []):
                path = f"/v1/orgs/{quote(document['org'], safe='')}/runs/{quote(run['id'], safe='')}"
                answer = client.post(f"{path}/cancel")
                if answer.status_code not in (404, 409):
                    _checked(answer)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Watch"]:
        """Asks after operations without blocking: what a trigger does."""
        settings = _settings(await self.aget_connection(self.conn_id))
        async with httpx.AsyncClient(**settings) as client:
            yield Watch(client)

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        settings = _settings(self.get_connection(self.conn_id))
        try:
            with httpx.Client(**settings) as client:
                yield client
        except httpx.TransportError as error:
            raise PolderUnavailable(f"no answer from {settings['base_url']}: {error}") from error


class Watch:
    """An open connection for asking after operations."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def operation(self, id: str) -> Operation:
        """As `PolderHook.operation`."""
        try:
            return Operation.of(id, _checked(await self._client.get(_path(id))).json())
        except httpx.TransportError as error:
            raise PolderUnavailable(f"no answer from the server: {error}") from error


class _ClientToken(httpx.Auth):
    """Fetches a token for a client's id and secret with the first request, and with one that is
    answered 401: tokens are good for an hour."""

    requires_response_body = True

    def __init__(self, base: str, id: str, secret: str) -> None:
        self._endpoint = f"{base}/iceberg/v1/oauth/tokens"
        self._form = {"grant_type": "client_credentials", "client_id": id, "client_secret": secret}
        self._token: str | None = None

    def auth_flow(self, request: httpx.Request) -> Any:
        if self._token is None:
            yield from self._fetch()
        request.headers["authorization"] = f"Bearer {self._token}"
        answer = yield request
        if answer.status_code == 401:
            yield from self._fetch()
            request.headers["authorization"] = f"Bearer {self._token}"
            yield request

    def _fetch(self) -> Any:
        answer = yield httpx.Request("POST", self._endpoint, data=self._form)
        if answer.status_code != 200:
            raise PolderRefused("the server does not take the connection's key")
        self._token = answer.json()["access_token"]


def _settings(connection: "Connection") -> dict[str, Any]:
    if not connection.host:
        raise PolderRefused(f"connection {connection.conn_id} names no host")
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    base = f"{connection.schema or 'http'}://{host}:{connection.port or _PORT}"
    settings: dict[str, Any] = {"base_url": base, "timeout": _TIMEOUT}
    key = connection.password
    if key and ":" in key:
        id, _, secret = key.partition(":")
        settings["auth"] = _ClientToken(base, id, secret)
    elif key:
        settings["headers"] = {"authorization": f"Bearer {key}"}
    return settings


def _path(id: str) -> str:
    return f"/v1/operations/{quote(id, safe='')}"


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer, or what it says went wrong (`application/problem+json`)."""
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
        said = [problem[part] for part in ("title", "detail", "hint") if problem.get(part)]
    except (ValueError, TypeError, AttributeError):
        said = []
    text = f"{answer.status_code} of {answer.request.url.path}: {': '.join(said) or answer.reason_phrase}"
    again = answer.status_code in (408, 425, 429) or answer.status_code >= 500
    raise (PolderUnavailable if again else PolderRefused)(text)
