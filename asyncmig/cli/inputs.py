"""Before a run: its manifest, `--select`, the checks before anything is created or sent, and `--plan`."""

import asyncio
import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from asyncmig import generations
from asyncmig._core.limits import charged
from asyncmig.cli.html_report import check_place
from asyncmig.cli.json_output import read_outcomes
from asyncmig.cli.last_run import check_journal, recall_if_any
from asyncmig.cli.output import clean, counted, listed, print_table, say, spoken
from asyncmig.cli.queue import notes_about, queue_url
from asyncmig.cli.review import describe
from asyncmig.cli.settings import PATHS, Display, Options, about_journal
from asyncmig.customers.files import check_utf8
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput, JournalError, JournalNotFound, JournalUnavailable
from asyncmig.jobs.manifest import Manifest, read_manifest
from asyncmig.jobs.outputs import OwnFiles, check_folder
from asyncmig.jobs.plan import Plan, plan
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
    "print_plan",
    "read_inputs",
    "read_plan",
    "say_excluded",
    "say_removed",
    "select",
    "statuses_of",
    "warn_of_lost_journal",
]

_STATUS = "status:"
UNFINISHED: Final = _STATUS + ",".join(outcome for outcome in OUTCOMES if outcome != "delivered")
"""What `asyncmig retry` selects."""


def select(text: str | None, manifest: Manifest, statuses: Mapping[str, str]) -> frozenset[str] | None:
    """Return the customers that `status:failed,parked` or a list of external ids stands for; None if `text` is None.

    A customer without a status is pending. Raises `InvalidInput` for a status or an id that does not exist, and for
    a selection of nothing.
    """
    if text is None:
        return None
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
        begun={record.external_id for record in known.values() if record.has_started},
        outputs=outputs,
        root=options.root,
        api=options.api,
    )
    OwnFiles(manifest.path, outputs, [customer.external_id for customer in manifest.customers]).check()
    say_excluded(manifest, words)
    if manifest.ignored:
        say(words, f"note: columns that are ignored: {clean(', '.join(manifest.ignored))}", "dim")
    return manifest


async def _check_not_queued(manifest: Manifest, options: Options, selection: str | None) -> None:
    """Raise `InvalidInput` for customers that were given to a queue. Creating their companies again would fail.

    A database that has their records is the journal of the workers, too: then claims protect the customers.
    """
    last, place = recall_if_any(options.journal), options.journal
    if last is None:
        return
    known = await known_customers(place)
    selected = select(selection, manifest, statuses_of(known))
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
        try:
            await check_journal(options.journal)
        except JournalNotFound:  # or an empty file in its place
            warn_of_lost_journal(str(options.journal), options.out, words)
        except JournalError:
            pass  # opening it for writing reports the reason
        await _check_not_queued(manifest, options, wanted.selection)
    else:
        queue_url(wanted.queue)
        given = {name for name in wanted.given if name != "journal" or options.journal.path is not None}
        for note in notes_about(given, verbose=display.verbose):
            say(words, note, "dim")


async def read_plan(manifest: Manifest, options: Options, selection: str | None) -> Plan:
    """Return what a run would do. Raises `InvalidInput`, `JournalError`; needs no key, and creates no file."""
    migration = options.migration_options(retry_failed=selection is not None)
    records: dict[str, CustomerRecord] = {}
    with suppress(JournalNotFound):
        async with open_journal(options.journal, read_only=True) as journal:
            records = await read_records(journal)
    selected = select(selection, manifest, statuses_of(records))
    return await plan(
        only(manifest, selected).customers,
        records,
        to=options.out,
        options=migration,
        limits=options.all_limits,
        api=options.api,
    )


def print_plan(data: Console, planned: Plan, options: Options) -> None:
    """Print the plan of a run in this process, for people."""
    counts = (
        (planned.new, "new"),
        (planned.under_way, "to continue"),
        (len(planned.done), "delivered already"),
        (len(planned.failed), "failed already, and left as they are"),
        (len(planned.repeated), "to be imported again after a failure"),
    )
    shares = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    say(data, f"{counted(planned.customers, 'customer')}: {shares}")
    if planned.files:
        say(data, f"to upload: {counted(planned.files, 'file')}, {planned.bytes:,} bytes; the largest:")
        for file in planned.largest:
            say(data, f"  {file.bytes:>15,}  {file.external_id}  {clean(file.path)}")
    if planned.requests:
        data.print()
        _print_requests(data, planned, options)
        say(data, _earliest(planned, options))
    for line in _warnings(planned, options):
        say(data, line, wrap=not line.startswith("  asyncmig "))
    data.print()
    if not planned.requests:
        say(data, "Nothing was sent, and nothing is left to do.")
        return
    say(data, "Nothing was sent. The run itself checks the names of sources and templates. To begin:")
    say(data, f"  {options.command()}", wrap=False)


def _print_requests(data: Console, planned: Plan, options: Options) -> None:
    """Print a table of the requests, with the windows that they need or the named budgets that they charge."""
    endpoints, limits = generations.find(options.api).endpoints, options.all_limits
    heads = ["requests, at least", "endpoint"]
    if endpoints:
        heads.append("limits that it charges")
    elif options.limits is None:
        heads.insert(1, f"windows of {options.rate.window:g} s")
    rows: list[list[str]] = []
    for endpoint, count in planned.requests.items():
        row = [f"{count:,}", endpoint]
        if endpoint in endpoints:
            rates = charged(limits, endpoints[endpoint])
            row.append(", ".join(f"{name} {rate}" for name, rate in rates.items()))
        elif endpoints:
            row.append("")
        elif options.limits is None:
            row.insert(1, f"{-(-count // options.rate.limit):,}")
        rows.append(row)
    right = [head for head in heads if head not in ("endpoint", "limits that it charges")]
    print_table(data, heads, rows, right=right)


def _earliest(planned: Plan, options: Options) -> str:
    scope = "for each endpoint" if options.scope == "endpoint" else "for the whole key"
    limits = options.limits or f"{options.rate} {scope}"
    if options.limits is None and generations.find(options.api).endpoints:
        limits = "the documented limits"
    when = f"after {spoken(planned.seconds)}" if planned.seconds else "in the first window"
    scarce = f" (`{planned.scarcest}` is the tightest limit)" if planned.scarcest else ""
    return (
        f"\nAt {limits}, the last request can be sent {when}{scarce}. The run takes longer: the durations of "
        "imports, further polls and the transfer of files add to that."
    )


def _warnings(planned: Plan, options: Options) -> Iterator[str]:
    if planned.parked:
        yield f"\nParked, wait for a decision: {listed(planned.parked, 10)}. To see what they ask:"
        yield f"  {about_journal(options.journal, 'review')}"
    if planned.destructive:
        fate = "and --decide approve approves them" if options.decide == "approve" else "if they are approved"
        yield f"\nThe proposals for these customers destroy rows, or may, {fate}:"
        for each in planned.destructive:
            actions = "; ".join(map(describe, each.actions))
            yield f"  {each.external_id}: {actions or 'the proposal cannot be read'}"
    if planned.failed:
        names = listed(planned.failed, 10)
        yield f"\nFailed before, and not imported again while their files stay the same: {names}."
