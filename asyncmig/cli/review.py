"""`asyncmig review`: show what parked imports ask, and send the decisions of a person."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import typer
from rich.console import Console

from asyncmig import generations
from asyncmig.cli.live_view import failure_line
from asyncmig.cli.output import SCHEMA, clean, counted, print_line, say
from asyncmig.cli.settings import ConnectionSettings, open_session
from asyncmig.customers.decisions import Approve, Decision, Reject
from asyncmig.customers.outcome import Parked
from asyncmig.customers.questions import Action, Custom, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = [
    "DecisionFlags",
    "Reviewer",
    "ask_decision",
    "describe",
    "parked_records",
    "print_all",
    "print_parked",
]


_SAMPLES = 5


def print_parked(
    console: Console, record: CustomerRecord, attention: NeedsAttention, *, place: str = ""
) -> None:
    """Print all that there is to know for a decision."""
    count = counted(len(attention.questions), "question")
    say(console, f"\n{place}{record.external_id}  {clean(record.name, 100)}: {count}", "bold")
    sheets = record.sheets
    for question in attention.questions:
        for line in _question(question, sheets):
            say(console, f"  {line}".rstrip())
    for line, destroys in _proposal(attention, sheets):
        say(console, f"  {line}".rstrip(), "red" if destroys else "")


def describe(action: Action, sheets: Mapping[str, str] | None = None) -> str:
    """Return what an action does, in the server's words; sheets are named by `sheets` where it knows them."""
    sheet = (sheets or {}).get(action.sheet_id or "", action.sheet_id if sheets is not None else None)
    where = [clean(part, 60) for part in (sheet, action.column) if part]
    key = f" by {clean(action.key_column, 60)}" if action.key_column else ""
    value = f" = {clean(action.value, 60)!r}" if action.value is not None else ""
    name = clean(action.action or "an action without a name", 60)
    return f"{name}{' on ' if where else ''}{' · '.join(where)}{key}{value}"


def _question(question: Question, sheets: Mapping[str, str]) -> Iterator[str]:
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
            yield f"    concerns {counted(target.affected_count, 'row')}{_because(target.error)}"
        if target.sample_values:
            samples = ", ".join(repr(clean(value, 60)) for value in target.sample_values[:_SAMPLES])
            more = len(target.sample_values) - _SAMPLES
            yield f"    for example {samples}{f' and {more} more' if more > 0 else ''}"
    for number, option in enumerate(question.options, 1):
        yield f"    {number}) {clean(option.id, 60)}  {clean(option.label or '', 200)}".rstrip()
    if question.allow_custom:
        yield "    or your own words"


def _because(error: str | None) -> str:
    return f": {clean(error, 200)}" if error else ""


