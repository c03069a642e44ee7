"""`asyncmig review`: show what parked imports ask, and send a person's decisions."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import typer
from rich.console import Console

from asyncmig import generations
from asyncmig.cli.connection import ConnectionSettings, open_session
from asyncmig.cli.last_run import LastRun
from asyncmig.cli.live_view import failure_line
from asyncmig.cli.output import SCHEMA, print_line, say
from asyncmig.cli.parked import print_parked
from asyncmig.cli.prompts import ask_decision
from asyncmig.cli.settings import about_journal
from asyncmig.customers.decisions import Approve, Decision, Reject
from asyncmig.customers.outcome import Parked
from asyncmig.customers.questions import Custom, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = [
    "DecisionFlags",
    "Reviewer",
    "parked_records",
    "print_all",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFlags:
    """The decision that the command line gives; without `approve` and `reject`, a person at the terminal decides."""

    approve: Annotated[bool, typer.Option("--approve", help="Approve the server's proposal.")] = False
    reject: Annotated[
        bool, typer.Option("--reject", help="Reject the proposal: the import ends as failed.")
    ] = False
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUESTION=OPTION",
            help="With --approve: the answer to one question, an option's id or your own text. Repeatable.",
        ),
    ] = None
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Permit an approval that destroys rows, or may.")
    ] = False

    @property
    def is_given(self) -> bool:
        """Whether the command line decides."""
        return self.approve or self.reject

    def check(self, external_ids: Sequence[str]) -> None:
        """Raise `InvalidInput` for options that contradict each other, and for a decision without customers."""
        if self.approve and self.reject:
            raise InvalidInput("--reject", True, "cannot be combined with --approve")
        if self.answer and not self.approve:
            raise InvalidInput("--answer", self.answer[0], "requires --approve")
        if self.is_given and not external_ids:
            raise InvalidInput("EXTERNAL_ID", "", "is missing: name the customers to decide about")

    def decision(self, shown: NeedsAttention) -> Decision:
        """Return the decision about a run. Raises `InvalidInput` for an answer without a question."""
        if self.reject:
            return Reject()
        if shown.is_destructive and not self.allow_destructive:
            reason = "the proposal destroys rows, or may: --allow-destructive is needed"
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
    """Return the parked customers of a journal, sorted by external id, or those that are named, in that order.

    Raises `InvalidInput` for a named customer that is not parked, `JournalError`.
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


def print_all(
    data: Console, records: Sequence[CustomerRecord], journal: JournalPlace, *, as_json: bool
) -> None:
    """Print what parked customers ask, and the commands that decide."""
    for record in records:
        attention = _attention(record)
        if as_json:
            whose = {"external_id": record.external_id, "ids": dict(record.ids)}
            asked = {"is_destructive": attention.is_destructive, "attention": attention}
            print_line({"schema": SCHEMA, **whose, **asked})
            continue
        print_parked(data, record, attention)
        say(data, "\n  To approve it as proposed, to answer, or to reject it:")
        approve = _approval(journal, record)
        answer = (
            f"{attention.questions[0].id}={_example(attention.questions[0])}" if attention.questions else ""
        )
        commands = [approve, f"{approve} --answer {shlex.quote(answer)}" if answer else ""]
        for command in (*commands, about_journal(journal, "review", record.external_id, "--reject")):
            if command:
                say(data, f"    {command}", wrap=False)


def _approval(journal: JournalPlace, record: CustomerRecord) -> str:
    """Return the command that approves the proposal for a customer."""
    destroys = ("--allow-destructive",) if _attention(record).is_destructive else ()
    return about_journal(journal, "review", record.external_id, "--approve", *destroys)


def _example(question: Question) -> str:
    return question.options[0].id if question.options else "TEXT"


@final
class Reviewer:
    """Shows parked customers one by one, and sends the decisions about them."""

    __slots__ = ("_flags", "_is_explained", "_journal", "_reach", "_words", "decided", "left")

    def __init__(
        self, journal: JournalPlace, reach: ConnectionSettings, flags: DecisionFlags, words: Console
    ) -> None:
        self._journal, self._reach, self._flags, self._words = journal, reach, flags, words
        self._is_explained = False
        self.decided: list[str] = []
        """Customers whose imports continue."""
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
            yield f"Still parked: {', '.join(self.left)}. To decide about them later:"
            yield f"  {about_journal(self._journal, 'review', *self.left)}"
        if not self.decided or wait:
            return
        what = "The server continues the decided imports. To download their sheets"
        if last is None:
            yield f"{what}, run the program that wrote the journal again."
        else:
            yield f"{what}:"
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
            if sent == "sent":
                self.decided.append(record.external_id)
                done = "approved" if isinstance(decision, Approve) else "rejected"
                say(self._words, f"{record.external_id}: {done}.", "green")
                return True
            if sent == "gone":
                break
            self._tell_changed(record)
            shown = await generation.questions(context, record)
        self.decided.append(record.external_id)
        reason = "someone else has decided, or its run has ended"
        say(self._words, f"{record.external_id}: there are no questions any more: {reason}.", "yellow")
        return True

    def _ask(self, record: CustomerRecord, shown: NeedsAttention, place: str) -> "Decision | str":
        print_parked(self._words, record, shown, place=place)
        explain, self._is_explained = not self._is_explained, True
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
