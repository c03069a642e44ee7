"""A request: its endpoint, ids and body. Also for routes that the library does not wrap (`Session.request`)."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, final
from urllib.parse import unquote

import msgspec

from asyncmig._core.endpoint import LARGEST_LIST, Endpoint, Lane, Repeat
from asyncmig._core.secrets import HidesSecrets
from asyncmig.errors import InvalidInput

__all__ = ["Call", "Secret", "raw_call", "raw_endpoint"]


_NO_SEGMENT = frozenset({"", ".", ".."})
"""Ids that would change the path, even percent-encoded."""


@final
class Secret:
    """A text that no repr, log or pickle contains."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class Call(HidesSecrets, frozen=True, kw_only=True, eq=False):
    """A request: its endpoint, the ids of its route, its body and its rank. In a lane, a lower `rank` goes first."""

    _SHOWN: ClassVar[tuple[str, ...]] = ("endpoint", "ids", "query", "rank", "max_wait", "loggable_body")

    endpoint: Endpoint
    ids: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    body: bytes | None = None
    rank: float = 0.0
    max_wait: float | None = None
    loggable_body: str = ""
    """The body without secrets, for `UnknownOutcome`."""
    secrets: tuple[str, ...] = ()
    """The secrets in the body. If a response echoes them, errors contain `***` instead."""

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for an id with which the path would be that of another route."""
        for name, text in self.ids.items():
            if text in _NO_SEGMENT:
                raise InvalidInput(name, text, "would lead to another route")


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_HARMLESS = frozenset({"GET", "HEAD"})
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+/?|/")
_DOTS = frozenset({".", ".."})
"""Segments with which a server or proxy may resolve the path to another route."""
_ADVICE = "Check at the server whether the request was processed before you send it again."


def raw_endpoint(method: str, template: str, *, repeatable: bool | None, lane: Lane) -> Endpoint:
    """Return the endpoint for `Session.request`. Raises `InvalidInput` for an invalid method or template."""
    method = method.upper()
    if method not in _METHODS:
        raise InvalidInput("method", method, f"is none of {', '.join(sorted(_METHODS))}")
    _check_template(template)
    safe = method in _HARMLESS if repeatable is None else repeatable
    return Endpoint(
        name=f"{method} {template}",
        method=method,
        template=template,
        repeat=Repeat.ALWAYS if safe else Repeat.NEVER,
        lane=lane,
        advice=_ADVICE,
        largest_reply=LARGEST_LIST,
    )


def raw_call(
    endpoint: Endpoint,
    *,
    ids: Mapping[str, str],
    params: Mapping[str, str] | None,
    body: object,
    rank: float,
    max_wait: float | None,
) -> Call:
    """Return the call for `Session.request`. Raises `InvalidInput` for wrong ids, params or body."""
    _check_ids(endpoint.template, ids)
    return Call(
        endpoint=endpoint,
        ids=dict(ids),
        query=_checked_params(params or {}),
        body=_encoded(body),
        rank=rank,
        max_wait=max_wait,
    )


def _check_template(template: str) -> None:
    if not template.startswith("/"):
        raise InvalidInput("template", template, 'must begin with "/": it is a path below the base URL')
    plain = _PLACEHOLDER.sub("x", template)
    if "?" in plain:
        raise InvalidInput("template", template, "must have no query: give it as params")
    if not _PATH.fullmatch(plain):
        raise InvalidInput(
            "template", template, "is not a path: write ids as {placeholders}, and percent-encode the rest"
        )
    if _DOTS & {unquote(segment) for segment in plain.split("/")}:
        raise InvalidInput("template", template, "has a segment of dots, which leads to another route")


@lru_cache
def _placeholders(template: str) -> frozenset[str]:
    return frozenset(_PLACEHOLDER.findall(template))


def _check_ids(template: str, ids: Mapping[str, str]) -> None:
    wanted = _placeholders(template)
    for name in sorted(wanted - ids.keys()):
        raise InvalidInput(name, None, f"is missing: {template} needs it")
    for name, value in ids.items():
        if name not in wanted:
            raise InvalidInput(name, value, f"has no place in {template}")
        _check_str(name, value)


def _checked_params(params: Mapping[str, str]) -> dict[str, str]:
    for name, value in params.items():
        _check_str(f"params[{name!r}]", value)
    return dict(params)


def _check_str(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidInput(name, value, "must be a str")


def _encoded(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("body", type(body).__name__, f"is not JSON: {error}") from error
