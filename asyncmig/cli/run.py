"""`asyncmig run`: a manifest in, a fleet driven, a report out."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar, final
from urllib.parse import urlsplit

import msgspec
from rich.console import Console

from asyncmig.cli.interrupts import Interrupts
from asyncmig.cli.options import DecideChoice, Options
from asyncmig.cli.progress import Progress
from asyncmig.cli.report import Report, ReportFile
from asyncmig.cli.terminal import say
from asyncmig.companies.outcome import Delivered
from asyncmig.companies.spec import Record, Spec
from asyncmig.errors import (
    AuthError,
    InvalidInput,
    JournalError,
    NoAnswer,
    NotFound,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)
from asyncmig.events import Event, RequestDone
from asyncmig.fleet import Fleet
from asyncmig.journal import Journal
from asyncmig.manifest import Manifest
from asyncmig.session import Session

__all__ = ["DELIVERED", "KEY_REFUSED", "RESUMABLE", "USAGE", "Ended", "begun", "drive"]

T = TypeVar("T")
DELIVERED: Final = 0
USAGE: Final = 2
KEY_REFUSED: Final = 4
_FAILED, _PARKED, _UNKNOWN = 3, 5, 6
RESUMABLE: Final = 75
"""EX_TEMPFAIL of sysexits.h: try the same again."""
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_POLICIES: Mapping[DecideChoice, Literal["park", "approve_safe", "approve", "reject"]] = {
    "park": "park",
    "approve-safe": "approve_safe",
    "approve": "approve",
    "reject": "reject",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run of the command came out."""

    report: Report
    key_refused: bool = False
    reason: str | None = None
    """Why it ended early; None if it did not."""
    unwritten: bool = False
    """Whether `report.json` on disk is not the last word."""

    @property
    def exit_code(self) -> int:
        """Return the exit code: the worst one wins, in the order 4, 75, 6, 5, 3.

        75 stands before the verdicts about customers because they are not complete while anything is pending,
        and because it is the one code at which a job runner should start the same command again.
        """
        outcomes = {company.outcome for company in self.report.companies}
        if self.key_refused:
            return KEY_REFUSED
        if self.unwritten:
            return RESUMABLE
        for outcome, code in (
            ("pending", RESUMABLE),
            ("unknown", _UNKNOWN),
            ("parked", _PARKED),
            ("failed", _FAILED),
        ):
            if outcome in outcomes:
                return code
        return DELIVERED


@final
class _KeyWatch:
    """Notices that the API key was refused."""

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestDone) and event.status == 401:
            self.refused = True


async def drive(manifest: Manifest, options: Options, words: Console, *, api_key: str | None = None) -> Ended:
    """Migrate the customers of a manifest, show it on `words`, and keep `report.json` up to date.

    `api_key`: `VERN_API_KEY` if not given. Raises `InvalidInput` for options and names that are wrong, before
    anything was created; `JournalError` and `OSError` if the journal or the folder cannot be opened.
    """
    async with Journal(options.journal) as journal, _session(options, api_key) as session:
        _check_speed(options.speed, session.base_url)
        report, key = ReportFile(options.out, manifest, session), _KeyWatch()
        records = await _records(journal, options.journal)
        report.begin(records)
        _say_removed(manifest, records, words)
        _check_folders(options.out, manifest)
        progress = Progress(
            words, [customer.external_id for customer in manifest.customers], speed=options.speed
        )
        progress.known([row.external_id for row in report.rows if row.outcome == "delivered"])
        with session.events.subscribe(key), Interrupts(session, words) as interrupts:
            with progress.following(session):
                work = _Work(manifest, options, session, journal)
                reason = await work.run(records, report, progress, interrupts)
            try:
                records = await _records(journal, options.journal)
            except JournalError as error:
                reason = reason or str(error)
            last = report.end(records.values(), reason)
        return Ended(
            report=last,
            key_refused=key.refused,
            reason=reason or report.trouble,
            unwritten=bool(report.trouble),
        )


def _session(options: Options, api_key: str | None) -> Session:
    return Session(
        api_key,
        options.base_url,
        limit=options.rate.limit,
        window=options.rate.window,
        scope=options.scope,
        recent=options.journal.with_name(f"{options.journal.name}.recent"),
    )


