"""`asyncmig watch`: follow the run of another process, and then the runs that go on at the server."""

import asyncio
import os
from collections.abc import Collection
from functools import partial

import typer
from rich.console import Console

from asyncmig import generations
from asyncmig._io.event_loop import run_all
from asyncmig._io.failures import Owner
from asyncmig.cli.connection import ConnectionSettings, open_session, run_at
from asyncmig.cli.exit_codes import code_of
from asyncmig.cli.last_run import LastRun, LastRunJournal
from asyncmig.cli.options import DEFAULT_JOURNAL, JsonOption
from asyncmig.cli.output import (
    SCHEMA,
    STYLES,
    clean,
    counted,
    data_console,
    is_unread,
    print_line,
    say,
    say_steps,
    words_console,
)
from asyncmig.cli.status import statuses_of_journal
from asyncmig.cli.summary import how_to_continue
from asyncmig.customers.status import CustomerRecord, LastFailure
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import follow, read_records, words_of
from asyncmig.journal import JournalEvent, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = ["watch"]


def watch(
    context: typer.Context,
    journal: LastRunJournal = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
    *,
    reach: ConnectionSettings,
) -> None:
    """Follow the run of another process until it ends.

    Then, if VERN_API_KEY is set, follow the imports that still run at the server, until each has ended or needs a
    decision.
    """
    data, words = data_console(), words_console()
    asyncio.run(_follow_journal(journal, data, as_json=as_json))
    left = [] if is_unread() else asyncio.run(_running(journal))
    if left and os.environ.get("VERN_API_KEY"):
        count = counted(len(left), "import")
        say(words, f"No process uses {journal}; {count} may still run at the server:", "dim")
        run_at(reach.speed, _follow_runs(journal, left, reach, data, as_json=as_json))
    statuses = asyncio.run(statuses_of_journal(journal))
    last: LastRun | None = context.obj
    say_steps(words, how_to_continue(statuses, last.command() if last else None, journal))
    raise typer.Exit(code_of(each.outcome for each in statuses))


async def _follow_journal(place: JournalPlace, data: Console, *, as_json: bool) -> None:
    """Print each new entry of a journal, until no process uses it. Raises `JournalError`."""
    apis: dict[str, str] = {}
    async with open_journal(place, read_only=True) as journal:
        known = await journal.events()
        async for event in follow(journal, after=known[-1].seq if known else 0):
            if event.external_id not in apis:
                apis = {name: record.api for name, record in (await read_records(journal)).items()}
            words = words_of(event, apis.setdefault(event.external_id, ""))
            _print_entry(data, event, words, as_json=as_json)
            if is_unread():
                return


def _print_entry(data: Console, event: JournalEvent, words: str, *, as_json: bool) -> None:
    if as_json:
        named = {"time": event.at, "external_id": event.external_id, "kind": event.kind}
        print_line({"schema": SCHEMA, **named, "words": words})
        return
    line = f"{event.at[11:19]}  {clean(event.kind, 30):<9}  {event.external_id}  {clean(words)}"
    say(data, line.rstrip(), STYLES.get(event.kind, ""))


async def _running(place: JournalPlace) -> list[CustomerRecord]:
    """Return the customers of a journal whose imports may still run at the server. Raises `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        records = await read_records(journal)
    return [
        record
        for record in records.values()
        if "run" in record.ids and record.status.outcome == "pending" and record.api in generations.known()
    ]


async def _follow_runs(
    place: JournalPlace,
    records: Collection[CustomerRecord],
    reach: ConnectionSettings,
    data: Console,
    *,
    as_json: bool,
) -> None:
    """Print how runs change at the server, until each has ended or parked; nothing is written or downloaded.

    Raises `InvalidInput` without an API key, and `AuthError` if the key is refused.
    """
    async with open_session(reach, place) as session:

        def print_failure(event: Event) -> None:
            if isinstance(event, AttemptFailed):  # a read that failed and is repeated
                words = LastFailure.of(event).words
                if as_json:
                    print_line({"schema": SCHEMA, "external_id": event.external_id, "failure": words})
                else:
                    say(data, f"{'retrying':<17}  {event.external_id}  {clean(words)}", "yellow")

        with session.events.subscribe(print_failure):
            await run_all(partial(_follow_run, session, record, data, as_json) for record in records)


async def _follow_run(session: Session, record: CustomerRecord, data: Console, as_json: bool) -> None:
    with Owner(record.external_id):
        generation = generations.find(record.api)
        async for update in generation.updates(context_of(session), record):
            if as_json:
                print_line({"schema": SCHEMA, "external_id": record.external_id, "run": update.state})
            else:
                line = f"{clean(update.status, 30):<17}  {record.external_id}  {clean(update.text)}"
                say(data, line.rstrip())
            if update.waits_for_person or is_unread():
                return
