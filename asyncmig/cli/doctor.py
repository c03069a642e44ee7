"""`asyncmig doctor`: check what a run needs, and print one line for each check."""

import asyncio
import email.utils
import os
import platform
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer
from yarl import URL

from asyncmig import generations
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import Proxies
from asyncmig.cli.connection import ConnectionSettings, open_session, run_at, why_unknown
from asyncmig.cli.exit_codes import DELIVERED, KEY_REFUSED, RESUMABLE, USAGE, code_of_error, sentence
from asyncmig.cli.json_output import Budget, read_report
from asyncmig.cli.options import DEFAULT_JOURNAL, ApiOption, JournalOption, JsonOption
from asyncmig.cli.output import SCHEMA, clean, counted, data_console, print_line, say
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    InvalidInput,
    JournalError,
    JournalNotFound,
    NotFound,
    ServerError,
    UnexpectedReply,
    WaitTooLong,
)
from asyncmig.generations import Generation
from asyncmig.jobs.outputs import check_folder
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, Journal, JournalPlace, open_journal
from asyncmig.session import Session

__all__ = ["Diagnosis", "doctor", "examine"]

_CLOCK_OFF = 120.0
"""Seconds by which a clock may be off: webhooks are refused at five minutes, and certificates begin and expire."""
_LIBRARIES = ("asyncmig", "aiohttp", "aiolimiter", "anyio", "msgspec")
_EXTRAS = {
    "check": ("charset_normalizer", "re2"),
    "otel": ("opentelemetry",),
    "postgres": ("psycopg",),
    "redis": ("redis",),
    "saq": ("saq",),
}
_PATIENCE = 15.0
"""Seconds (loop's clock) to wait for the server's response, and for the name server's."""
_BUSY = 2.0
"""Real seconds that another program may keep the journal locked."""
_READ_THROUGH = 256 * 1024 * 1024
"""Bytes. The pages of a journal up to this size are all checked, which takes seconds."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of one check."""

    what: str
    text: str
    code: int | None = DELIVERED
    """The exit code for this result; None if the check was not possible."""


def doctor(
    journal: JournalOption = DEFAULT_JOURNAL,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that the run will write to.")] = Path(
        "out"
    ),
    api: ApiOption = generations.DEFAULT,
    as_json: JsonOption = False,
    *,
    reach: ConnectionSettings,
) -> None:
    """Check what a run needs, and print the result of each check.

    Checks the folders, the journal, the server, the API key, the clock and the limits. Sends one request.
    """
    raise typer.Exit(run_at(reach.speed, _print(examine(reach, journal, out, api), as_json=as_json)))


async def examine(
    reach: ConnectionSettings, journal: JournalPlace, out: Path, api: str
) -> AsyncIterator[Diagnosis]:
    """Yield the result of each check. Sends one request, changes nothing, takes 30 s at most.

    Raises `InvalidInput` for an unknown API generation.
    """
    generation = generations.find(api)
    yield _versions()
    yield _folder("output", out)
    if journal.path is not None:
        yield _journal_folder(journal.path)
    yield await _journal(journal)
    found = [finding async for finding in _server(reach, generation)]
    for name in ("server", "API key", "clock"):
        if name not in [finding.what for finding in found]:
            found.append(Diagnosis(name, "was not checked", None))
    for finding in found:
        yield finding
    if generation.endpoints:
        yield await _plan(journal)
    for finding in _limits(reach, out, generation):
        yield finding


