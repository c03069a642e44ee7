"""`asyncmig review`: show what parked imports ask, and send a person's decisions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from rich.console import Console

from asyncmig import generations
from asyncmig.cli.connection import ConnectionSettings, open_session
from asyncmig.cli.decisions import DecisionFlags, ask_decision, sent_text
from asyncmig.cli.last_run import LastRun
from asyncmig.cli.output import SCHEMA, clean, counted, failure_line, print_line, say
from asyncmig.cli.settings import about_journal
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.outcome import Parked
from asyncmig.customers.preview_page import preview_page
from asyncmig.customers.previews import PreviewSheet
from asyncmig.customers.questions import Action, AttentionKind, CredentialRequest, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = ["Reviewer", "describe", "parked_records", "print_all"]

_SAMPLES = 5
"""The most samples of values, and reasons of flagged cells, that are printed."""


async def parked_records(journal: JournalPlace, external_ids: Sequence[str] = ()) -> list[CustomerRecord]:
    """Return the parked customers of a journal, sorted by external id, or those that are named, in that order.

    Raises `InvalidInput` for a named customer that is not parked, `JournalError`.
    """
    external_ids = [each.strip() for each in external_ids]
    async with open_journal(journal, read_only=True) as opened:
        records = await read_records(opened)
    for external_id in external_ids:
        if external_id not in records:
            raise InvalidInput("EXTERNAL_ID", external_id, f"is not in the journal {journal}")
        if not isinstance(records[external_id].outcome, Parked):
            raise InvalidInput("EXTERNAL_ID", external_id, "is not parked: there is nothing to decide")
    wanted = external_ids or sorted(records)
    return [records[name] for name in dict.fromkeys(wanted) if isinstance(records[name].outcome, Parked)]


def print_all(
    data: Console,
    records: Sequence[CustomerRecord],
    journal: JournalPlace,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print what parked customers ask, and the commands that decide. `out`: the folder with their previews."""
    for record in records:
        attention = _attention(record)
        if as_json:
            whose = {"external_id": record.external_id, "ids": dict(record.ids)}
            asked = {"is_destructive": attention.is_destructive, "attention": attention}
            print_line({"schema": SCHEMA, **whose, **asked})
            continue
        _print_parked(data, record, attention, out)
        say(data, f"\n  {_TO_DECIDE[attention.kind]}:")
        for options in _ways(attention):
            say(data, f"    {about_journal(journal, 'review', record.external_id, *options)}", wrap=False)


def _print_parked(
    console: Console,
    record: CustomerRecord,
    attention: NeedsAttention,
    out: Path | None,
    *,
    place: str = "",
) -> None:
    """Print what a parked run waits for. `out`: as in `print_all`. `place`: printed first, such as `[1 of 3] `."""
    head = f"\n{place}{record.external_id}  {clean(record.name, 100)}: {_title(attention)}"
    say(console, head, "bold")
    sheets, is_patch, page = record.sheets, attention.kind == "patch", preview_page(out, record.external_id)
    for question in attention.questions:
        for line in _question(question, sheets, shows_ids=is_patch):
            say(console, f"  {line}".rstrip())
    lines = _proposal(attention, sheets) if is_patch else ((line, False) for line in _wanted(attention, page))
    for line, destroys in lines:
        say(console, f"  {line}".rstrip(), "red" if destroys else "")


def _title(attention: NeedsAttention) -> str:
    match attention.kind:
        case "credentials":
            return "waits for credentials"
        case "preview":
            return "waits for the approval of its preview"
        case _:
            return counted(len(attention.questions), "question")


def _wanted(attention: NeedsAttention, page: Path | None) -> Iterator[str]:
    """Yield lines about what a run waits for besides answers."""
    if attention.kind == "questions" and not attention.questions:
        why = attention.reason or "the server does not say why"
        yield ""
        yield f"It waits, and shows no question ({clean(why, 300)}): cancel the run, or ask the provider."
    if attention.kind == "credentials":
        yield from _credentials(attention.credentials or CredentialRequest())
    if attention.preview is not None:
        yield ""
        for sheet in attention.preview.sheets:
            yield from _sheet(sheet)
        if not attention.preview.sheets:
            yield "The preview has no sheet."
        if page is not None:
            yield f"All of it: {page}"


def _credentials(request: CredentialRequest) -> Iterator[str]:
    yield ""
    name = request.source_name or request.source_key or "the source"
    yield f"for {clean(name, 100)}{_because(request.reason)}"
    if request.fields:
        yield f"  fields: {', '.join(clean(field, 60) for field in request.fields)}"
    if (guidance := request.guidance) is None:
        return
    if guidance.summary:
        yield f"  {clean(guidance.summary, 500)}"
    for number, step in enumerate(guidance.steps, 1):
        yield f"  {number}. {clean(step, 500)}"
    for link in guidance.links:
        yield f"  {clean(link.label or 'see', 100)}: {clean(link.url or '', 500)}"


