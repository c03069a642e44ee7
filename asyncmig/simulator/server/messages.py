"""Requests and replies of a world: their parts, the route that a request takes, and the body that it has."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Protocol, TypeVar, cast, final
from urllib.parse import unquote

import msgspec

__all__ = [
    "PREFIX",
    "ExternalId",
    "Filled",
    "Json",
    "Refusal",
    "Reply",
    "Request",
    "Routes",
    "Stream",
    "drifted",
    "json_reply",
    "new_uuid",
    "read_body",
]

T = TypeVar("T")
Json = dict[str, object]
"""A JSON value."""
ExternalId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,255}\Z")]
"""A customer's id in the system of the API's client."""
Filled = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""Text with more than white space."""
PREFIX = "/api/v1"
"""The path prefix of every route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request. Header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


class Stream(Protocol):
    """A body without an end known in advance. The code that serves it asks for more every second."""

    def read(self, now: float) -> bytes:
        """Return what is new at `now`."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply. `stream`: its body follows bit by bit."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    stream: Stream | None = None


class Refusal(Exception):
    """Why a request gets an error response. `fields`: what its body has besides the text.

    `is_avoidable`: False if a client that follows the contract may get it.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
        is_avoidable: bool = True,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers: dict[str, str] = dict(headers or {})
        self.fields: dict[str, object] = dict(fields or {})
        self.is_avoidable = is_avoidable


def json_reply(status: int, value: object) -> Reply:
    """Return a reply with a JSON body."""
    return Reply(status=status, body=json.dumps(value).encode())


def drifted(value: object) -> object:
    """Return a reply as a later version of the API may send it. Required fields stay as they are.

    Numbers are sent as strings, empty lists are omitted, and every object has an unknown field.
    """
    if isinstance(value, dict):
        fields = cast("Json", value)
        return {
            "nobody_knows": {"since": "v2"},
            **{n: drifted(each) for n, each in fields.items() if each != []},
        }
    if isinstance(value, list):
        return [drifted(each) for each in cast("list[object]", value)]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def new_uuid(rng: Random) -> str:
    """Return a new id in the form of a UUID."""
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@final
class Routes:
    """The routes of an API. An endpoint is a method and a route template: `GET /companies/{id}/imports`."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._patterns = {endpoint: _pattern(endpoint.partition(" ")[2]) for endpoint in endpoints}

    def find(self, request: Request) -> tuple[str, dict[str, str]] | None:
        """Return the endpoint of a request and the decoded ids in its path; None if there is no such route."""
        for endpoint, pattern in self._patterns.items():
            match = pattern.fullmatch(request.path)
            if match and endpoint.startswith(f"{request.method} "):
                return endpoint, {name: unquote(text) for name, text in match.groupdict().items()}
        return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"[{](\w+)[}]", r"(?P<\1>[^/]+)", PREFIX + template.replace(".", "[.]")))


def read_body(body: bytes, kind: type[T]) -> T:
    """Return `body` as `kind`. Raises `Refusal` (400)."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, str(error)) from None