def _versions() -> Diagnosis:
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    extras = [
        f"{name} {'yes' if all(map(find_spec, modules)) else 'no'}" for name, modules in _EXTRAS.items()
    ]
    text = f"Python {platform.python_version()}, {libraries}, SQLite {sqlite3.sqlite_version}"
    return Diagnosis("versions", f"{text}; extras: {', '.join(extras)}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"


def _folder(what: str, folder: Path) -> Diagnosis:
    """Check whether a folder can be written, or created in its nearest parent that exists."""
    try:
        place = check_folder(what, folder)
    except InvalidInput as error:
        return Diagnosis(what, error.reason, USAGE)
    can_be = "written" if place == folder.absolute() else "created"
    return Diagnosis(what, f"{folder} can be {can_be}")


def _journal_folder(journal: Path) -> Diagnosis:
    folder = journal.absolute().parent
    if not os.path.lexists(folder):
        return Diagnosis("journal's folder", f"there is no folder {folder}: create it first", USAGE)
    return _folder("journal's folder", folder)


async def _journal(place: JournalPlace) -> Diagnosis:
    path = place.path
    try:
        if path is None:
            async with open_journal(place, read_only=True) as journal:
                return await _content(place, "answers", journal)
        size = path.stat().st_size
        if not size and path.is_file():
            return Diagnosis("journal", f"{path} is empty; the first run fills it")
        return await _read_journal(path, read_through=size <= _READ_THROUGH)
    except FileNotFoundError:
        return Diagnosis("journal", f"{path} does not exist yet")
    except JournalError as error:
        if path is None and isinstance(error, JournalNotFound):
            return Diagnosis(
                "journal", f"{place} can be reached and has no journal: the first run creates it"
            )
        return Diagnosis("journal", str(error), code_of_error(error))
    except OSError as error:
        return Diagnosis("journal", f"{place} cannot be examined: {error.strerror or error}", USAGE)


async def _content(place: object, state: str, journal: DatabaseJournal) -> Diagnosis:
    """Say what a journal contains, and who uses it, or that this version cannot read it."""
    records, activity = await read_records(journal), await journal.activity()
    if unreadable := sum(not record.is_readable for record in records.values()):
        text = f"{place}: this version cannot read {counted(unreadable, 'record')} of {len(records):,}"
        return Diagnosis("journal", text, USAGE)
    holders = sorted({each.holder for each in activity.values() if each.holder})
    held = f"; in use by {', '.join(holders)}" if holders else ""
    return Diagnosis("journal", f"{place} {state}, with {counted(len(records), 'customer')}{held}")


async def _read_journal(path: Path, *, read_through: bool) -> Diagnosis:
    async with Journal(path, read_only=True, connect=_connect) as journal:
        if read_through:
            await journal.check()
        state = "is intact" if read_through else "is large; not every page was checked"
        content = await _content(path, state, journal)
    if content.code != DELIVERED:
        return content
    if not os.access(path, os.W_OK):
        return Diagnosis("journal", f"{path} can be read but not written: permission denied", USAGE)
    try:
        with closing(_connect(f"{path.absolute().as_uri()}?mode=rw")) as db:  # noqa: ASYNC240
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return Diagnosis("journal", f"{path} cannot be written now: {error}", RESUMABLE)
    return content


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)


async def _server(reach: ConnectionSettings, generation: Generation) -> AsyncIterator[Diagnosis]:
    """Send one request, and yield what its response says about the server, the key and the clock."""
    if not os.environ.get("VERN_API_KEY", "").strip():
        yield Diagnosis("API key", "VERN_API_KEY is not set", USAGE)
        return
    try:
        # Without the journal, no send log is written. A 429 is a result here, so it is not retried.
        session = open_session(reach, None, retry=RetryPolicy(attempts=1))
    except InvalidInput as error:
        yield Diagnosis("API key" if error.field == "api_key" else "server", sentence(error), USAGE)
        return
    async with session:
        async for finding in _asked(session, generation, reach.speed):
            yield finding


async def _asked(session: Session, generation: Generation, speed: float) -> AsyncIterator[Diagnosis]:
    """Request the endpoint that the generation names for it, and yield what the response says."""
    url = session.base_url
    if (endpoint := generation.probe) is None:
        text = f"was not checked: the API generation {generation.name} has no request that only reads"
        yield Diagnosis("server", text, None)
        return
    method, _, path = endpoint.partition(" ")
    try:
        proxy = Proxies().proxy_for(url)
        first_host = (proxy.url if proxy else URL(url)).host or ""
        if unknown := await why_unknown(first_host, _PATIENCE):
            yield Diagnosis("server", f"{url} cannot be reached: {unknown}{_by_proxy(url)}", RESUMABLE)
            return
        async with asyncio.timeout(_PATIENCE):
            reply = await session.request(method, path, max_wait=0.0)
            listed: object = reply.json()
    except TimeoutError:
        yield Diagnosis("server", f"{url} did not answer within {_PATIENCE:g} s", RESUMABLE)
    except WaitTooLong:
        yield Diagnosis("server", f"{url} answers 429: other programs use up the key's limit now", RESUMABLE)
    except ApiError as error:
        for finding in _refused(url, path, error):
            yield finding
    except InvalidInput as error:  # about a proxy
        yield Diagnosis("server", sentence(error), USAGE)
    except AsyncmigError as error:
        yield Diagnosis("server", f"{url} cannot be reached: {error}{_by_proxy(url)}", RESUMABLE)
    else:
        if not (isinstance(listed, dict) and path.strip("/") in listed):
            yield _another(url, path, reply.status, f"with JSON that lists no {path.strip('/')}")
            return
        if other := generations.spoken_instead(generation.name, cast(object, listed)):
            text = f"{url} answers like the API generation {other}, not {generation.name}: add --api {other}"
            yield Diagnosis("server", text, USAGE)
        else:
            yield Diagnosis("server", f"{url} answers like the API generation {generation.name}")
        yield Diagnosis("API key", "is accepted")
        yield _clock(reply.headers.get("date"), speed)


