"""The connection of a command to the API: its settings, and the session."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from asyncmig._core.limits import Limits, short_form
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import is_loopback
from asyncmig._io.transport import Timeouts
from asyncmig.cli.options import (
    DEFAULT_RATE,
    Rate,
    environment_name,
    limits_option,
    rate_option,
    setting_option,
)
from asyncmig.errors import InvalidInput
from asyncmig.journal import JournalPlace
from asyncmig.session import Scope, Session

__all__ = ["BaseUrlOption", "ConnectionSettings", "open_session", "timeouts_at"]

_LEAST_TIMEOUT = 2.0
"""Real seconds of the shortest time-out. A faster clock does not make this computer faster."""
BaseUrlOption = Annotated[
    str | None, setting_option("base_url", "URL", "Base URL of the API; the default is VERN_BASE_URL.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """The settings of the connection to the API."""

    scope: Annotated[
        Scope,
        setting_option(
            "scope", "endpoint|key", "What the rate limit applies to: each endpoint, or the whole API key."
        ),
    ] = "endpoint"
    rate: Annotated[Rate, rate_option(environment_name("rate"))] = DEFAULT_RATE
    limits: Annotated[Limits | None, limits_option(environment_name("limits"))] = None
    speed: Annotated[
        float,
        setting_option(
            "speed", "FACTOR", "Run the clock this many times faster; for the simulator only.", least=0.01
        ),
    ] = 1.0
    base_url: BaseUrlOption = None

    @property
    def all_limits(self) -> Limits:
        """`--limits`, or its short form `--rate` and `--scope`. Raises `InvalidInput` if both are given."""
        return short_form(self.limits, limit=self.rate.limit, window=self.rate.window, scope=self.scope)


def open_session(
    reach: ConnectionSettings,
    journal: JournalPlace | None,
    api_key: str | None = None,
    *,
    retry: RetryPolicy | None = None,
) -> Session:
    """Return a session that counts the requests of the journal's last session towards the limit.

    `api_key`: the default is `VERN_API_KEY`. Without a journal, the session neither reads nor writes a send log.

    Raises `InvalidInput`, also for a faster clock (`speed`) with a server on another machine: the clock of a real
    server does not run faster, so it would receive more requests than its limit allows.
    """
    recent = None if journal is None else journal.beside("recent")
    if recent is not None and journal is not None and journal.path is None:
        recent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    session = Session(
        api_key,
        reach.base_url,
        limits=reach.all_limits,
        recent=recent,
        retry=retry,
        timeouts=timeouts_at(reach.speed),
    )
    if reach.speed != 1 and not is_loopback(session.base_url):
        host = urlsplit(session.base_url).hostname
        raise InvalidInput(
            "speed", reach.speed, f"is only for the simulator on this machine; {host} is another machine"
        )
    return session


def timeouts_at(speed: float) -> Timeouts:
    """Return the usual time-outs on a clock that runs `speed` times faster, each at least `_LEAST_TIMEOUT` long."""
    usual, least = Timeouts(), _LEAST_TIMEOUT * speed
    return Timeouts(
        connect=max(usual.connect or 0.0, least),
        headers=max(usual.headers or 0.0, least),
        total=max(usual.total or 0.0, least),
        stall=max(usual.stall or 0.0, least),
        rate_window=max(usual.rate_window, least),
    )
