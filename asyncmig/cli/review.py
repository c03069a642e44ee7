"""`asyncmig review`: the parked imports of a journal, and what a person decides about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer
from rich.console import Console

from asyncmig.cli.live_view import failure_line
from asyncmig.cli.questions import ask_decision, print_parked
from asyncmig.cli.settings import Reach, open_session
from asyncmig.cli.terminal import print_line, say
from asyncmig.companies.workflow.decisions import decide_parked, look
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.outcome import Decision, Parked
from asyncmig.customers.questions import Custom, NeedsAttention
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed, Event
from asyncmig.jobs.status import read_records
from asyncmig.journal import Journal
from asyncmig.session import Session, context_of

__all__ = ["DecisionFlags", "Reviewer", "parked_records", "print_all"]


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
            return Decision(approve=False)
        if shown.is_destructive and not self.allow_destructive:
            reason = "what is proposed destroys rows, or may: --allow-destructive is needed"
            raise InvalidInput("--approve", True, reason)
        return Decision(
            approve=True, answers=dict(_answer(each, shown) for each in self.answer or ()) or None
        )


def _answer(text: str, shown: NeedsAttention) -> tuple[str, str | Custom]:
    name, equals, choice = text.partition("=")
    if not equals:
        raise InvalidInput("--answer", text, "must look like QUESTION=OPTION")
    for question in shown.questions:
        is_option = choice in [option.id for option in question.options]
        if question.id == name and not is_option and question.allow_custom:
            return name, Custom(choice)
    return name, choice


async def parked_records(journal: Path, external_ids: Sequence[str] = ()) -> list[Record]:
    """Return the parked customers of a journal, or those of them that are named.

    Raises `InvalidInput` for one that is named and not parked, `JournalError`.
    """
    external_ids = [each.strip() for each in external_ids]
    async with Journal(journal, read_only=True) as opened:
        records = await read_records(opened, str(journal))
    for external_id in external_ids:
        if external_id not in records:
            raise InvalidInput("EXTERNAL_ID", external_id, f"is not in the journal {journal}")
        if not isinstance(records[external_id].outcome, Parked):
            raise InvalidInput("EXTERNAL_ID", external_id, "is not parked: there is nothing to decide")
    wanted = external_ids or list(records)
    return [records[name] for name in dict.fromkeys(wanted) if isinstance(records[name].outcome, Parked)]


def print_all(data: Console, records: Sequence[Record], *, as_json: bool) -> None:
    """Print what the journal knows of parked customers."""
    for record in records:
        attention = _attention(record)
        if as_json:
            ids = {
                "external_id": record.external_id,
                "company_id": record.company_id,
                "run_id": record.run_id,
            }
            print_line(
                {"schema": 1, **ids, "is_destructive": attention.is_destructive, "attention": attention}
            )
        else:
            print_parked(data, record, attention)


@final
class Reviewer:
    """Takes parked customers one by one."""

    __slots__ = ("_asked", "_journal", "_reach", "_verdict", "_words", "decided", "left")

    def __init__(self, journal: Path, reach: Reach, verdict: DecisionFlags, words: Console) -> None:
        self._journal, self._reach, self._verdict, self._words = journal, reach, verdict, words
        self.decided: list[str] = []
        """Customers whose imports go on."""
        self.left: list[str] = []
        """Customers that are still parked."""

    async def run(self, records: Sequence[Record]) -> None:
        """Decide about each. Raises `InvalidInput`, `JournalError` and the errors of requests."""
        async with Journal(self._journal) as journal, open_session(self._reach, self._journal) as session:
            with session.events.subscribe(self._tell_failure):
                for number, record in enumerate(records, 1):
                    if not await self._one(session, journal, record, f"[{number} of {len(records)}] "):
                        self.left += [left.external_id for left in records[number - 1 :]]
                        return

    def _tell_failure(self, event: Event) -> None:
        """Say that a request failed and is repeated: somebody sits there and waits."""
        if isinstance(event, AttemptFailed):
            say(self._words, failure_line(event), "yellow")

    async def _one(self, session: Session, journal: Journal, record: Record, place: str) -> bool:
        """Take one customer; return False to end the review."""
        shown: NeedsAttention | None = _attention(record)
        if not self._verdict.is_given:
            await self._warn_of_doubt(journal, record)
            shown = await look(context_of(session), record)
        while shown is not None:
            decision = (
                self._verdict.decision(shown) if self._verdict.is_given else self._ask(record, shown, place)
            )
            if not isinstance(decision, Decision):
                if decision == "skip":
                    self.left.append(record.external_id)
                return decision == "skip"
            sent = await decide_parked(
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
            shown = await look(context_of(session), record)
        self._tell(record, None, gone=True)
        return True

    def _ask(self, record: Record, shown: NeedsAttention, place: str) -> "Decision | str":
        print_parked(self._words, record, shown, place=place)
        return ask_decision(self._words, shown, allow_destructive=self._verdict.allow_destructive)

    def _changed(self, record: Record) -> None:
        words = "asks something else by now than what was shown: nothing was sent"
        if self._verdict.is_given:
            raise InvalidInput("EXTERNAL_ID", record.external_id, f"{words}; look at it again")
        say(self._words, f"{record.external_id} {words}.", "yellow")

    def _tell(self, record: Record, decision: Decision | None, *, gone: bool) -> None:
        self.decided.append(record.external_id)
        if gone or decision is None:
            say(
                self._words,
                f"{record.external_id}: asks nothing any more: somebody else has decided, or its run has ended.",
                "yellow",
            )
        else:
            word = "approved" if decision.approve else "rejected"
            say(self._words, f"{record.external_id}: {word}.", "green")

    async def _warn_of_doubt(self, journal: Journal, record: Record) -> None:
        events = await journal.events(record.external_id)
        if events and events[-1].kind == "decide":
            say(
                self._words,
                f"{record.external_id}: a decision was sent at {events[-1].at}, and its answer never came. "
                "What follows is what the run asks now.",
                "yellow",
            )


def _attention(record: Record) -> NeedsAttention:
    assert isinstance(record.outcome, Parked)
    return record.outcome.attention
