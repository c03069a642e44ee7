"""The inputs of a run: its manifest, `--select`, and the checks before anything is created or sent."""

import asyncio
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from asyncmig.cli.html_report import check_place
from asyncmig.cli.json_output import read_outcomes
from asyncmig.cli.last_run import check_journal, recall_if_any
from asyncmig.cli.output import clean, counted, listed, say
from asyncmig.cli.queue import notes_about, queue_url
from asyncmig.cli.settings import PATHS, Display, Options
from asyncmig.customers.files import check_utf8
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput, JournalError, JournalNotFound, JournalUnavailable
from asyncmig.jobs.manifest import Manifest, read_manifest
from asyncmig.jobs.outputs import OwnFiles, check_folder
from asyncmig.jobs.status import OUTCOMES, read_records, status_of
from asyncmig.journal import JournalPlace, open_journal

__all__ = [
    "UNFINISHED",
    "RunRequest",
    "check_folders",
    "check_run",
    "check_words",
    "known_customers",
    "only",
    "read_inputs",
    "say_excluded",
    "say_removed",
    "select",
    "statuses_of",
    "warn_of_lost_journal",
]

_STATUS = "status:"
UNFINISHED: Final = _STATUS + ",".join(outcome for outcome in OUTCOMES if outcome != "delivered")
"""What `asyncmig retry` selects."""


def select(text: str, manifest: Manifest, statuses: Mapping[str, str]) -> frozenset[str]:
    """Return the customers that `status:failed,parked` or a list of external ids stands for.

    A customer without a status is pending. Raises `InvalidInput` for a status or an id that
    does not exist, and for a selection of nothing.
    """
    known = [customer.external_id for customer in manifest.customers]
    if text.startswith(_STATUS):
        outcomes = check_words("select", text.removeprefix(_STATUS), OUTCOMES)
        return frozenset(each for each in known if statuses.get(each, "pending") in outcomes)
    return frozenset(check_words("select", text, known, f"is not in {manifest.path}"))


def only(manifest: Manifest, selected: frozenset[str] | None) -> Manifest:
    """Return a manifest with the selected customers alone; None selects all of them."""
    if selected is None:
        return manifest
    chosen = tuple(customer for customer in manifest.customers if customer.external_id in selected)
    return replace(manifest, customers=chosen)


def statuses_of(records: Mapping[str, CustomerRecord]) -> dict[str, str]:
    """Return the status of each customer that a journal knows."""
    return {external_id: status_of(record).outcome for external_id, record in records.items()}


