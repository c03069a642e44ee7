"""Faults that a network, a proxy or a failing server can cause. The code that serves a world applies them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import final

from asyncmig.simulator.server.messages import Reply
from asyncmig.simulator.server.settings import is_share

__all__ = ["FAULTS", "Fault", "Faults"]

_HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The fault of one request. Each field is one way in which it goes wrong."""

    refused: bool = False
    """The connection is refused: the request cannot have arrived. Over real sockets this is a lost request."""
    lost_before: bool = False
    """The request never arrives."""
    lost_after: bool = False
    """The request is processed, and the response is lost."""
    hangs: bool = False
    """The request is processed, and nothing arrives until the client gives up."""
    cut_to: int | None = None
    """Bytes of the body after which the connection breaks."""
    truncated_to: int | None = None
    """Bytes to which the body is cut, with a matching length."""
    instead: Reply | None = None
    """A response of a proxy; the server never receives the request."""
    afterwards: Reply | None = None
    """A response that replaces the server's after the request was processed."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Headers that are added to the response."""
    change: Callable[[bytes], bytes] | None = None
    """A change of the body of a success."""

    def reply(self, processed: Callable[[], Reply]) -> Reply:
        """Return the response as it is sent. `processed` lets the server process the request."""
        reply = self.instead or processed()
        reply = self.afterwards or reply
        body = self.change(reply.body) if self.change and reply.status < 300 else reply.body
        return replace(reply, body=body[: self.truncated_to], headers={**reply.headers, **self.headers})


def _error(status: int, text: str) -> Reply:
    return Reply(status=status, body=b'{"error": "%s"}' % text.encode())


_OOPS = _error(500, "Something went wrong")
_BUSY = Reply(status=503, body=b"")
_ELSEWHERE = Reply(status=302, body=b"", headers={"Location": "https://elsewhere.invalid/api/v1/login"})
FAULTS: dict[str, Fault] = {
    "request-lost": Fault(lost_before=True),
    "answer-lost": Fault(lost_after=True),
    "reset-mid-body": Fault(cut_to=7),
    "too-many": Fault(instead=_error(429, "Too many requests")),
    "500-before": Fault(instead=_OOPS),
    "500-after": Fault(afterwards=_OOPS),
    "html-502": Fault(instead=Reply(status=502, body=_HTML.encode(), content_type="text/html")),
    "empty-503": Fault(instead=_BUSY),
    "truncated": Fault(truncated_to=9),
    "hang": Fault(hangs=True),
    "redirect": Fault(instead=_ELSEWHERE),
    "redirect-after": Fault(afterwards=_ELSEWHERE),
    "html-200": Fault(instead=Reply(status=200, body=_HTML.encode(), content_type="text/html")),
    "retry-after-seconds": Fault(instead=_BUSY, headers={"Retry-After": "5"}),
    "retry-after-date": Fault(instead=_BUSY, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "retry-after-absurd": Fault(instead=_BUSY, headers={"Retry-After": "86400"}),
}
"""Faults by their names on the command line."""


@final
class Faults:
    """Chooses the fault of each request: by rate and seed, or scripted for the n-th request of an endpoint."""

    def __init__(
        self,
        rates: Mapping[str, float] | None = None,
        *,
        script: Mapping[tuple[str, int], Fault] | None = None,
        rng: Random | None = None,
        until: float = float("inf"),
    ) -> None:
        """`rates`: shares of all requests by the fault's name. `until`: time in seconds after which no fault occurs
        by rate.
        """
        unknown = set(rates or ()) - FAULTS.keys()
        if unknown:
            raise ValueError(f"unknown fault {sorted(map(str, unknown))}; there are {sorted(FAULTS)}")
        for name, rate in (rates or {}).items():
            if not is_share(rate):
                raise ValueError(f"the rate of the fault {name!r} must be a number from 0 to 1: {rate!r}")
        self._rates = dict(rates or {})
        self._script = dict(script or {})
        self._rng = rng or Random(0)
        self._until = until
        self._numbers: Counter[str] = Counter()

    def pick(self, endpoint: str, now: float) -> Fault:
        """Return the fault of the next request of an endpoint (`GET /sources`, `PUT storage`)."""
        self._numbers[endpoint] += 1
        scripted = self._script.get((endpoint, self._numbers[endpoint]))
        if scripted is not None:
            return scripted
        luck = self._rng.random()
        for name, rate in self._rates.items():
            luck -= rate
            if luck < 0 and now < self._until:
                return FAULTS[name]
        return Fault()
