"""`asyncmig run --plan`: everything checked, nothing sent."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from asyncmig.cli.inputs import only, select, statuses_of
from asyncmig.cli.options import spoken
from asyncmig.cli.output import clean, counted, print_line, say
from asyncmig.cli.review import describe
from asyncmig.cli.settings import Options
from asyncmig.customers.status import CustomerRecord
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.plan import Destruction, Plan, plan
from asyncmig.jobs.status import read_records
from asyncmig.journal import Journal

__all__ = ["print_plan", "print_plan_as_json", "read_plan"]

_MOST_NAMED = 10


async def read_plan(manifest: Manifest, options: Options, selection: str | None) -> Plan:
    """Return what a run would do. Raises `InvalidInput`, `JournalError`; needs no key, and creates no file."""
    records = await _records(options)
    selected = select(selection, manifest, statuses_of(records)) if selection is not None else None
    return await plan(
        only(manifest, selected).customers,
        records,
        to=options.out,
        row_filter=options.filter,
        retries=options.retries,
        retry_failed=selection is not None,
        names_templates=manifest.names_templates,
        limit=options.rate.limit,
        window=options.rate.window,
        scope=options.scope,
        api=options.api,
    )


async def _records(options: Options) -> dict[str, CustomerRecord]:
    path = options.journal
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return {}
    async with Journal(path, read_only=True) as journal:
        return await read_records(journal, str(path))


def print_plan_as_json(planned: Plan) -> None:
    """Print the plan as one line of JSON, on stdout."""
    print_line(planned)


def print_plan(data: Console, planned: Plan, options: Options) -> None:
    """Print the plan of a run in this process, for people."""
    say(data, f"{counted(planned.customers, 'customer')}: {', '.join(_customers(planned))}")
    if planned.files:
        say(data, f"to upload: {counted(planned.files, 'file')}, {planned.bytes:,} bytes; the largest:")
        for file in planned.largest:
            say(data, f"  {file.bytes:>15,}  {file.external_id}  {clean(file.path)}")
    if planned.requests:
        data.print()
        data.print(_requests(planned, options))
        say(data, _earliest(planned, options))
    for line in _warnings(planned, options):
        say(data, line)
    data.print()
    if not planned.requests:
        say(data, "Nothing was sent, and nothing is left to do.")
        return
    say(data, "Nothing was sent. Names of sources and templates are checked by the run itself. To begin:")
    say(data, f"  {options.command()}")


def _customers(planned: Plan) -> Iterator[str]:
    delivered = len(planned.done) - len(planned.failed)
    for count, words in (
        (planned.new, "new"),
        (planned.under_way, "to go on with"),
        (delivered, "delivered already"),
        (len(planned.failed), "failed already, and left as they are"),
        (len(planned.repeated), "to be imported again after a failure"),
    ):
        if count:
            yield f"{count:,} {words}"


def _requests(planned: Plan, options: Options) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("endpoint", no_wrap=True)
    table.add_column("requests, at least", justify="right")
    table.add_column(f"windows of {options.rate.window:g} s", justify="right")
    for endpoint, count in planned.requests.items():
        table.add_row(endpoint, f"{count:,}", f"{-(-count // options.rate.limit):,}")
    return table


def _earliest(planned: Plan, options: Options) -> str:
    scope = "by endpoint" if options.scope == "endpoint" else "over the whole key"
    when = f"after {spoken(planned.seconds)}" if planned.seconds else "within the first window"
    return (
        f"\nAt {options.rate} {scope} the last request can go {when} at the earliest; the time that imports take, "
        "polls of those that are not ready, and the bytes come on top."
    )


def _warnings(planned: Plan, options: Options) -> Iterator[str]:
    if planned.parked:
        yield f"\nParked, waiting for a decision: {_some(planned.parked)}. To see what they ask:"
        yield f"  {options.about_journal('review')}"
    if planned.destructive:
        fate = (
            "and --decide approve will approve that" if options.decide == "approve" else "if it is approved"
        )
        yield f"\nWhat is proposed for these destroys rows, or may, {fate}:"
        for each in planned.destructive:
            yield f"  {each.external_id}: {_actions(each)}"
    if planned.failed:
        yield f"\nFailed before, and not imported again while their files stay the same: {_some(planned.failed)}."


def _actions(each: Destruction) -> str:
    return "; ".join(map(describe, each.actions)) or "the proposal cannot be read"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