@final
class _Work:
    """The part of `drive` that may be interrupted."""

    __slots__ = ("_journal", "_manifest", "_options", "_session")

    def __init__(self, manifest: Manifest, options: Options, session: Session, journal: Journal) -> None:
        self._manifest, self._options = manifest, options
        self._session, self._journal = session, journal

    async def run(
        self, records: Mapping[str, Record], report: ReportFile, progress: Progress, interrupts: Interrupts
    ) -> str | None:
        """Return why the fleet ended early, or None."""
        try:
            specs = _delivered_specs(self._manifest, records) or await self._specs()
            return await self._fleet(specs, report, progress, interrupts)
        except (AuthError, SessionClosed) as error:
            return str(error)
        except (NoAnswer, ServerError, UnexpectedReply) as error:
            return f"the catalogue could not be read: {error}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if interrupts.count < 2 or task is None:
                raise
            task.uncancel()
            return "interrupted"

    async def _fleet(
        self, specs: tuple[Spec, ...], report: ReportFile, progress: Progress, interrupts: Interrupts
    ) -> str | None:
        options = self._options
        async with Fleet(
            self._session,
            journal=self._journal,
            to=options.out,
            decide=_POLICIES[options.decide],
            row_filter=options.filter,
            concurrency=options.concurrency,
        ) as fleet:
            interrupts.fleet = fleet
            try:
                async for outcome in fleet.run(specs):
                    report.add(outcome)
                    progress.ended(outcome)
            except JournalError as error:
                return str(error)
            await interrupts.settled()
        return "interrupted" if interrupts.count else None

    async def _specs(self) -> tuple[Spec, ...]:
        companies, manifest = self._session.companies, self._manifest
        sources = await _if_offered(companies.sources)
        templates = await _if_offered(companies.templates) if manifest.names_templates else ()
        return manifest.specs(sources, templates)


async def begun(path: Path) -> frozenset[str]:
    """Return the customers whose import has begun, as far as a journal can be read."""
    try:
        async with Journal(path, read_only=True) as journal:
            records = await _records(journal, path)
    except JournalError:
        return frozenset()  # none yet; or whoever opens it to write will say why not
    return frozenset(external_id for external_id, record in records.items() if record.begun)


def _say_removed(manifest: Manifest, records: Mapping[str, Record], words: Console) -> None:
    """Say which customers were begun and stand in the manifest no more."""
    removed = sorted(records.keys() - {customer.external_id for customer in manifest.customers})
    if removed:
        shown = ", ".join(removed[:5]) + (", ..." if len(removed) > 5 else "")
        say(
            words,
            f"note: in the journal and not in the manifest: {len(removed)} ({shown}). Nothing is done for them; "
            "back in the manifest they go on where they were.",
            "dim",
        )


def _check_speed(speed: float, base_url: str) -> None:
    """Refuse to send more than the limit to a server whose clock does not run faster, too."""
    host = urlsplit(base_url).hostname
    if speed != 1 and host not in _THIS_MACHINE:
        raise InvalidInput("speed", speed, f"is for the simulator on this machine, and {host} is another one")


def _check_folders(out: Path, manifest: Manifest) -> None:
    """Refuse ids that differ only in case where the file system does not tell them apart."""
    if not (out / "REPORT.JSON").exists():
        return
    seen: dict[str, str] = {}
    for customer in manifest.customers:
        other = seen.setdefault(customer.external_id.casefold(), customer.external_id)
        if other != customer.external_id:
            raise InvalidInput(
                "external_id", customer.external_id, f"and {other!r} would be one folder on this file system"
            )


async def _if_offered(read: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await read()
    except NotFound:
        return None


def _delivered_specs(manifest: Manifest, records: Mapping[str, Record]) -> tuple[Spec, ...] | None:
    """Return the specs without looking any name up, if everything is delivered: then no request is needed."""
    specs: list[Spec] = []
    for customer in manifest.customers:
        record = records.get(customer.external_id)
        if record is None or not isinstance(record.outcome, Delivered):
            return None
        specs.append(
            Spec(
                external_id=customer.external_id,
                name=customer.name,
                source=record.source,
                template_ids=record.template_ids,
                files=customer.files,
            )
        )
    return tuple(specs)


async def _records(journal: Journal, path: Path) -> dict[str, Record]:
    states = await journal.states()
    try:
        return {external_id: msgspec.json.decode(state, type=Record) for external_id, state in states.items()}
    except msgspec.MsgspecError as error:
        raise JournalError(str(path), f"holds what this version cannot read ({error})") from error
