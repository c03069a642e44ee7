"""A person's decision about a parked import applies only to the questions shown, and is recorded in the journal."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from inprocess import Fault, InProcess

from asyncmig import (
    Answer,
    Approve,
    Cancel,
    Change,
    Credentials,
    Custom,
    CustomerHeld,
    Decision,
    Delivered,
    Failed,
    InvalidInput,
    MemoryJournal,
    NeedsAttention,
    Outcome,
    Parked,
    Pending,
    Reject,
    Session,
    Spec,
    UnknownOutcome,
    migrate,
)
from asyncmig.companies.workflow.decisions import cancel, decide_parked, look
from asyncmig.companies.workflow.record import Record
from asyncmig.session import context_of
from asyncmig.simulator import World

from .conftest import DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
APPROVE, REJECT = Approve(), Reject()


class ParkedCustomer:
    """A parked customer, and the session that sends decisions about it."""

    def __init__(self, session: Session, spec: Spec, to: Path) -> None:
        self.session, self.spec, self.to, self.journal = session, spec, to, MemoryJournal()

    async def migrate(self) -> object:
        return await migrate(self.session, self.spec, journal=self.journal, to=self.to)

    async def record(self) -> Record:
        return msgspec.json.decode((await self.journal.states())["acme"], type=Record)

    async def shown(self) -> NeedsAttention:
        outcome = (await self.record()).outcome
        assert isinstance(outcome, Parked)
        return outcome.attention

    async def decide(self, decision: Decision, *, allow_destructive: bool = True) -> str:
        return await decide_parked(
            context_of(self.session),
            self.journal,
            "acme",
            decision,
            shown=await self.shown(),
            allow_destructive=allow_destructive,
        )

    async def cancel(self, *, reject_parked: bool = False) -> Outcome:
        return await cancel(context_of(self.session), self.journal, "acme", reject_parked=reject_parked)

    async def event_kinds(self) -> list[str]:
        return [event.kind for event in await self.journal.events("acme")]

    async def decide_elsewhere(self, *, approve: bool) -> None:
        record = await self.record()
        run = self.session.watch(record.run_id or "", record.company_id or "")
        await (run.approve() if approve else run.reject())


OpensParked = Callable[[], AbstractAsyncContextManager[ParkedCustomer]]


@pytest.fixture
def open_parked(open_session: OpenSession, customer: Customer, tmp_path: Path) -> OpensParked:
    """Return a context manager with a parked customer: a fixture would run before the virtual clock starts."""

    @asynccontextmanager
    async def parked() -> AsyncIterator[ParkedCustomer]:
        async with open_session() as session:
            parked = ParkedCustomer(session, customer(contacts=DUPLICATES), tmp_path / "out")
            assert isinstance(await parked.migrate(), Parked)
            yield parked

    return parked


async def test_an_approval_is_recorded_and_the_next_call_delivers(open_parked: OpensParked) -> None:
    async with open_parked() as parked:
        assert await parked.decide(APPROVE) == "sent"
        assert (await parked.event_kinds())[-2:] == ["decide", "decided"]
        assert isinstance(await parked.migrate(), Delivered)


async def test_a_rejection_ends_as_failed(open_parked: OpensParked, world: World) -> None:
    async with open_parked() as parked:
        assert await parked.decide(REJECT) == "sent"
        assert isinstance(await parked.migrate(), Failed)
        assert (await parked.record()).rejected


async def test_a_destructive_patch_is_not_approved_unless_allowed(
    open_parked: OpensParked, transport: InProcess
) -> None:
    async with open_parked() as parked:
        before = len(transport.sent)
        with pytest.raises(InvalidInput, match="destroys rows"):
            await parked.decide(APPROVE, allow_destructive=False)
        assert len(transport.sent) == before


@pytest.mark.parametrize("answers", [{"nonsense": "a"}, {"fq0": "nonsense"}, {"fq0": Custom(" ")}])
async def test_answers_that_are_not_offered_are_refused_without_a_request(
    open_parked: OpensParked, transport: InProcess, answers: dict[str, str | Custom]
) -> None:
    async with open_parked() as parked:
        before = len(transport.sent)
        with pytest.raises(InvalidInput, match="answers"):
            await parked.decide(Approve(answers))
        assert len(transport.sent) == before
        assert "decide" not in await parked.event_kinds()


@pytest.mark.parametrize(
    "decision", [Change("merge the names"), Cancel(), Answer({"fq0": "a"}), Credentials({"token": "t0p"})]
)
async def test_a_decision_of_another_generation_is_refused_without_a_request(
    open_parked: OpensParked, transport: InProcess, decision: Decision
) -> None:
    async with open_parked() as parked:
        before = len(transport.sent)
        with pytest.raises(InvalidInput, match=rf"{type(decision).__name__}.*'companies'") as refused:
            await parked.decide(decision)
        assert "t0p" not in str(refused.value)
        assert len(transport.sent) == before
        assert "decide" not in await parked.event_kinds()


def test_the_repr_of_credentials_shows_no_value() -> None:
    credentials = Credentials({"token": "t0p"})
    assert "t0p" not in f"{credentials!r} {credentials} {[credentials]} {list(credentials.__rich_repr__())}"
    with pytest.raises(InvalidInput, match="credentials") as refused:
        Credentials("t0p")  # type: ignore[arg-type]
    assert "t0p" not in str(refused.value)


async def test_a_run_that_is_no_longer_parked_gets_no_decision(
    open_parked: OpensParked, world: World
) -> None:
    async with open_parked() as parked:
        await parked.decide_elsewhere(approve=True)
        sent = world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"]
        assert await parked.decide(REJECT) == "gone"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == sent
        assert isinstance(await parked.migrate(), Delivered)


async def test_questions_that_differ_from_those_shown_are_not_answered(
    open_parked: OpensParked, world: World
) -> None:
    async with open_parked() as parked:
        shown = await parked.shown()
        older = msgspec.structs.replace(shown, questions=shown.questions[:0])
        sent = await decide_parked(
            context_of(parked.session), parked.journal, "acme", APPROVE, shown=older, allow_destructive=True
        )
        assert sent == "changed"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 0
        assert await parked.shown() == shown
        assert await parked.decide(APPROVE) == "sent"


async def test_look_returns_the_current_questions(open_parked: OpensParked) -> None:
    async with open_parked() as parked:
        assert await look(context_of(parked.session), await parked.record()) == await parked.shown()
        await parked.decide_elsewhere(approve=True)
        assert await look(context_of(parked.session), await parked.record()) is None


async def test_a_decision_whose_response_is_lost_is_not_sent_twice(
    open_parked: OpensParked, transport: InProcess, world: World
) -> None:
    async with open_parked() as parked:
        transport.fault = lambda method, path, number: (
            Fault(lost_after=True) if path.endswith("/decisions") and number == 1 else None
        )
        assert await parked.decide(APPROVE) == "sent"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 1
        assert world.verdict(10**9).blind_decisions == 0


async def test_a_decision_with_an_unknown_outcome_is_recorded_as_an_intent(
    open_parked: OpensParked, transport: InProcess
) -> None:
    async with open_parked() as parked:
        transport.fault = lambda method, path, number: (
            Fault(lost_before=True) if path.endswith("/decisions") else None
        )
        with pytest.raises(UnknownOutcome):
            await parked.decide(APPROVE)
        assert (await parked.event_kinds())[-1] == "decide"
        transport.fault = lambda method, path, number: None
        assert await parked.decide(APPROVE) == "sent"  # the run is read first, and asks the same questions


async def test_a_decision_about_a_held_or_unparked_customer_is_refused(open_parked: OpensParked) -> None:
    async with open_parked() as parked:
        shown = await parked.shown()
        async with await parked.journal.claim("acme"):
            with pytest.raises(CustomerHeld):
                await parked.decide(APPROVE)
        await parked.decide(APPROVE)
        for external_id in ("acme", "nobody"):
            with pytest.raises(InvalidInput, match="not parked"):
                await decide_parked(
                    context_of(parked.session),
                    parked.journal,
                    external_id,
                    APPROVE,
                    shown=shown,
                    allow_destructive=True,
                )


DECISIONS = "POST /companies/{id}/imports/{run_id}/decisions"


async def test_cancel_sends_no_request_and_the_next_call_continues(
    open_parked: OpensParked, transport: InProcess
) -> None:
    async with open_parked() as parked:
        before = len(transport.sent)
        outcome = await parked.cancel()
        assert isinstance(outcome, Pending)
        assert outcome.reason == "canceled"
        assert outcome.ids == (await parked.record()).ids != {}
        assert (await parked.record()).outcome == outcome
        assert len(transport.sent) == before
        assert isinstance(await parked.migrate(), Parked)


async def test_cancel_can_reject_the_parked_run(open_parked: OpensParked, world: World) -> None:
    async with open_parked() as parked:
        assert isinstance(await parked.cancel(reject_parked=True), Pending)
        assert (await parked.event_kinds())[-3:] == ["decide", "decided", "pending"]
        assert world.ledger.requests[DECISIONS] == 1
        assert isinstance(await parked.migrate(), Failed)
        assert isinstance(await parked.cancel(reject_parked=True), Failed)  # the customer has failed already
        assert world.ledger.requests[DECISIONS] == 1


async def test_cancel_does_not_reject_a_run_that_another_client_approved(
    open_parked: OpensParked, world: World
) -> None:
    async with open_parked() as parked:
        await parked.decide_elsewhere(approve=True)
        assert isinstance(await parked.cancel(reject_parked=True), Pending)
        assert world.ledger.requests[DECISIONS] == 1
        assert isinstance(await parked.migrate(), Delivered)
        assert isinstance(await parked.cancel(), Delivered)


async def test_cancel_of_a_held_or_unknown_customer_is_refused(open_parked: OpensParked) -> None:
    async with open_parked() as parked:
        async with await parked.journal.claim("acme"):
            with pytest.raises(CustomerHeld):
                await parked.cancel()
        with pytest.raises(InvalidInput, match="nothing to cancel"):
            await cancel(context_of(parked.session), parked.journal, "nobody")
        assert set(await parked.journal.states()) == {"acme"}