def _sheet(sheet: PreviewSheet) -> Iterator[str]:
    name = clean(sheet.sheet.name or sheet.sheet.id, 100)
    flagged = sheet.invalid_cells
    yield f"{name}: {counted(len(sheet.rows), 'row')} in the sample, {counted(len(flagged), 'flagged cell')}"
    reasons = Counter((cell.column or "", cell.reason or "flagged, without a reason") for cell in flagged)
    for (column, reason), count in reasons.most_common(_SAMPLES):
        yield f"  {clean(column, 60)}{': ' if column else ''}{clean(reason, 200)} ({counted(count, 'cell')})"
    if len(reasons) > _SAMPLES:
        yield f"  and {counted(len(reasons) - _SAMPLES, 'other reason')}"


def describe(action: Action, sheets: Mapping[str, str] | None = None) -> str:
    """Return what an action does, in the server's words. `sheets`: names of sheets by id."""
    sheet = (sheets or {}).get(action.sheet_id or "", action.sheet_id if sheets is not None else None)
    where = [clean(part, 60) for part in (sheet, action.column) if part]
    key = f" by {clean(action.key_column, 60)}" if action.key_column else ""
    value = f" = {clean(action.value, 60)!r}" if action.value is not None else ""
    name = clean(action.action or "an action without a name", 60)
    return f"{name}{' on ' if where else ''}{' · '.join(where)}{key}{value}"


def _question(question: Question, sheets: Mapping[str, str], *, shows_ids: bool) -> Iterator[str]:
    target = question.target
    where = ""
    if target is not None:
        parts = (sheets.get(target.sheet_id or "", target.sheet_id), target.column)
        where = " · ".join(clean(part, 60) for part in parts if part)
    yield ""
    yield f"{clean(question.id, 40)}  {where}{': ' if where else ''}{clean(question.prompt or '(no text)', 500)}"
    if question.context:
        yield f"    {clean(question.context, 500)}"
    if target is not None:
        if target.affected_count is not None:
            yield f"    affects {counted(target.affected_count, 'row')}{_because(target.error)}"
        if target.sample_values:
            samples = ", ".join(repr(clean(value, 60)) for value in target.sample_values[:_SAMPLES])
            more = len(target.sample_values) - _SAMPLES
            yield f"    for example {samples}{f' and {more} more' if more > 0 else ''}"
    for number, option in enumerate(question.options, 1):
        label = clean(option.label or "", 200)
        named = f"{clean(option.id, 60)}  {label}" if shows_ids or not label else label
        yield f"    {number}) {named}".rstrip()
    if question.allow_custom and (question.options or shows_ids):
        yield "    or your own text"
    elif not question.options and not shows_ids:
        yield "    in your own words"


def _because(error: str | None) -> str:
    return f": {clean(error, 200)}" if error else ""


