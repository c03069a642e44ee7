"""`asyncmig review`: show what parked imports ask, and send a person's decisions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer
from rich.console import Console

from asyncmig import generations
from asyncmig.cli.connection import ConnectionSettings, open_session
from asyncmig.cli.last_run import LastRun
from asyncmig.cli.output import SCHEMA, failure_line, print_line, say
from asyncmig.cli.parked import print_parked
from asyncmig.cli.prompts import ask_decision, from_variable, option_of
from asyncmig.cli.settings import about_journal
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.outcome import Parked
from asyncmig.customers.preview_page import preview_page
from asyncmig.customers.questions import AttentionKind, Custom, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = ["DecisionFlags", "Reviewer", "parked_records", "print_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFlags:
    """The decision that the command line gives; without one, a person at the terminal decides."""

    approve: Annotated[
        bool, typer.Option("--approve", help="Approve the server's proposal, or the preview.")
    ] = False
    reject: Annotated[
        bool, typer.Option("--reject", help="Reject the proposal: the customer ends as failed.")
    ] = False
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUESTION=OPTION",
            help="The answer to one question: an option's number, label or id, or your own text. Repeatable. With "
            "--api companies, also give --approve.",
        ),
    ] = None
    change: Annotated[
        str | None,
        typer.Option(metavar="MESSAGE", help="What to change in the preview, in your own words."),
    ] = None
    credentials: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="The credentials that the run waits for: an environment variable that holds a JSON object.",
        ),
    ] = None
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="Cancel the run: the customer ends as failed, and `retry` begins a new run."
        ),
    ] = False
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Permit an approval that destroys rows, or that may.")
    ] = False

    @property
    def _given(self) -> list[str]:
        names = ("approve", "reject", "answer", "change", "credentials", "cancel")
        return [f"--{name}" for name in names if getattr(self, name)]

    @property
    def is_given(self) -> bool:
        """Whether the command line decides."""
        return bool(self._given)

    def check(self, external_ids: Sequence[str]) -> None:
        """Raise `InvalidInput` for options that contradict each other, and for a decision without customers."""
        given = self._given
        if len(given) > 1 and given != ["--approve", "--answer"]:
            raise InvalidInput(given[1], True, f"cannot be combined with {given[0]}")
        if given and not external_ids:
            raise InvalidInput("EXTERNAL_ID", "", "is missing: name the customers to decide about")

    def decision(self, shown: NeedsAttention) -> Decision:
        """Return the decision about a run. Raises `InvalidInput` for one that does not fit what was `shown`."""
        if self.reject:
            return Reject()
        if self.cancel:
            return Cancel()
        fitting = _FITTING[shown.kind]
        if unfit := next((name for name in self._given if name not in fitting), None):
            ways = ", ".join(fitting)
            raise InvalidInput(unfit, True, f"does not fit: {_WAITS[shown.kind]}. Give one of {ways}")
        if self.change is not None:
            return Change(self.change)
        if self.credentials is not None:
            return Credentials(from_variable(self.credentials, shown.credentials))
        if self.answer and shown.kind == "questions":
            return Answer(dict(_answer(each, shown) for each in self.answer))
        if not self.approve:
            raise InvalidInput("--answer", (self.answer or [""])[0], "requires --approve")
        if shown.is_destructive and not self.allow_destructive:
            reason = "requires --allow-destructive, because the proposal destroys rows, or may"
            raise InvalidInput("--approve", True, reason)
        return Approve(dict(_answer(each, shown) for each in self.answer or ()) or None)


_FITTING: Mapping[AttentionKind, tuple[str, ...]] = {
    "patch": ("--approve", "--answer", "--reject"),
    "questions": ("--answer", "--cancel", "--reject"),
    "credentials": ("--credentials", "--cancel", "--reject"),
    "preview": ("--approve", "--change", "--cancel", "--reject"),
}
"""The options that fit what a run waits for."""
_WAITS: Mapping[AttentionKind, str] = {
    "patch": "the run proposes a patch",
    "questions": "the run asks questions",
    "credentials": "the run waits for credentials",
    "preview": "the run waits for the approval of its preview",
}


def _answer(text: str, shown: NeedsAttention) -> tuple[str, str | Custom]:
    name, equals, choice = text.partition("=")
    if not equals:
        raise InvalidInput("--answer", text, "must look like QUESTION=OPTION")
    for question in shown.questions:
        if question.id != name:
            continue
        if (option := option_of(question, choice)) is not None:
            return name, option.id if shown.kind == "patch" else option.label or option.id
        if question.allow_custom or (shown.kind == "questions" and not question.options):
            return name, Custom(choice)
    return name, choice


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
        print_parked(data, record, attention, page=preview_page(out, record.external_id))
        say(data, f"\n  {_TO_DECIDE[attention.kind]}:")
        for options in _ways(attention):
            say(data, f"    {about_journal(journal, 'review', record.external_id, *options)}", wrap=False)


_TO_DECIDE: Mapping[AttentionKind, str] = {
    "patch": "To approve it as proposed, to answer, or to reject it",
    "questions": "To answer, or to cancel the run",
    "credentials": "To send them, or to cancel the run",
    "preview": "To import it, to change something first, or to cancel the run",
}


def _ways(attention: NeedsAttention) -> Iterator[Sequence[str]]:
    """Yield the options of each command that decides."""
    answers = [
        word
        for question in attention.questions
        for word in ("--answer", f"{question.id}={_example(question, attention.kind)}")
    ]
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


def _approval(journal: JournalPlace, record: CustomerRecord) -> str:
    """Return the command that approves the proposal for a customer."""
    return about_journal(journal, "review", record.external_id, *next(iter(_ways(_attention(record)))))


def _example(question: Question, kind: AttentionKind) -> str:
    if not question.options:
        return "TEXT"
    first = question.options[0]
    return first.id if kind == "patch" else first.label or first.id


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
    "ends": "The next run of the command records the customers whose runs were canceled or rejected as failed; "
    "asyncmig retry begins new runs.",
}
"""What becomes of decided customers."""


@final
class Reviewer:
    """Shows parked customers one by one, and sends the decisions about them."""

    __slots__ = (
        "_explained",
        "_flags",
        "_journal",
        "_out",
        "_reach",
        "_words",
        "decided",
        "left",
    )

    def __init__(
        self,
        journal: JournalPlace,
        reach: ConnectionSettings,
        flags: DecisionFlags,
        words: Console,
        out: Path | None,
    ) -> None:
        self._journal, self._reach, self._flags, self._words = journal, reach, flags, words
        self._out = out
        self._explained = set[AttentionKind]()
        self.decided: dict[str, str] = {}
        """The customers that wait for nothing any more, and what becomes of each: a key of `_AFTER`."""
        self.left: list[str] = []
        """Customers that are still parked."""

    async def run(self, records: Sequence[CustomerRecord]) -> None:
        """Decide about each customer. Raises `InvalidInput`, `JournalError` and the errors of requests."""
        async with (
            open_journal(self._journal) as journal,
            open_session(self._reach, self._journal) as session,
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
            yield f"  {about_journal(self._journal, 'review', *self.left)}"
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
            say(self._words, failure_line(event), "yellow")

    async def _review(
        self, session: Session, journal: DatabaseJournal, record: CustomerRecord, place: str
    ) -> bool:
        """Decide about one customer; return False to end the review."""
        generation = generations.find(record.api)
        context = context_of(session)
        shown: NeedsAttention | None = _attention(record)
        if not self._flags.is_given:
            await self._warn_of_doubt(journal, record)
            shown = await generation.questions(context, record)
        while shown is not None:
            decision = (
                self._flags.decision(shown) if self._flags.is_given else self._ask(record, shown, place)
            )
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
                allow_destructive=self._flags.allow_destructive,
            )
            if sent in ("sent", "recorded"):
                goes_on = "ends" if isinstance(decision, Cancel | Reject) else "continues"
                self.decided[record.external_id] = "recorded" if sent == "recorded" else goes_on
                say(self._words, f"{record.external_id}: {_DONE[type(decision)]}.", "green")
                return True
            if sent == "gone":
                break
            self._tell_changed(record)
            shown = await generation.questions(context, record)
        self.decided[record.external_id] = "continues"
        reason = "someone else has decided, or its run has ended"
        say(self._words, f"{record.external_id}: the run asks nothing any more: {reason}.", "yellow")
        return True

    def _ask(self, record: CustomerRecord, shown: NeedsAttention, place: str) -> "Decision | str":
        print_parked(
            self._words, record, shown, place=place, page=preview_page(self._out, record.external_id)
        )
        explain = shown.kind not in self._explained
        self._explained.add(shown.kind)
        return ask_decision(
            self._words,
            shown,
            _approval(self._journal, record),
            allow_destructive=self._flags.allow_destructive,
            explain=explain,
        )

    def _tell_changed(self, record: CustomerRecord) -> None:
        words = "the questions have changed since they were shown: nothing was sent"
        if self._flags.is_given:
            raise InvalidInput("EXTERNAL_ID", record.external_id, f"{words}; review it again")
        say(self._words, f"{record.external_id}: {words}.", "yellow")

    async def _warn_of_doubt(self, journal: DatabaseJournal, record: CustomerRecord) -> None:
        events = await journal.events(record.external_id)
        if events and events[-1].kind == "decide":
            say(
                self._words,
                f"{record.external_id}: a decision was sent at {events[-1].at}, and the response was lost. "
                "These are the run's present questions.",
                "yellow",
            )


def _attention(record: CustomerRecord) -> NeedsAttention:
    assert isinstance(record.outcome, Parked)
    return record.outcome.attention
