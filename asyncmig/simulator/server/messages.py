"""Requests and replies of a world."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

__all__ = ["Json", "Refusal", "Reply", "Request", "drifted", "json_reply"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class Refusal(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


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