def _proposal(attention: NeedsAttention, sheets: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    patch = attention.proposed_patch
    yield "", False
    if patch is None:
        yield "The server's proposal cannot be read: the effect of an approval is unknown.", True
        return
    yield f"Proposed: {clean(patch.summary or 'without a summary', 500)}", False
    for action in patch.actions:
        mark = "!" if action.is_destructive else " "
        note = "   (destroys rows, or may)" if action.is_destructive else ""
        yield f"  {mark} {describe(action, sheets)}{note}", action.is_destructive


_TO_DECIDE: Mapping[AttentionKind, str] = {
    "patch": "To approve it as proposed, to answer, or to reject it",
    "questions": "To answer, or to cancel the run",
    "credentials": "To send them, or to cancel the run",
    "preview": "To import it, to change something first, or to cancel the run",
}


def _ways(attention: NeedsAttention) -> Iterator[Sequence[str]]:
    """Yield the options of each command that decides."""
    answers: list[str] = []
    for question in attention.questions:
        example = sent_text(question.options[0], attention.kind) if question.options else "TEXT"
        answers += ["--answer", f"{question.id}={example}"]
    match attention.kind:
        case "questions":
            if answers:
                yield answers
            yield ["--cancel"]
        case "credentials":
            yield ["--credentials", "VARIABLE"]
            yield ["--cancel"]
        case "preview":
            yield ["--approve"]
            yield ["--change", "MESSAGE"]
            yield ["--cancel"]
        case _:
            destroys = ["--allow-destructive"] if attention.is_destructive else []
            yield ["--approve", *destroys]
            if answers:
                yield ["--approve", *destroys, *answers[:2]]
            yield ["--reject"]


_DONE: Mapping[type[Decision], str] = {
    Answer: "answered",
    Approve: "approved",
    Cancel: "its run is canceled",
    Change: "the change is requested",
    Credentials: "the credentials are sent",
    Reject: "rejected",
}
_AFTER: Mapping[str, str] = {
    "recorded": "The next run of the command continues the decided customers.",
    "continues": "The server continues the decided runs.",
    "gone": "The next run of the command reads what became of the runs that ask nothing any more.",
    "ends": "The next run of the command records the customers of canceled and rejected runs as failed; "
    "asyncmig retry begins new runs.",
}
"""What becomes of decided customers."""


@final
@dataclass(slots=True)
class Reviewer:
    """Shows parked customers one by one, and sends the decisions. `out`: the folder with their previews."""

    journal: JournalPlace
    reach: ConnectionSettings
    flags: DecisionFlags
    words: Console
    out: Path | None
    decided: dict[str, str] = field(default_factory=dict[str, str], init=False)
    """The customers that wait for nothing any more, and what becomes of each: a key of `_AFTER`."""
    left: list[str] = field(default_factory=list[str], init=False)
    """Customers that are still parked."""
    _explained: set[AttentionKind] = field(default_factory=set[AttentionKind], init=False)

    async def run(self, records: Sequence[CustomerRecord]) -> None:
        """Decide about each customer. Raises `InvalidInput`, `JournalError` and the errors of requests."""
        async with (
            open_journal(self.journal) as journal,
            open_session(self.reach, self.journal) as session,
        ):
            with session.events.subscribe(self._print_failure):
                for number, record in enumerate(records, 1):
                    if not await self._review(session, journal, record, f"[{number} of {len(records)}] "):
                        self.left += [left.external_id for left in records[number - 1 :]]
                        return

    def next_steps(self, last: LastRun | None, *, wait: bool) -> Iterator[str]:
        """Yield what can be done after the review, with commands.

        `last`: the last run of the journal, if known. `wait`: it is now repeated for the decided customers.
        """
        if self.left:
            yield f"Still parked: {', '.join(self.left)}. To decide later:"
            yield f"  {about_journal(self.journal, 'review', *self.left)}"
        if wait or not self.decided:
            return
        what = " ".join(words for each, words in _AFTER.items() if each in self.decided.values())
        if last is None:
            yield f"{what} To continue here, run the program that wrote the journal again."
        else:
            yield f"{what} To continue here:"
            yield f"  {last.command()}"

    def _print_failure(self, event: Event) -> None:
        """Print that a request failed and is repeated, because a person waits for it."""
        if isinstance(event, AttemptFailed):
            say(self.words, failure_line(event), "yellow")

    async def _review(
        self, session: Session, journal: DatabaseJournal, record: CustomerRecord, place: str
    ) -> bool:
        """Decide about one customer; return False to end the review."""
        generation = generations.find(record.api)
        context = context_of(session)
        shown: NeedsAttention | None = _attention(record)
        if not self.flags.given:
            await self._warn_of_doubt(journal, record)
            shown = await generation.questions(context, record)
        while shown is not None:
            decision = self.flags.decision(shown) if self.flags.given else self._ask(record, shown, place)
            if isinstance(decision, str):
                if decision == "skip":
                    self.left.append(record.external_id)
                return decision == "skip"
            sent = await generation.decide(
                context,
                journal,
                record.external_id,
                decision,
                shown=shown,
                allow_destructive=self.flags.allow_destructive,
            )
            if sent in ("sent", "recorded"):
                goes_on = "ends" if isinstance(decision, Cancel | Reject) else "continues"
                self.decided[record.external_id] = "recorded" if sent == "recorded" else goes_on
                say(self.words, f"{record.external_id}: {_DONE[type(decision)]}.", "green")
                return True
            if sent == "gone":
                break
            self._tell_changed(record)
            shown = await generation.questions(context, record)
        self.decided[record.external_id] = "gone"
        reason = "someone else has decided, or its run has ended"
        say(self.words, f"{record.external_id}: the run asks nothing any more: {reason}.", "yellow")
        return True

    def _ask(self, record: CustomerRecord, shown: NeedsAttention, place: str) -> "Decision | str":
        _print_parked(self.words, record, shown, self.out, place=place)
        explain = shown.kind not in self._explained
        self._explained.add(shown.kind)
        return ask_decision(
            self.words,
            shown,
            about_journal(self.journal, "review", record.external_id, *next(_ways(shown))),
            allow_destructive=self.flags.allow_destructive,
            explain=explain,
        )

    def _tell_changed(self, record: CustomerRecord) -> None:
        words = "the questions have changed since they were shown: nothing was sent"
        if self.flags.given:
            raise InvalidInput("EXTERNAL_ID", record.external_id, f"{words}; review it again")
        say(self.words, f"{record.external_id}: {words}.", "yellow")

    async def _warn_of_doubt(self, journal: DatabaseJournal, record: CustomerRecord) -> None:
        events = await journal.events(record.external_id)
        if events and events[-1].kind == "decide":
            say(
                self.words,
                f"{record.external_id}: a decision was sent at {events[-1].at}, and the response was lost. "
                "These are the run's present questions.",
                "yellow",
            )


def _attention(record: CustomerRecord) -> NeedsAttention:
    assert isinstance(record.outcome, Parked)
    return record.outcome.attention