def _proposal(attention: NeedsAttention, sheets: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    patch = attention.proposed_patch
    yield "", False
    if patch is None:
        yield "The server proposes nothing that can be read: what an approval does, nobody knows.", True
        return
    yield f"Proposed: {clean(patch.summary or 'without a summary', 500)}", False
    for action in patch.actions:
        mark = "!" if action.is_destructive else " "
        note = "   (destroys rows, or may)" if action.is_destructive else ""
        yield f"  {mark} {describe(action, sheets)}{note}", action.is_destructive


_APPROVE, _CHOOSE = "[a]pprove as proposed", "[c]hoose answers"
_OTHERS = ("[r]eject", "[s]kip", "[q]uit")
_SURE = "This destroys rows, or may. Type yes to send it: "


def ask_decision(
    words: Console, shown: NeedsAttention, *, allow_destructive: bool
) -> Decision | Literal["skip", "quit"]:
    """Ask what to do about a parked run. Ctrl-C and the end of the input are `quit`."""
    may_approve = allow_destructive or not shown.is_destructive
    if not may_approve:
        say(
            words,
            "\nThis destroys rows, or may: it can only be approved with --allow-destructive.",
            "yellow",
        )
    approvals = (_APPROVE, *([_CHOOSE] if shown.questions else [])) if may_approve else ()
    prompt = f"\n{', '.join((*approvals, *_OTHERS))}: "
    try:
        while True:
            key = _ask(prompt)[:1].lower()
            if key == "r":
                return Reject()
            if key in ("s", "q"):
                return "skip" if key == "s" else "quit"
            if may_approve and (key == "a" or (key == "c" and shown.questions)):
                decision = Approve(_choices(words, shown) if key == "c" else None)
                if not shown.is_destructive or _ask(_SURE) == "yes":
                    return decision
    except (EOFError, KeyboardInterrupt):
        say(words, "")
        return "quit"


def _choices(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; what is not answered is left to the server."""
    answers = {question.id: _choice(words, question) for question in shown.questions}
    return {name: choice for name, choice in answers.items() if choice is not None} or None


def _choice(words: Console, question: Question) -> str | Custom | None:
    ways = [f"1 to {len(question.options)}"] if question.options else []
    ways += ["your own words"] if question.allow_custom else []
    prompt = f"{clean(question.id, 40)} ({', '.join([*ways, 'Enter leaves it to the server'])}): "
    while True:
        text = _ask(prompt)
        if not text:
            return None
        option = _option(question, text)
        if option is not None:
            return option
        if question.allow_custom:
            return Custom(text)
        say(words, f"There is no {clean(text)!r}.", "yellow")


def _option(question: Question, text: str) -> str | None:
    """Return the option that a number or an id names."""
    ids = [option.id for option in question.options]
    if text in ids:
        return text
    return ids[int(text) - 1] if text.isdecimal() and 0 < int(text) <= len(ids) else None


def _ask(prompt: str) -> str:
    """Return a line that was typed. Raises `EOFError`, `KeyboardInterrupt`.

    The loop stands still meanwhile: nothing else is under way. Its own handler of Ctrl-C would wait for the line.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt).strip()
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFlags:
    """What the command line decides; neither of both leaves it to whoever sits at the terminal."""

    approve: Annotated[bool, typer.Option("--approve", help="Approve what is proposed.")] = False
    reject: Annotated[bool, typer.Option("--reject", help="Reject it: the import ends as failed.")] = False
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUESTION=OPTION",
            help="With --approve: the answer to one question, an option's id or your own words; repeatable.",
        ),
    ] = None
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Let an approval be sent that destroys rows, or may.")
    ] = False

    @property
    def is_given(self) -> bool:
        """Whether something is decided."""
        return self.approve or self.reject

    def check(self, external_ids: Sequence[str]) -> None:
        """Raise `InvalidInput` for what contradicts itself, and for a decision about nobody."""
        if self.approve and self.reject:
            raise InvalidInput("--reject", True, "cannot be said together with --approve")
        if self.answer and not self.approve:
            raise InvalidInput("--answer", self.answer[0], "is said together with --approve")
        if self.is_given and not external_ids:
            raise InvalidInput("EXTERNAL_ID", "", "is missing: name the customers that this is decided for")

    def decision(self, shown: NeedsAttention) -> Decision:
        """Return the decision about a run. Raises `InvalidInput` for an answer to what was not asked."""
        if self.reject:
            return Reject()
        if shown.is_destructive and not self.allow_destructive:
            reason = "what is proposed destroys rows, or may: --allow-destructive is needed"
            raise InvalidInput("--approve", True, reason)
        return Approve(dict(_answer(each, shown) for each in self.answer or ()) or None)


def _answer(text: str, shown: NeedsAttention) -> tuple[str, str | Custom]:
    name, equals, choice = text.partition("=")
    if not equals:
        raise InvalidInput("--answer", text, "must look like QUESTION=OPTION")
    for question in shown.questions:
        is_option = choice in [option.id for option in question.options]
        if question.id == name and not is_option and question.allow_custom:
            return name, Custom(choice)
    return name, choice


async def parked_records(journal: JournalPlace, external_ids: Sequence[str] = ()) -> list[CustomerRecord]:
    """Return the parked customers of a journal by external id, or those that are named, in their order.

    Raises `InvalidInput` for one that is named and not parked, `JournalError`.
    """
    external_ids = [each.strip() for each in external_ids]
    async with open_journal(journal, read_only=True) as opened:
        records = await read_records(opened, str(journal))
    for external_id in external_ids:
        if external_id not in records:
            raise InvalidInput("EXTERNAL_ID", external_id, f"is not in the journal {journal}")
        if not isinstance(records[external_id].outcome, Parked):
            raise InvalidInput("EXTERNAL_ID", external_id, "is not parked: there is nothing to decide")
    wanted = external_ids or sorted(records)
    return [records[name] for name in dict.fromkeys(wanted) if isinstance(records[name].outcome, Parked)]


