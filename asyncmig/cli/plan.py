"""What a run will do: read its manifest, apply `--select`, and print `--plan`."""

from collections.abc import Iterator

from rich.console import Console

from asyncmig import generations
from asyncmig._core.limits import charged
from asyncmig.cli.inputs import only, select, statuses_of
from asyncmig.cli.output import clean, counted, listed, print_table, say, spoken
from asyncmig.cli.parked import describe
from asyncmig.cli.settings import Options, about_journal
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import JournalNotFound
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.plan import Destruction, Plan, plan
from asyncmig.jobs.status import read_records
from asyncmig.journal import open_journal

__all__ = ["print_plan", "read_plan"]


async def read_plan(manifest: Manifest, options: Options, selection: str | None) -> Plan:
    """Return what a run would do. Raises `InvalidInput`, `JournalError`; needs no key, and creates no file."""
    migration = options.migration_options(retry_failed=selection is not None)
    records = await _records(options)
    selected = select(selection, manifest, statuses_of(records)) if selection is not None else None
    return await plan(
        only(manifest, selected).customers,
        records,
        to=options.out,
        options=migration,
        limits=options.all_limits,
        api=options.api,
    )


async def _records(options: Options) -> dict[str, CustomerRecord]:
    try:
        async with open_journal(options.journal, read_only=True) as journal:
            return await read_records(journal)
    except JournalNotFound:
        return {}


def print_plan(data: Console, planned: Plan, options: Options) -> None:
    """Print the plan of a run in this process, for people."""
    say(data, f"{counted(planned.customers, 'customer')}: {', '.join(_customers(planned))}")
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


def _customers(planned: Plan) -> Iterator[str]:
    for count, words in (
        (planned.new, "new"),
        (planned.under_way, "to continue"),
        (len(planned.done), "delivered already"),
        (len(planned.failed), "failed already, and left as they are"),
        (len(planned.repeated), "to be imported again after a failure"),
    ):
        if count:
            yield f"{count:,} {words}"


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
        yield f"\nParked, wait for a decision: {_some(planned.parked)}. To see what they ask:"
        yield f"  {about_journal(options.journal, 'review')}"
    if planned.destructive:
        fate = "and --decide approve approves them" if options.decide == "approve" else "if they are approved"
        yield f"\nThe proposals for these customers destroy rows, or may, {fate}:"
        for each in planned.destructive:
            yield f"  {each.external_id}: {_actions(each)}"
    if planned.failed:
        yield f"\nFailed before, and not imported again while their files stay the same: {_some(planned.failed)}."


def _actions(each: Destruction) -> str:
    return "; ".join(map(describe, each.actions)) or "the proposal cannot be read"


def _some(names: tuple[str, ...]) -> str:
    return listed(names, 10)
