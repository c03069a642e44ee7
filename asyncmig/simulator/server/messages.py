"""Requests and replies of a world."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

__all__ = ["Json", "Refusal", "Reply", "Request", "Stream", "drifted", "json_reply"]

Json = dict[str, object]
"""A JSON value."""


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
    """A request that gets an error response. `fields`: what its body has besides the text.

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