def print_all(data: Console, records: Sequence[CustomerRecord], *, as_json: bool) -> None:
    """Print what the journal knows of parked customers."""
    for record in records:
        attention = _attention(record)
        if as_json:
            whose = {"external_id": record.external_id, "ids": dict(record.ids)}
            asked = {"is_destructive": attention.is_destructive, "attention": attention}
            print_line({"schema": SCHEMA, **whose, **asked})
        else:
            print_parked(data, record, attention)


@final
class Reviewer:
    """Takes parked customers one by one."""

    __slots__ = ("_asked", "_journal", "_reach", "_verdict", "_words", "decided", "left")

    def __init__(
        self, journal: JournalPlace, reach: ConnectionSettings, verdict: DecisionFlags, words: Console
    ) -> None:
        self._journal, self._reach, self._verdict, self._words = journal, reach, verdict, words
        self.decided: list[str] = []
        """Customers whose imports go on."""
        self.left: list[str] = []
        """Customers that are still parked."""

    async def run(self, records: Sequence[CustomerRecord]) -> None:
        """Decide about each. Raises `InvalidInput`, `JournalError` and the errors of requests."""
        async with (
            open_journal(self._journal) as journal,
            open_session(self._reach, self._journal) as session,
        ):
            with session.events.subscribe(self._tell_failure):
                for number, record in enumerate(records, 1):
                    if not await self._one(session, journal, record, f"[{number} of {len(records)}] "):
                        self.left += [left.external_id for left in records[number - 1 :]]
                        return

    def _tell_failure(self, event: Event) -> None:
        """Say that a request failed and is repeated: somebody sits there and waits."""
        if isinstance(event, AttemptFailed):
            say(self._words, failure_line(event), "yellow")

    async def _one(
        self, session: Session, journal: DatabaseJournal, record: CustomerRecord, place: str
    ) -> bool:
        """Take one customer; return False to end the review."""
        generation = generations.find(record.api)
        shown: NeedsAttention | None = _attention(record)
        if not self._verdict.is_given:
            await self._warn_of_doubt(journal, record)
            shown = await generation.questions(context_of(session), record)
        while shown is not None:
            decision = (
                self._verdict.decision(shown) if self._verdict.is_given else self._ask(record, shown, place)
            )
            if not isinstance(decision, Decision):
                if decision == "skip":
                    self.left.append(record.external_id)
                return decision == "skip"
            sent = await generation.decide(
                context_of(session),
                journal,
                record.external_id,
                decision,
                shown=shown,
                allow_destructive=self._verdict.allow_destructive,
            )
            if sent != "changed":
                self._tell(record, decision, gone=sent == "gone")
                return True
            self._changed(record)
            shown = await generation.questions(context_of(session), record)
        self._tell(record, None, gone=True)
        return True

    def _ask(self, record: CustomerRecord, shown: NeedsAttention, place: str) -> "Decision | str":
        print_parked(self._words, record, shown, place=place)
        return ask_decision(self._words, shown, allow_destructive=self._verdict.allow_destructive)

    def _changed(self, record: CustomerRecord) -> None:
        words = "asks something else by now than what was shown: nothing was sent"
        if self._verdict.is_given:
            raise InvalidInput("EXTERNAL_ID", record.external_id, f"{words}; look at it again")
        say(self._words, f"{record.external_id} {words}.", "yellow")

    def _tell(self, record: CustomerRecord, decision: Decision | None, *, gone: bool) -> None:
        self.decided.append(record.external_id)
        if gone or decision is None:
            say(
                self._words,
                f"{record.external_id}: asks nothing any more: somebody else has decided, or its run has ended.",
                "yellow",
            )
        else:
            word = "approved" if isinstance(decision, Approve) else "rejected"
            say(self._words, f"{record.external_id}: {word}.", "green")

    async def _warn_of_doubt(self, journal: DatabaseJournal, record: CustomerRecord) -> None:
        events = await journal.events(record.external_id)
        if events and events[-1].kind == "decide":
            say(
                self._words,
                f"{record.external_id}: a decision was sent at {events[-1].at}, and its answer never came. "
                "What follows is what the run asks now.",
                "yellow",
            )


def _attention(record: CustomerRecord) -> NeedsAttention:
    assert isinstance(record.outcome, Parked)
    return record.outcome.attention
