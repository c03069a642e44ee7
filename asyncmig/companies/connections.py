"""The destination of a company: the system that its rows are exported to, and the credentials for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from asyncmig._core.secrets import json_secrets
from asyncmig.customers.spec import Connections
from asyncmig.errors import InvalidInput

__all__ = ["Destination", "checked_connections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The system that a company's rows are exported to: the address of its API, and the credentials for it.

        Destination(base_url="https://api.crm.example", auth={"token": os.environ["CRM_TOKEN"]})

    `auth` is a secret: the server never returns it, and no repr, error, log, event or journal contains it.
    """

    base_url: str
    auth: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)


_FIELDS = {"base_url", "auth"}
_HIDDEN = "***"


def checked_connections(connections: Connections) -> dict[str, dict[str, object]]:
    """Return the connections as the API takes them: `{"destination": {"base_url": ..., "auth": ...}}`.

    Raises `InvalidInput`, which contains no value, for anything else than a `Destination`, or a mapping with its
    fields, under `destination`.
    """
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


def _mapping(value: object) -> Mapping[str, object] | None:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise _wrong(".base_url", "must be the URL of the destination's API")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _wrong(".base_url", "is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise _wrong(".base_url", "must be an absolute https URL")
    if parts.username or parts.password or parts.fragment:
        raise _wrong(".base_url", "must not contain credentials or a fragment: put secrets into auth")
    return url


def _checked_auth(auth: object) -> dict[str, object]:
    if not isinstance(auth, Mapping):
        raise _wrong(".auth", "must be a mapping with the fields that the destination's writer expects")
    return json_secrets("connections.destination.auth", cast("Mapping[str, object]", auth))


def _wrong(field_name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"connections.destination{field_name}", _HIDDEN, reason)