def _refused(url: str, path: str, error: ApiError) -> Iterator[Diagnosis]:
    """Yield what a refusal says. The API explains it as `error` in JSON; an unrelated web server does not."""
    match error:
        case AuthError():
            yield Diagnosis("server", f"{url} answers")
            yield Diagnosis("API key", str(error), KEY_REFUSED)
        case NotFound() if error.is_documented:
            text = (
                f"{url} answers 404 to {path}: either it does not list {path.strip('/')} (use ids in the manifest), "
                "or this is not the API's base URL"
            )
            yield Diagnosis("server", text, None)
        case ServerError():
            yield Diagnosis("server", f"{url}: {error}", RESUMABLE)
        case UnexpectedReply() if 300 <= error.status < 400:
            yield _another(url, path, error.status, "a redirect, which is not followed")
        case _ if error.is_documented:
            yield Diagnosis("server", f"{url}: {error}", USAGE)
        case _:
            how = f"and not as the API does: {error.text or '(empty body)'}"
            yield _another(url, path, error.status, how)


def _another(url: str, path: str, status: int, how: str) -> Diagnosis:
    text = f"is this the API's base URL? {url}{path}{_by_proxy(url)} answers {status}, {how}"
    return Diagnosis("server", text, USAGE)


def _by_proxy(url: str) -> str:
    proxy = Proxies().proxy_for(url)
    return f" (through the proxy {proxy.url})" if proxy else ""


def _clock(said: str | None, speed: float) -> Diagnosis:
    try:
        at = email.utils.parsedate_to_datetime(said or "")
        off = (datetime.now(UTC) - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()
    except (ValueError, OverflowError):
        return Diagnosis("clock", "the server's response has no time")
    if abs(off) <= _CLOCK_OFF:
        return Diagnosis("clock", f"differs from the server's clock by at most {max(1.0, abs(off)):.0f} s")
    if speed != 1:
        text = f"was not compared: the clock of the simulator runs {speed:g} times as fast"
        return Diagnosis("clock", text, None)
    where = "ahead of" if off > 0 else "behind"
    return Diagnosis("clock", f"is {abs(off):.0f} s {where} the server's clock: correct it", USAGE)


async def _plan(place: JournalPlace) -> Diagnosis:
    """Say whether the account may start work, as far as the journal knows: no request that only reads tells."""
    refused = 0
    with suppress(JournalError):
        async with open_journal(place, read_only=True) as journal:
            records = await read_records(journal)
        refused = sum(record.status.pending_reason == "account_refused" for record in records.values())
    if refused:
        text = (
            f"the server answered 403 to the start of runs of {counted(refused, 'customer')}: no plan for it"
        )
        return Diagnosis("plan", text, KEY_REFUSED)
    text = "was not checked: only the start of a run shows whether the account has a plan (without one: 403)"
    return Diagnosis("plan", text, None)


def _limits(reach: ConnectionSettings, out: Path, generation: Generation) -> Iterator[Diagnosis]:
    """Compare the configured limits with what the last run learned, and yield each named budget and the run slots."""
    limits, report = reach.all_limits, f"{out}/report.json"
    budgets = dict(limits.budgets) if generation.endpoints else {}
    configured = f"{reach.rate} for {'each endpoint' if reach.scope == 'endpoint' else 'the whole key'}"
    if budgets:
        configured = f"{counted(len(budgets), 'budget')}, listed below"
    elif reach.limits is not None or generation.endpoints:
        configured = str(limits)
    last = Budget()
    try:
        last = read_report(out).budget
        uses = sorted(last.limits.items())
        less = [f"{name}: {use.believed}" for name, use in uses if 0 < use.believed < use.limit]
        learned = f"turned out lower ({', '.join(less)})" if less else "was right"
        compared = f"in the last run it {learned}; {counted(last.refused, 'request')} answered 429"
    except FileNotFoundError:
        compared = f"not compared with a run: there is no {report} yet"
    except (OSError, ValueError) as error:
        compared = f"{report} cannot be read: {error}"
    yield Diagnosis("limit", f"{configured}; {compared}")
    for name, rate in budgets.items():
        sent = ""
        if use := last.limits.get(name):
            sent = f"; the last run sent {counted(use.requests, 'request')}, {use.refused:,} answered 429"
        yield Diagnosis(f"budget {name}", f"{rate}{sent}")
    if generation.endpoints and limits.runs is not None:
        taken = ""
        if slots := last.run_slots:
            taken = f"; at the end of the last run, {slots['in_progress']} of {slots['limit']} were taken"
        yield Diagnosis("run slots", f"{limits.runs}{taken}")


async def _print(findings: AsyncIterator[Diagnosis], *, as_json: bool) -> int:
    """Print each result as it comes, and return the exit code: that of the worst."""
    data = data_console()
    codes: set[int | None] = {DELIVERED}
    async for finding in findings:
        codes.add(finding.code)
        if as_json:
            is_ok = None if finding.code is None else finding.code == DELIVERED
            shown = {"check": finding.what, "ok": is_ok, "text": finding.text, "exit_code": finding.code}
            print_line({"schema": SCHEMA, **shown})
            continue
        mark, style = {DELIVERED: ("ok ", ""), None: ("?  ", "dim")}.get(finding.code, ("BAD", "red"))
        say(data, f"{mark}  {finding.what:16}  {clean(finding.text, 600)}", style)
    return next(code for code in (KEY_REFUSED, USAGE, RESUMABLE, DELIVERED) if code in codes)
