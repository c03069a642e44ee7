"""The system that a company's rows are written to in the end, and the secrets that open it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import msgspec

from asyncmig.errors import InvalidInput

__all__ = ["Connections", "Destination", "checked_connections", "secrets_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a company's rows are written to: the address of its API, and what opens it.

        Destination(base_url="https://api.crm.example", auth={"token": os.environ["CRM_TOKEN"]})

    The server never shows `auth` again, and nothing here does: no repr, error, log, event or journal.
    """

    base_url: str
    auth: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)


Connections = Mapping[str, object]
"""By kind; there is one, `destination`. Each a `Destination`, or a mapping with `base_url` and `auth`."""

_FIELDS = {"base_url", "auth"}
_HIDDEN = "***"


def checked_connections(connections: Connections) -> dict[str, object]:
    """Return what is sent; raise `InvalidInput`, which shows no value, for another shape than the API's."""
    kinds = _mapping(connections)
    if kinds is None or set(kinds) != {"destination"}:
        raise InvalidInput("connections", _HIDDEN, "must be {'destination': Destination(...)}")
    destination = kinds["destination"]
    if isinstance(destination, Destination):
        destination = {"base_url": destination.base_url, "auth": destination.auth}
    given = _mapping(destination)
    if given is None or not set(given) <= _FIELDS:
        raise _wrong("", f"must have {' and '.join(sorted(_FIELDS))} and nothing else")
    return {
        "destination": {
            "base_url": _checked_url(given.get("base_url")),
            "auth": _checked_auth(given.get("auth", {})),
        }
    }


def secrets_of(value: object) -> Iterator[str]:
    """Yield every text below `value`, and every number as text; the address of the destination is none."""
    if isinstance(value, Mapping):
        for name, each in cast("Mapping[str, object]", value).items():
            if name != "base_url":
                yield from secrets_of(each)
    elif isinstance(value, list | tuple):
        for each in cast("list[object]", value):
            yield from secrets_of(each)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _mapping(value: object) -> Mapping[str, object] | None:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise _wrong(".base_url", "must be the URL of the destination's API")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _wrong(".base_url", "is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise _wrong(".base_url", "must be an absolute https URL")
    if parts.username or parts.password or parts.fragment:
        raise _wrong(".base_url", "must have no credentials and no fragment: secrets belong into auth")
    return url


def _checked_auth(auth: object) -> dict[str, object]:
    if not isinstance(auth, Mapping):
        raise _wrong(".auth", "must be a mapping, as the destination's writer wants it")
    try:
        plain = cast("object", msgspec.json.decode(msgspec.json.encode(auth)))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, RecursionError):
        raise _wrong(".auth", "cannot be written as JSON") from None  # the reason may quote it
    assert isinstance(plain, dict)
    return cast("dict[str, object]", plain)


def _wrong(field_name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"connections.destination{field_name}", _HIDDEN, reason)