def check_words(field: str, text: str, known: Sequence[str], reason: str | None = None) -> list[str]:
    """Return the words of `text`, which are separated by commas. Raises `InvalidInput` if one is not `known`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            why = reason or f"is not an outcome; the outcomes are {', '.join(known)}"
            raise InvalidInput(field, word, f"{why}; did you mean {near[0]!r}?" if near else why)
    if not words:
        raise InvalidInput(field, text, f"selects nothing: write for example {', '.join(known[:2])}")
    return words


async def known_customers(place: JournalPlace) -> dict[str, CustomerRecord]:
    """Return the customers of a journal as far as it can be read. Raises `JournalUnavailable`."""
    try:
        async with open_journal(place, read_only=True) as journal:
            return await read_records(journal)
    except JournalUnavailable:
        raise
    except JournalError:
        return {}  # there is none yet, or opening it for writing will report why it cannot be read


def _begun(records: Iterable[CustomerRecord]) -> frozenset[str]:
    """Return the customers whose import has begun, by external id."""
    return frozenset(record.external_id for record in records if record.has_started)


def say_removed(manifest: Manifest, records: Mapping[str, CustomerRecord], words: Console) -> None:
    """Print a note about customers that are in the journal and no longer in the manifest."""
    removed = sorted(records.keys() - {customer.external_id for customer in manifest.customers})
    if removed:
        say(
            words,
            f"note: in the journal and not in the manifest: {len(removed)} ({listed(removed)}). "
            "They stay as they are. To continue them, put them back into the manifest.",
            "dim",
        )


def _check_names(options: Options) -> None:
    """Raise `InvalidInput` for paths that are not UTF-8: reports and saved settings contain them as text."""
    named = {name: getattr(options, name) for name in ("manifest", *sorted(PATHS))}
    for name, path in {**named, "folder": Path.cwd()}.items():
        if path is not None:
            check_utf8(name, path)


def check_folders(out: Path, manifest: Manifest) -> None:
    """Raise `InvalidInput` for ids that differ only in case if the file system ignores case."""
    if not (out / "REPORT.JSON").exists():
        return
    seen: dict[str, str] = {}
    for customer in manifest.customers:
        other = seen.setdefault(customer.external_id.casefold(), customer.external_id)
        if other != customer.external_id:
            raise InvalidInput(
                "external_id", customer.external_id, f"and {other!r} would be one folder on this file system"
            )


def read_inputs(options: Options, words: Console) -> Manifest:
    """Read and check the manifest of a run; print notes about what it ignores. Raises `InvalidManifest`."""
    known = asyncio.run(known_customers(options.journal))
    outputs = options.outputs(known.values())
    manifest = read_manifest(
        options.manifest,
        begun=_begun(known.values()),
        outputs=outputs,
        root=options.root,
        api=options.api,
    )
    OwnFiles(manifest.path, outputs, [customer.external_id for customer in manifest.customers]).check()
    say_excluded(manifest, words)
    if manifest.ignored:
        say(
            words,
            f"note: columns that are ignored: {clean(', '.join(manifest.ignored))}",
            "dim",
        )
    return manifest


async def _is_missing(journal: JournalPlace) -> bool:
    """Return whether there is no journal, or an empty file in its place."""
    try:
        await check_journal(journal)
    except JournalNotFound:
        return True
    except JournalError:
        pass  # opening it for writing reports the reason
    return False


async def _check_not_queued(manifest: Manifest, options: Options, selection: str | None) -> None:
    """Raise `InvalidInput` for customers that were given to a queue. Creating their companies again would fail.

    A database that has their records is the journal of the workers, too: then claims protect the customers.
    """
    last, place = recall_if_any(options.journal), options.journal
    if last is None:
        return
    known = await known_customers(place)
    selected = None if selection is None else select(selection, manifest, statuses_of(known))
    recorded = known if place.path is None else {}
    names = [customer.external_id for customer in only(manifest, selected).customers]
    queued = [name for name in names if last.is_queued(name) and name not in recorded]
    if queued:
        reason = (
            f"{listed(queued)} went through a queue, whose workers have a journal of their own: give --queue again, "
            "or, for customers that no worker has begun, name another journal"
        )
        raise InvalidInput("journal", str(place), reason)


def say_excluded(manifest: Manifest, words: Console) -> None:
    """Print a note about files that a glob matches although they are not inputs."""
    if manifest.excluded:
        named = [f"{clean(str(path))} ({clean(what)})" for path, what in manifest.excluded.items()]
        say(
            words,
            f"note: a glob matches files that are not inputs, and leaves them out: {listed(named)}",
            "dim",
        )


def warn_of_lost_journal(journal: str, folder: Path, words: Console) -> None:
    """Warn of a journal that is missing or empty if the report in `folder` lists deliveries."""
    delivered = sum(outcome == "delivered" for outcome in read_outcomes(folder).values())
    if delivered:
        say(
            words,
            f"warning: {journal} is missing or empty, but {folder}/report.json lists "
            f"{counted(delivered, 'customer')} as delivered. Was the journal lost, or is --journal wrong? Without "
            "it, the existing companies cannot be found. To stop, press Ctrl-C; then restore the journal.",
            "yellow",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a call of the command runs, in addition to the options."""

    selection: str | None = None
    """The value of `--select`; None: all customers. Failed imports of selected customers are repeated."""
    remembered: bool = True
    """Whether this is the run that `asyncmig retry` repeats."""
    queue: str | None = None
    """The queue of the workers: its URL or an environment variable with it; None: this process migrates."""
    protected: Sequence[Path] = ()
    """Files that no sheet may replace, in addition to the inputs of the selected customers."""
    given: Collection[str] = ()
    """The settings that were set explicitly; for the others the workers' values apply."""


async def check_run(
    manifest: Manifest, options: Options, wanted: RunRequest, display: Display, words: Console
) -> None:
    """Check the options before anything is created, and print notes about them. Raises `InvalidInput`."""
    options.migration_options()
    _check_names(options)
    check_folder("out", options.out)
    check_place(options.report)
    if wanted.queue is None:  # workers have a journal of their own
        if await _is_missing(options.journal):
            warn_of_lost_journal(str(options.journal), options.out, words)
        await _check_not_queued(manifest, options, wanted.selection)
    else:
        queue_url(wanted.queue)
        given = {name for name in wanted.given if name != "journal" or options.journal.path is not None}
        for note in notes_about(given, verbose=display.verbose):
            say(words, note, "dim")
