"""`asyncmig doctor`: whether everything is there that a run needs, one line each."""

import email.utils
import os
import platform
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console

from asyncmig.cli.codes import DELIVERED, KEY_REFUSED, RESUMABLE, USAGE
from asyncmig.cli.reach import open_session
from asyncmig.cli.report import Report
from asyncmig.cli.settings import Reach
from asyncmig.cli.terminal import clean, counted, say
from asyncmig.errors import ApiError, AsyncmigError, AuthError, InvalidInput, JournalError, NotFound
from asyncmig.journal import Journal
from asyncmig.session import Session
from asyncmig.status import read_records

__all__ = ["Finding", "examine", "print_findings"]

_CLOCK_OFF = 120.0
"""Seconds by which a clock may be off: webhooks are refused at five minutes, and certificates have edges."""
_LIBRARIES = ("asyncmig", "aiohttp", "aiolimiter", "anyio", "msgspec")
_CHEAP = "/sources"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `code`: what the command exits with for it."""

    what: str
    text: str
    code: int = DELIVERED


async def examine(reach: Reach, journal: Path, out: Path) -> AsyncIterator[Finding]:
    """Look at everything, and yield what is found; one request is sent, and nothing is changed."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    yield Finding(
        "versions", f"Python {platform.python_version()}, {libraries}, SQLite {sqlite3.sqlite_version}"
    )
    yield _folder("output", out)
    yield _folder("journal's folder", journal.parent)
    yield await _journal(journal)
    async for finding in _server(reach, journal):
        yield finding
    yield _limit(reach, out)


def _folder(what: str, folder: Path) -> Finding:
    """Write into a folder, or the nearest one above it that exists."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(what, f"{place} cannot be written: {error.strerror or error}", USAGE)
    return Finding(
        what, f"{folder} can be written" if place == folder.absolute() else f"{folder} can be made"
    )


async def _journal(path: Path) -> Finding:
    if not path.exists():  # noqa: ASYNC240 - nothing else runs in this loop
        return Finding("journal", f"{path} is not there yet: the first run makes it")
    try:
        async with Journal(path, read_only=True) as journal:
            await journal.check()
            records, activity = await read_records(journal, str(path)), await journal.activity()
    except JournalError as error:
        return Finding("journal", str(error), USAGE)
    holders = sorted({each.holder for each in activity.values() if each.holder})
    held = f"; in use by {', '.join(holders)}" if holders else ""
    return Finding("journal", f"{path} is intact, with {counted(len(records), 'customer')}{held}")


async def _server(reach: Reach, journal: Path) -> AsyncIterator[Finding]:
    if not os.environ.get("VERN_API_KEY", "").strip():
        yield Finding("API key", "VERN_API_KEY is not set", USAGE)
        return
    try:
        session = open_session(reach, journal)
    except InvalidInput as error:
        yield Finding("API key" if error.field == "api_key" else "server", str(error), USAGE)
        return
    async with session:
        for finding in await _asked(session):
            yield finding


async def _asked(session: Session) -> list[Finding]:
    """Make one call that costs little, and conclude from what comes of it."""
    url = session.base_url
    try:
        reply = await session.request("GET", _CHEAP)
    except AuthError as error:
        return [Finding("server", f"{url} answers"), Finding("API key", str(error), KEY_REFUSED)]
    except NotFound:
        listed = "it does not list sources: use ids"
        return [Finding("server", f"{url} answers; {listed}"), Finding("API key", "is accepted")]
    except AsyncmigError as error:
        answered = isinstance(error, ApiError)
        return [Finding("server", str(error) if answered else f"{url} cannot be reached: {error}", RESUMABLE)]
    return [
        Finding("server", f"{url} answers"),
        Finding("API key", "is accepted"),
        _clock(reply.headers.get("date")),
    ]


def _clock(said: str | None) -> Finding:
    try:
        at = email.utils.parsedate_to_datetime(said or "")
    except ValueError:
        return Finding("clock", "the server does not say its time")
    off = (datetime.now(UTC) - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()
    if abs(off) <= _CLOCK_OFF:
        return Finding("clock", f"agrees with the server's within {max(1.0, abs(off)):.0f} s")
    where = "ahead of" if off > 0 else "behind"
    return Finding("clock", f"is {abs(off):.0f} s {where} the server's: set it right", USAGE)


def _limit(reach: Reach, out: Path) -> Finding:
    """Say what the last run has learnt of the limit."""
    configured = f"{reach.rate} by {reach.scope} is configured"
    try:
        report = msgspec.json.decode((out / "report.json").read_bytes(), type=Report)
    except FileNotFoundError:
        return Finding("limit", f"{configured}; no run has written {out}/report.json yet")
    except (OSError, msgspec.MsgspecError) as error:
        return Finding("limit", f"{configured}; {out}/report.json cannot be read: {error}")
    less = [
        f"{name}: {seen['believed']}"
        for name, seen in sorted(report.budget.limits.items())
        if seen["believed"] < seen["limit"]
    ]
    learnt = "was seen to be less: " + ", ".join(less) if less else "held"
    refused = counted(report.budget.refused, "request")
    return Finding("limit", f"{configured}; in the last run it {learnt} ({refused} answered 429)")


async def print_findings(findings: AsyncIterator[Finding], data: Console) -> int:
    """Print each finding as it comes, and return the exit code: that of the worst."""
    codes = {DELIVERED}
    async for finding in findings:
        mark, style = ("ok ", "") if finding.code == DELIVERED else ("BAD", "red")
        say(data, f"{mark}  {finding.what:16}  {clean(finding.text)}", style)
        codes.add(finding.code)
    return next(code for code in (KEY_REFUSED, USAGE, RESUMABLE, DELIVERED) if code in codes)
