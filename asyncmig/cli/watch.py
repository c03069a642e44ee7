"""`asyncmig watch`: what another process does with a journal, or what its runs do at the server, until all end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from asyncmig._io.failures import Owner, working_for
from asyncmig._io.tasks import run_all
from asyncmig.cli.options import Options
from asyncmig.cli.progress import STYLES
from asyncmig.cli.reach import open_session
from asyncmig.cli.settings import Reach
from asyncmig.cli.streams import is_unread
from asyncmig.cli.terminal import clean, counted, print_line, say
from asyncmig.companies.failures import words_of as failure_words
from asyncmig.companies.imports import ImportRun
from asyncmig.companies.spec import Record
from asyncmig.events import AttemptFailed
from asyncmig.events import Event as Happening
from asyncmig.journal import Event, Journal
from asyncmig.session import Session
from asyncmig.status import Standing, follow, read_records, words_of

__all__ = ["follow_journal", "follow_runs", "how_to_go_on", "running"]


async def follow_journal(path: Path, data: Console, *, as_json: bool) -> None:
    """Print each event of a journal from now on, until nobody works on it. Raises `JournalError`."""
    async with Journal(path, read_only=True) as journal:
        known = await journal.events()
        async for event in follow(journal, after=known[-1].seq if known else 0):
            _print(data, event, as_json=as_json)
            if is_unread():
                return


def _print(data: Console, event: Event, *, as_json: bool) -> None:
    if as_json:
        named = {"time": event.at, "external_id": event.external_id, "kind": event.kind}
        print_line({"schema": 1, **named, "words": words_of(event)})
        return
    line = f"{event.at[11:19]}  {clean(event.kind, 30):<9}  {event.external_id}  {clean(words_of(event))}"
    say(data, line.rstrip(), STYLES.get(event.kind, ""))


def how_to_go_on(standings: Sequence[Standing], options: Options | None) -> Iterator[str]:
    """Yield how all of them stand, and the commands that go on from there, as far as they are known."""
    counts = Counter(each.outcome for each in standings)
    yield f"{counted(len(standings), 'customer')}: {', '.join(f'{n:,} {name}' for name, n in counts.items())}."
    if options is None:
        return
    if counts["pending"]:
        yield "Nobody works on those that are pending. To go on:"
        yield f"  {options.command()}"
    if counts["parked"]:
        yield "To answer what the parked ones ask:"
        yield f"  {options.about_journal('review')}"


async def running(path: Path) -> list[Record]:
    """Return the customers of a journal whose imports may still run at the server. Raises `JournalError`."""
    async with Journal(path, read_only=True) as journal:
        records = await read_records(journal, str(path))
    return [record for record in records.values() if record.run_id is not None and _may_run(record)]


def _may_run(record: Record) -> bool:
    return record.outcome is None or record.outcome.__struct_config__.tag == "pending"


async def follow_runs(
    path: Path, records: Sequence[Record], reach: Reach, data: Console, *, as_json: bool
) -> None:
    """Print how runs change at the server, until each has ended or parked; nothing is written or fetched.

    Raises `InvalidInput` without a key, and `AuthError` for one that is refused.
    """
    async with open_session(reach, path) as session:
        with session.events.subscribe(partial(_print_failure, data, as_json)):
            await run_all(partial(_follow_run, session, record, data, as_json) for record in records)


def _print_failure(data: Console, as_json: bool, event: Happening) -> None:
    """Print a read that failed and is repeated."""
    if not isinstance(event, AttemptFailed):
        return
    if as_json:
        print_line({"schema": 1, "external_id": event.external_id, "failure": failure_words(event)})
    else:
        say(data, f"{'retrying':<15}  {event.external_id}  {clean(failure_words(event))}", "yellow")


async def _follow_run(session: Session, record: Record, data: Console, as_json: bool) -> None:
    assert record.run_id is not None
    assert record.company_id is not None
    with working_for(Owner(record.external_id)):
        await _print_updates(session.watch(record.run_id, record.company_id), record, data, as_json)


async def _print_updates(run: ImportRun, record: Record, data: Console, as_json: bool) -> None:
    async for state in run.updates():
        if as_json:
            print_line({"schema": 1, "external_id": record.external_id, "run": state})
        else:
            words = state.error or state.progress_message or ""
            say(data, f"{clean(state.status, 30):<15}  {record.external_id}  {clean(words)}".rstrip())
        if run.needs_attention is not None or is_unread():
            return
