"""What goes wrong, in words that say what to do; the library's own errors stay as the cause."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from pyiceberg import exceptions
from requests.exceptions import RequestException

# A list of names in a message: enough to find a misspelt one, not all of ten thousand.
_NAMES_MAX = 20


class PolderError(Exception):
    """Any error of this package."""


class NotFound(PolderError):
    """An org, table, column, version, pin or snapshot that is not there, or not for this key."""


class Invalid(PolderError):
    """Something was asked for that cannot be: a filter that is none, a time without a zone."""


class AccessDenied(PolderError):
    """The key is missing, wrong, expired or not for this."""


class Unavailable(PolderError):
    """The server or the storage did not answer; the same call may succeed later."""


def named(what: str, name: object, known: Iterable[str]) -> NotFound:
    """Says that there is no such name, with the nearest one and what there is."""
    names = list(known)
    near = get_close_matches(str(name), names, n=1)
    text = f"there is no {what} {name!r}"
    if near:
        text += f": did you mean {near[0]!r}?"
    shown = ", ".join(names[:_NAMES_MAX]) + (", …" if len(names) > _NAMES_MAX else "")
    return NotFound(f"{text} (there is: {shown or 'none'})")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns the libraries' errors into ours.

    `NoSuchTableError` and `NoSuchNamespaceError` pass: only the caller knows what there is instead.
    """
    try:
        yield
    except (exceptions.UnauthorizedError, exceptions.OAuthError) as error:
        raise AccessDenied(
            f"{doing}: the server does not take this key; give key=\"<client id>:<secret>\" or a"
            " token that has not expired"
        ) from error
    except exceptions.ForbiddenError as error:
        raise AccessDenied(f"{doing}: the key may not do this: {error}") from error
    except (exceptions.ServiceUnavailableError, exceptions.ServerError) as error:
        raise Unavailable(f"{doing}: the server cannot answer now: {error}") from error
    except RequestException as error:
        raise Unavailable(f"{doing}: no answer from the server: {error}") from error
