"""`asyncmig run --queue`: workers migrate the customers; this process submits them and reports the outcomes."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from typing import cast

import msgspec

from asyncmig._core.server_address import parse_server
from asyncmig.cli.settings import Settings
from asyncmig.customers.options import OptionOverrides
from asyncmig.customers.outcome import Outcome
from asyncmig.customers.spec import Spec
from asyncmig.errors import InvalidInput

__all__ = ["WORKERS_OWN", "follow", "notes_about", "option_overrides", "queue_url"]


def queue_url(given: str) -> str:
    """Return the URL of a queue. `given`: the URL, or the environment variable that holds it.

    Raises `InvalidInput`, without secrets, for any other text, and for a URL with a password, because every user of
    the machine can read the command lines of processes.
    """
    if url := os.environ.get(given):
        parse_server(given, url)
        return url
    if "://" not in given and "=" not in given:
        raise InvalidInput("queue", given, "is neither a URL nor an environment variable that holds one")
    if parse_server("queue", given).has_secret:
        why = "has a password: put it into an environment variable such as ASYNCMIG_QUEUE, and give that name"
        raise InvalidInput("queue", "***", why)
    return given


async def follow(
    url: str,
    specs: Sequence[Spec],
    asked: OptionOverrides,
    *,
    api: str,
    over: asyncio.Event,
    on_connected: Callable[[], None],
) -> AsyncGenerator[Outcome]:
    """Submit all of `specs`, and yield each outcome as it comes, until `over` is set. The jobs continue after that.

    The workers' options apply to all that is not in `asked`. Files are named by absolute paths, which must be valid
    for the workers too. Once `over` is set, the function waits neither for a connection nor for a response. Calls
    `on_connected` once the queue can be used, before anything is submitted.
    """
    outcomes = _outcomes(url, specs, asked, api, on_connected)
    ending = asyncio.ensure_future(over.wait())
    coming: asyncio.Future[Outcome | None] | None = None
    try:
        while not over.is_set():
            coming = asyncio.ensure_future(anext(outcomes, None))
            await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            outcome = coming.result()
            if outcome is None:
                return
            yield outcome
    finally:
        ending.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await outcomes.aclose()


async def _outcomes(
    url: str, specs: Sequence[Spec], asked: OptionOverrides, api: str, on_connected: Callable[[], None]
) -> AsyncGenerator[Outcome]:
    from asyncmig.distributed.saq import MigrationQueue  # the extra is needed only with a queue

    for name in ("psycopg", "redis", "saq"):  # their failures are reported as exceptions
        logging.getLogger(name).addHandler(logging.NullHandler())
    async with MigrationQueue(url, api=api) as queue:
        on_connected()
        absolute = [
            msgspec.structs.replace(spec, files=tuple(path.absolute() for path in spec.files))
            for spec in specs
        ]
        async for outcome in queue.run(absolute, **asked):
            yield outcome


_OF_THE_WORKERS = {
    "scope": "ASYNCMIG_SCOPE",
    "rate": "ASYNCMIG_RATE",
    "limits": "ASYNCMIG_LIMITS",
    "base_url": "ASYNCMIG_BASE_URL",
    "out": "ASYNCMIG_OUT",
    "journal": "ASYNCMIG_DATABASE",
    "concurrency": "ASYNCMIG_CONCURRENCY",
    "when_held": None,
    "root": "ASYNCMIG_ROOT",
    "speed": None,
}
"""Settings that a worker has once for all its jobs, and the environment variable of the worker for each."""


def notes_about(given: Collection[str], *, verbose: bool) -> Iterator[str]:
    """Yield notes about the `given` settings that do not reach the workers; the others are part of the jobs."""
    here = [name for name in _OF_THE_WORKERS if name in given]
    if here:
        variables = ", ".join(variable for name in here if (variable := _OF_THE_WORKERS[name]))
        where = f"; for the workers, set {variables} where they run" if variables else ""
        yield f"note: {_flags(here)} from here do not reach the workers{where}."
    ends = [name for name in ("max_duration", "stop_after_failures") if name in given]
    if ends:
        yield f"note: {_flags(ends)} can end this command; the jobs continue."
    if verbose:
        yield "note: -v cannot show the steps of customers that workers migrate; only outcomes are printed."


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


WORKERS_OWN = frozenset({"answers", "cancel_blocked_after", "decide", "filter", "if_changed", "retries"})
"""Settings for which the workers have values of their own."""


def option_overrides(options: Settings, given: Collection[str], *, retry_failed: bool) -> OptionOverrides:
    """Return the options that are part of the jobs: the `given` ones. The workers' values apply to the others."""
    values = options.migration_options()
    overrides: dict[str, object] = {"retry_failed": True} if retry_failed else {}
    for setting in (*WORKERS_OWN, "deliver_rejected"):
        if setting in given:
            name = "row_filter" if setting == "filter" else setting
            overrides[name] = getattr(values, name)
    return cast("OptionOverrides", overrides)
