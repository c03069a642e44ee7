"""`asyncmig journal` and `adopt`: back up a journal, forget customers, and link one to what the server has of it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from asyncmig import generations
from asyncmig.cli.last_run import check_journal
from asyncmig.cli.options import DEFAULT_JOURNAL, ApiOption, ExternalId, JournalOption, JsonOption
from asyncmig.cli.output import SCHEMA, clean, counted, listed, print_line, say, words_console
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs import migrate
from asyncmig.jobs.status import read_record, read_records, read_statuses
from asyncmig.journal import Journal, JournalPlace, open_journal

__all__ = ["adopt", "journal_app"]

journal_app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Back up a journal, forget customers, and shrink the file.",
)


@journal_app.command(epilog="Example: asyncmig journal backup fleet-backup.db --journal fleet.db")
def backup(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="File to create.")],
    journal: JournalOption = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
) -> None:
    """Copy a journal into a new file.

    Other processes may use the journal meanwhile; they do not wait.
    """
    asyncio.run(_file(journal, "back it up with: pg_dump --schema=asyncmig").backup(to))
    size = to.stat().st_size
    if as_json:
        print_line({"schema": SCHEMA, "backup": str(to), "bytes": size})
    else:
        say(words_console(), f"Wrote {to} ({size:,} bytes).")


@journal_app.command(epilog="Example: asyncmig journal compact --journal fleet.db")
def compact(journal: JournalOption = DEFAULT_JOURNAL, as_json: JsonOption = False) -> None:
    """Return the space of forgotten customers to the file system.

    Meanwhile, processes that write the journal wait: some seconds for each gigabyte.
    """
    opened = _file(journal, "it reuses the space of forgotten customers by itself (autovacuum)")
    before, after = asyncio.run(_compact(opened))
    if as_json:
        print_line({"schema": SCHEMA, "journal": str(journal), "bytes_before": before, "bytes": after})
    else:
        say(words_console(), f"{journal}: {before:,} bytes before, {after:,} bytes now.")


@journal_app.command(epilog="Example: asyncmig journal forget --older-than 90 --journal fleet.db")
def forget(
    external_ids: Annotated[
        list[str] | None, typer.Argument(metavar="EXTERNAL_ID", help="Customers to forget.")
    ] = None,
    older_than: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="Also forget each customer that was delivered more than this many days ago.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also forget named customers that are not delivered.")
    ] = False,
    journal: JournalOption = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
) -> None:
    """Delete the records of some customers from a journal.

    Their sheets, and their companies on the server, remain. Remove the customers from the manifest, too: nothing can
    find the company of a forgotten customer, so a new migration with the same external id ends as unknown.
    """
    names = [name.strip() for name in external_ids or ()]
    forgotten = asyncio.run(_forget(journal, names, older_than, force=force))
    if as_json:
        for name in forgotten:
            print_line({"schema": SCHEMA, "forgotten": name})
        return
    text = f": {clean(listed(forgotten))}" if forgotten else ""
    say(words_console(), f"{counted(len(forgotten), 'customer')} forgotten{text}.")


def _file(place: JournalPlace, instead: str) -> Journal:
    if place.path is None:
        raise InvalidInput("journal", str(place), f"is a PostgreSQL; {instead}")
    return Journal(place.path)


def adopt(
    external_id: ExternalId,
    company_id: Annotated[
        str,
        typer.Argument(
            metavar="COMPANY_ID",
            help="The company's id, or its URL in the dashboard; with --api migrations, the migration's id.",
        ),
    ],
    journal: JournalOption = DEFAULT_JOURNAL,
    api: ApiOption = generations.DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Link a customer to a company that exists on the server.

    Use it when the response to the request that created the company was lost. The next run continues with that
    company.
    """
    name = external_id.strip()
    ids = asyncio.run(_adopt(journal, name, company_id, api))
    if as_json:
        print_line({"schema": SCHEMA, "external_id": name, "ids": ids})
    else:
        linked = ", ".join(f"{kind} {each}" for kind, each in ids.items())
        say(words_console(), f"{name} is now linked to {linked}. Run again to continue.")


async def _adopt(place: JournalPlace, external_id: str, resource_id: str, api: str) -> Mapping[str, str]:
    """Link a customer to what the server has of it, and return the ids that the journal has then.

    `api`: the API generation of a customer that the journal does not have. Raises as `asyncmig.jobs.migrate.adopt`.
    """
    await check_journal(place)  # opening it for writing would create one
    async with open_journal(place) as journal:
        record = (await read_records(journal)).get(external_id)
        await migrate.adopt(journal, external_id, resource_id, api=record.api if record else api)
        return (await read_record(journal, external_id)).ids


async def _compact(journal: Journal) -> tuple[int, int]:
    # Raises `JournalError` if there is no journal: opening it for writing would create one.
    await journal.events(limit=0)
    return await journal.compact()


async def _forget(
    place: JournalPlace, names: Sequence[str], older_than: int | None, *, force: bool
) -> list[str]:
    if not names and older_than is None:
        raise InvalidInput("EXTERNAL_ID", "", "is missing: name customers, or give --older-than DAYS")
    async with open_journal(place, read_only=True) as reader:
        known = {status.external_id: status for status in await read_statuses(reader)}
    for name in names:
        if name not in known:
            raise InvalidInput("EXTERNAL_ID", name, f"is not in the journal {place}")
        if (outcome := known[name].outcome) != "delivered" and not force:
            reason = (
                f"is {outcome}, not delivered: --force forgets it anyway; then nothing can find its company"
            )
            raise InvalidInput("EXTERNAL_ID", name, reason)
    old = [] if older_than is None else _delivered_before(known.values(), older_than)
    chosen = list(dict.fromkeys([*names, *old]))
    async with open_journal(place) as journal:
        for name in chosen:
            await journal.forget(name)
    return chosen


def _delivered_before(known: Iterable[CustomerStatus], days: int) -> list[str]:
    """Return the customers that were delivered more than so many days ago."""
    limit = datetime.now(UTC) - timedelta(days=days)
    return [
        status.external_id
        for status in known
        if status.outcome == "delivered"
        and status.changed_at is not None
        and datetime.fromisoformat(status.changed_at) < limit
    ]
