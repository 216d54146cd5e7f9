"""The server's own API over HTTP: `requests`, the key, and errors in this package's words."""

from collections.abc import Mapping
from typing import Any

import requests

from polder._errors import AccessDenied, Invalid, NotFound, PolderError, Unavailable

_CONNECT_SECONDS = 10.0
# Between two pieces of an answer: sorting a large org's history takes a while.
_READ_SECONDS = 300.0


class Api:
    """Calls of one server with one key."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._key = key
        self._token: str | None = None if key and ":" in key else key
        self._session = requests.Session()

    def get(self, path: str, parameters: Mapping[str, str]) -> requests.Response:
        """An answer whose body is not read yet. Raises this package's errors for all but 200."""
        response = self._send(path, parameters)
        if response.status_code == 401 and self._key and ":" in self._key:
            # A token is good for an hour.
            response.close()
            self._token = None
            response = self._send(path, parameters)
        if response.status_code == 200:
            return response
        with response:
            raise _error(response)

    def _send(self, path: str, parameters: Mapping[str, str]) -> requests.Response:
        if self._token is None and self._key:
            self._token = self._exchange(self._key)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return self._session.get(
                self.url + path,
                params=dict(parameters),
                headers=headers,
                stream=True,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            )
        except requests.RequestException as error:
            raise Unavailable(f"no answer from {self.url}: {error}") from error

    def _exchange(self, key: str) -> str:
        """A token for a client's id and secret (OAuth2, client credentials)."""
        id, _, secret = key.partition(":")
        form = {"grant_type": "client_credentials", "client_id": id, "client_secret": secret}
        place = f"{self.url}/iceberg/v1/oauth/tokens"
        try:
            response = self._session.post(place, data=form, timeout=_CONNECT_SECONDS)
        except requests.RequestException as error:
            raise Unavailable(f"no answer from {self.url}: {error}") from error
        if response.status_code != 200:
            raise AccessDenied(f"{self.url} does not take this client's id and secret")
        return str(response.json()["access_token"])


def _error(response: requests.Response) -> PolderError:
    """A problem document (RFC 9457) as an error."""
    try:
        problem: dict[str, Any] = response.json()
    except ValueError:
        problem = {}
    text = str(problem.get("detail") or f"{response.status_code} {response.reason}")
    if problem.get("hint"):
        text += f" ({problem['hint']})"
    kinds: dict[int, type[PolderError]] = {401: AccessDenied, 403: AccessDenied, 404: NotFound}
    if response.status_code >= 500 or response.status_code == 409:
        return Unavailable(text)
    return kinds.get(response.status_code, Invalid)(text)
