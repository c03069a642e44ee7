"""The connection of a command to the API: its settings, its session and event loop, and what is wrong with a server.

A server may have no address, refuse the API key, or speak another API generation.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, TypeVar, final
from urllib.parse import urlsplit

from asyncmig import generations
from asyncmig._core.limits import Limits, Rate, short_form
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import is_loopback
from asyncmig._io.transport import Timeouts
from asyncmig.cli.interrupts import Interrupts
from asyncmig.cli.options import DEFAULT_RATE, rate_option, setting_option
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import AsyncmigError, InvalidInput
from asyncmig.events import Event, RequestDone
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace
from asyncmig.session import Scope, Session
from asyncmig.simulator import fast_loop

__all__ = [
    "BaseUrlOption",
    "ConnectionSettings",
    "ServerWatch",
    "check_generation",
    "open_session",
    "run_at",
    "timeouts_at",
    "why_unknown",
]

T = TypeVar("T")
_LEAST_TIMEOUT = 2.0
"""Real seconds of the shortest time-out. A faster clock does not make this computer faster."""
BaseUrlOption = Annotated[
    str | None, setting_option("base_url", "URL", "Base URL of the API, instead of VERN_BASE_URL.")
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
    rate: Annotated[Rate, rate_option("rate")] = DEFAULT_RATE
    limits: Annotated[
        Limits | None,
        setting_option(
            "limits",
            "LIMITS",
            "All limits of the server, instead of --rate and --scope: per-endpoint, per-key, per-minute, by-class, "
            "or what differs from by-class, such as agent=50/1h,runs=5.",
            parse=Limits.parse,
        ),
    ] = None
    speed: Annotated[
        float,
        setting_option(
            "speed", "FACTOR", "Run the clock this many times as fast. Only for the simulator.", least=0.01
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


def run_at(speed: float, main: Coroutine[object, object, T]) -> T:
    """Run `main` on an event loop whose clock runs `speed` times as fast as the wall clock."""
    with asyncio.Runner(loop_factory=None if speed == 1 else lambda: fast_loop(speed)) as runner:
        return runner.run(main)


async def why_unknown(host: str, patience: float) -> str | None:
    """Return why a host has no address; None if it has one. `patience`: seconds to wait for the name server.

    A resolver that hangs cannot be cancelled. It runs in a daemon thread, which does not delay the process's end.
    """
    answer = Future[str | None]()
    answer.set_running_or_notify_cancel()  # a time-out must not cancel it: the thread sets its result

    def ask() -> None:
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError) as error:
            answer.set_result(f"{host}: {getattr(error, 'strerror', None) or error}")
        else:
            answer.set_result(None)

    threading.Thread(target=ask, name="asyncmig-resolver", daemon=True).start()
    try:
        async with asyncio.timeout(patience):
            return await asyncio.wrap_future(answer)
    except TimeoutError:
        return f"{host}: the name server did not answer within {patience:g} s"


@final
class ServerWatch:
    """Records whether the API key was refused, and ends the run if the server speaks another API generation.

    The first 404 of a request that creates a customer is the reason to find out.
    """

    __slots__ = ("_api", "_asking", "_creation", "_interrupts", "_session", "key_refused")

    def __init__(self, session: Session, api: str, interrupts: Interrupts) -> None:
        self._session, self._api, self._interrupts = session, api, interrupts
        self._creation = next(iter(generations.find(api).requests_before_run), None)
        self._asking: asyncio.Task[InvalidInput | None] | None = None
        self.key_refused: bool = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, RequestDone) or event.is_external:
            return
        if event.status == 401:
            self.key_refused = True
        if event.status == 404 and event.endpoint == self._creation and self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="asyncmig generation")

    async def _ask(self) -> InvalidInput | None:
        try:
            await check_generation(self._session, self._api)
        except InvalidInput as error:
            self._interrupts.stop(error.reason)
            return error
        return None

    async def check(self, journal: DatabaseJournal | None, before: Mapping[str, CustomerRecord]) -> None:
        """Raise `InvalidInput` if the server speaks another API generation.

        Then the journal forgets the customers that it did not have `before`: the server has nothing of them.
        """
        error = None if self._asking is None else await self._asking
        if error is None:
            return
        if journal is not None:
            records = await read_records(journal)
            for external_id, record in records.items():
                if external_id not in before and not record.ids:
                    await journal.forget(external_id)
        raise error


async def check_generation(session: Session, api: str) -> None:
    """Raise `InvalidInput` if the server speaks another API generation than `api`, and that can be told."""
    if (probe := generations.find(api).probe) is None:
        return
    method, _, template = probe.partition(" ")
    try:
        listed: object = (await session.request(method, template)).json()
    except AsyncmigError:
        return
    if other := generations.spoken_instead(api, listed):
        raise InvalidInput("api", api, f"the server speaks the API generation {other!r}: add --api {other}")
