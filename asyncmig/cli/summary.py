"""The result of a run: how many customers ended how and why, the requests, and the commands that continue."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from asyncmig import generations
from asyncmig.cli.exit_codes import KEY_REFUSED, RESUMABLE, code_of
from asyncmig.cli.json_output import Report
from asyncmig.cli.output import STYLES, clean, counted, listed, print_table, say, say_steps
from asyncmig.cli.settings import DecideChoice, Options, about_journal
from asyncmig.customers.files import NOT_IMPORTED_AGAIN
from asyncmig.customers.status import CustomerStatus
from asyncmig.jobs.fleet import WhenHeld
from asyncmig.jobs.status import OUTCOMES
from asyncmig.journal import JournalPlace

__all__ = [
    "RunResult",
    "blocking_words",
    "by_reason",
    "figures",
    "how_to_continue",
    "next_steps",
    "outcome_counts",
    "outcome_line",
    "print_figures",
    "print_outcomes",
    "print_summary",
    "reason",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run of the command."""

    report: Report
    selected: frozenset[str] | None = None
    """The external ids that `--select` names; None: all customers."""
    key_refused: bool = False
    reason: str | None = None
    """Why it ended early; None if it did not."""
    queue: str | None = None
    """The workers' queue, as `--queue` names it; None without one."""
    is_recorded: bool = True
    """Whether the journal has the customers. Workers may have another journal."""
    connected: bool = True
    """Whether the queue was reached, so that workers may have the jobs."""
    explicit: frozenset[str] = frozenset()
    """The settings that go with the jobs; the workers' own hold for the others."""
    unwritten: bool = False
    """Whether `report.json`, or what `--json` prints, is incomplete."""

    @property
    def customers(self) -> tuple[CustomerStatus, ...]:
        """The status of each customer that was selected."""
        rows = self.report.customers
        return tuple(row for row in rows if self.selected is None or row.external_id in self.selected)

    @property
    def account_refused(self) -> bool:
        """Whether the account may not start work."""
        return any(row.pending_reason == "account_refused" for row in self.customers)

    @property
    def exit_code(self) -> int:
        """Return the exit code: that of the worst outcome, in the order 4, 75, 6, 5, 3.

        75 comes before the outcomes of customers, because these are incomplete while any is pending, and because 75
        is the one code after which a job runner should start the same command again.
        """
        if self.key_refused or self.account_refused:
            return KEY_REFUSED
        return RESUMABLE if self.unwritten else code_of(customer.outcome for customer in self.customers)


_NUMBER = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+")
_PLURAL = re.compile(r"(# \w+?)s\b")


def reason(row: CustomerStatus) -> str:
    """Return why a customer is not delivered, as one line."""
    if row.outcome == "pending" and row.held_by:
        failure = row.last_failure
        trouble = f"; {clean(failure.words)}" if failure is not None and not failure.is_over else ""
        return f"{row.step}, in progress{trouble}"
    if row.outcome == "delivered":
        return ""
    if row.pending_reason == "held" and row.error:  # without the id, so that customers are grouped
        return clean(row.error.rpartition(f"{row.external_id} is ")[2])
    if row.pending_reason == "no_run_slot" and row.error:  # without ids: `blocking_words` names the customers
        return clean(row.error.partition(" (")[0])
    return clean(row.error or (row.outcome == "pending" and row.detail) or "")


def blocking_words(rows: Iterable[CustomerStatus]) -> str:
    """Return a sentence that names the customers whose runs keep a run slot; empty if there are none."""
    names = sorted(clean(row.external_id) for row in rows if row.holds_run_slot)
    if not names:
        return ""
    keeps = "waits for a person and keeps" if len(names) == 1 else "wait for a person and each keep"
    return f"{listed(names, 10)} {keeps} one of the account's run slots until then."


def by_reason(rows: Sequence[CustomerStatus]) -> list[list[CustomerStatus]]:
    """Group customers by outcome and reason, ignoring the numbers and ids in it; delivered ones come first."""
    groups: defaultdict[tuple[str, str], list[CustomerStatus]] = defaultdict(list)
    for row in rows:
        groups[row.outcome, _PLURAL.sub(r"\1", _NUMBER.sub("#", reason(row)))].append(row)
    return sorted(groups.values(), key=lambda group: (OUTCOMES.index(group[0].outcome), -len(group)))


def _shared_reason(group: Sequence[CustomerStatus]) -> str:
    """Return the reason of a group of `by_reason`: `3-8 questions` where its members have different numbers."""
    reasons = sorted({reason(row) for row in group}, key=len)
    numbers = iter(zip(*map(_NUMBER.findall, reasons), strict=True))
    return _NUMBER.sub(lambda _: _range(next(numbers)), reasons[-1])


def _range(numbers: tuple[str, ...]) -> str:
    if len(set(numbers)) == 1:
        return numbers[0]
    if all(map(str.isdecimal, numbers)):
        return f"{min(map(int, numbers))}-{max(map(int, numbers))}"
    return "…"


def outcome_line(status: CustomerStatus) -> str:
    """Return a line about how one customer's migration ended."""
    result = clean(status.error or "")
    if status.outcome == "delivered":
        bad = f", {status.rows.flagged} with a bad cell" if status.rows.flagged else ""
        rows, sheets = counted(status.rows.delivered or 0, "row"), counted(len(status.files), "sheet")
        result = f"{rows} in {sheets}{bad} ({status.seconds:.0f} s)"
    return f"{status.outcome:>9}  {status.external_id}  {clean(status.name, 60)}: {result}"


_MOST_REASONS = 20
_APPROVAL: Mapping[bool, Mapping[str, tuple[str, DecideChoice]]] = {
    True: {
        "park": ("Or, to approve all proposals that destroy no rows", "approve-safe"),
        "approve-safe": ("Their proposals destroy rows, or may. To approve them anyway", "approve"),
    },
    False: {
        "park": ("Or, to import each preview without a flagged cell", "approve-safe"),
        "approve-safe": ("To import previews with flagged cells, too", "approve"),
    },
}
"""What a further value of `--decide` would do, by whether the API generation proposes patches, and by the present
value."""
_MOST_NAMED = 3


def print_summary(data: Console, ended: RunResult, options: Options) -> None:
    """Print outcomes with their reasons, who is not delivered, the figures, and the next commands."""
    if ended.customers:
        data.print()
        print_outcomes(data, ended.customers, f"{options.out}/report.json")
        _print_undelivered(data, ended)
        _print_changed(data, ended)
        print_figures(data, figures(ended))
    data.print()
    say_steps(data, next_steps(ended, options))


def print_outcomes(data: Console, rows: Sequence[CustomerStatus], details: str) -> None:
    """Print how many customers ended how, why, and which ones. `details`: where to find reasons that are left out."""
    ranked = by_reason(rows)
    lines: list[tuple[str | Text, ...]] = []
    for group in ranked[:_MOST_REASONS]:
        outcome = group[0].outcome
        names = "" if outcome == "delivered" else f" ({_names(group, _MOST_NAMED)})"
        lines.append(
            (Text(outcome, STYLES[outcome]), f"{len(group):,}", f"{_shared_reason(group)}{names}".strip())
        )
    if rest := sum(map(len, ranked[_MOST_REASONS:])):
        lines.append(("...", f"{rest:,}", f"for more reasons, see {details}"))
    print_table(data, ("outcome", "customers", "why, and which customers"), lines, right={"customers"})


def _names(group: Sequence[CustomerStatus], most: int) -> str:
    return listed(sorted(clean(row.external_id) for row in group), most)


def _print_undelivered(data: Console, ended: RunResult) -> None:
    """Print each customer that is not delivered, unless the table of outcomes named them all.

    Pending customers are left out: after an interrupt, that can be all of them.
    """
    groups = [
        group for group in by_reason(ended.customers) if group[0].outcome not in ("delivered", "pending")
    ]
    if len(groups) <= _MOST_REASONS and all(len(group) <= _MOST_NAMED for group in groups):
        return
    data.print()
    for group in groups:
        outcome, has_one = group[0].outcome, len({reason(row) for row in group}) == 1
        lines = (
            [_names(group, len(group))] if has_one else [f"{row.external_id}  {reason(row)}" for row in group]
        )
        for line in lines:
            say(data, f"{outcome:>9}  {line}", STYLES[outcome])


def _print_changed(data: Console, ended: RunResult) -> None:
    """Print which customers have files that have changed and were not imported again."""
    group = [row for row in ended.customers if any(note.startswith(NOT_IMPORTED_AGAIN) for note in row.notes)]
    if group:
        text = (
            f"Files of {counted(len(group), 'customer')} {NOT_IMPORTED_AGAIN}: {_names(group, _MOST_NAMED)}."
        )
        data.print()
        say(data, f"{text} --if-changed import-again imports them; that may append rows.", "yellow")


def print_figures(data: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print a name and a figure on each line."""
    data.print()
    for name, text in lines:
        say(data, f"{name:<11}{text}")


def figures(ended: RunResult) -> list[tuple[str, str]]:
    """Return rows and requests of the run, as pairs of a name and a sentence."""
    budget = ended.report.budget
    delivered = [row for row in ended.customers if row.outcome == "delivered"]
    inserted = sum(row.rows.inserted or 0 for row in delivered)
    flagged = sum(row.rows.flagged or 0 for row in delivered)
    files = [file for row in delivered for file in row.files]
    share = f", {budget.polls / budget.requests:.0%} of them polls" if budget.requests else ""
    lines = [
        ("imported", f"{inserted:,} rows, {flagged:,} of them with a bad cell"),
        ("delivered", f"{sum(file.rows for file in files):,} rows in {counted(len(files), 'file')}"),
        ("requests", f"{budget.requests:,}{share}; {budget.refused:,} answered 429 (over the limit)"),
    ]
    if with_bad := [row for row in delivered if any(file.flagged == "included" for file in row.files)]:
        count = sum(file.flagged == "included" for row in with_bad for file in row.files)
        contain = "contains" if count == 1 else "contain"
        words = (
            f"{counted(count, 'file')} of {counted(len(with_bad), 'customer')} {contain} rows with a bad cell"
        )
        lines.append(("warning", f"{words}, because the server does not leave them out"))
    return lines


def next_steps(ended: RunResult, options: Options) -> Iterator[str]:
    """Yield the next steps, each with its command on a line of its own."""
    outcomes = {row.outcome for row in ended.customers}

    def again(
        text: str,
        decide: DecideChoice | None = None,
        select: str | None = None,
        when_held: WhenHeld = options.when_held,
    ) -> Iterator[str]:
        explicit = ended.explicit if ended.queue else ()
        chosen = replace(options, when_held=when_held)
        yield f"{text}:"
        yield f"  {chosen.command(decide, queue=ended.queue, select=select, explicit=explicit)}"

    def look(text: str, command: str, *words: str) -> Iterator[str]:
        yield f"{text}:"
        yield f"  {about_journal(options.journal, command, *words)}"

    if ended.key_refused:
        yield from again("The API key was refused. Set a valid one in VERN_API_KEY, then continue")
    elif ended.account_refused:
        yield from again(
            "The account may not start runs: the server answered 403. Clear that up with the provider, then continue"
        )
    elif "pending" in outcomes:
        why = f" ({clean(ended.reason)})" if ended.reason else ""
        yield from again(f"Not finished{why}. {_where_it_continues(ended)}")
    if options.when_held == "return" and any(row.pending_reason == "held" for row in ended.customers):
        text = "Another process works on some customers. To wait for it and then continue them"
        yield from again(text, when_held="wait")
    if "parked" in outcomes:
        yield blocking_words(ended.customers) or "Parked customers wait for a decision."
        if ended.is_recorded:
            yield from look("To see what each asks, and to decide", "review")
        else:
            yield "The workers' journal has what each asks: give its database as --journal, also to later runs."
        approval = _APPROVAL[options.api == generations.DEFAULT].get(options.decide)
        if approval is not None:
            yield from again(*approval)
    if "unknown" in outcomes:
        yield "The outcome of some requests is unknown (the response was lost); the reason says how to check."
        if ended.is_recorded:
            unknown = next(row.external_id for row in ended.customers if row.outcome == "unknown")
            yield from look("To see the customer's history", "show", unknown)
        else:
            yield "If a company has to be adopted, that must be written to the workers' journal."
    if "failed" in outcomes:
        yield from again("A failed customer is imported again if its files have changed. Correct them, then")
        text, select = "Or, to import them again as they are", "status:failed"
        yield from (
            look(text, "retry", "--select", select) if ended.is_recorded else again(text, select=select)
        )
    if outcomes <= {"delivered"}:
        yield _all_delivered(ended, options)
    if others := len(ended.report.customers) - len(ended.customers):
        text = f"Not selected: {counted(others, 'customer')}."
        yield from look(f"{text} To see their status", "status") if ended.is_recorded else (text,)


def outcome_counts(statuses: Sequence[CustomerStatus]) -> str:
    """Return how many customers there are, and how many have which outcome."""
    counts = Counter(each.outcome for each in statuses)
    each = ", ".join(f"{counts[name]:,} {name}" for name in OUTCOMES if counts[name])
    return f"{counted(len(statuses), 'customer')}{f': {each}' if each else ''}"


def how_to_continue(
    statuses: Sequence[CustomerStatus], command: str | None, journal: JournalPlace
) -> Iterator[str]:
    """Yield how many customers have which outcome, and the commands that continue, each on a line of its own.

    `command`: continues the journal's last run; None if it is not known.
    """
    yield f"{outcome_counts(statuses)}."
    if command and any(each.outcome == "pending" and not each.held_by for each in statuses):
        yield "No process works on the pending customers. To continue them:"
        yield f"  {command}"
    if words := blocking_words(statuses):
        yield words
    if any(each.outcome == "parked" for each in statuses):
        yield "To see what the parked customers ask, and to decide:"
        yield f"  {about_journal(journal, 'review')}"
    if command and any(each.outcome == "failed" for each in statuses):
        yield "To import the failed customers again as they are:"
        yield f"  {about_journal(journal, 'retry', '--select', 'status:failed')}"


def _all_delivered(ended: RunResult, options: Options) -> str:
    if not ended.customers:
        return "No customer is selected: there is nothing to do."
    which = "Every customer" if ended.selected is None else "Every selected customer"
    where = f": {options.out}/EXTERNAL_ID/SHEET.csv"
    if ended.queue:
        where = f". The sheets are where the workers write; {options.out}/report.json lists them."
    return f"{which} is delivered{where}"


def _where_it_continues(ended: RunResult) -> str:
    if not ended.queue:
        return "Imports continue at the server. To continue here"
    if ended.connected:
        return "The workers continue what was submitted. To follow it"
    return "This run submitted nothing to the workers. To submit it"
