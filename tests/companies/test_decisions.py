"""A person's decision about a parked import: it reaches just the questions that were shown, and is written down."""

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

from .conftest import DUPLICATES, Opens

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
APPROVE, REJECT = Approve(), Reject()


class Desk:
    """A parked customer, and the session of whoever decides."""

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

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.journal.events("acme")]

    async def somebody_else_decides(self, *, approve: bool) -> None:
        record = await self.record()
        run = self.session.watch(record.run_id or "", record.company_id or "")
        await (run.approve() if approve else run.reject())


OpensDesk = Callable[[], AbstractAsyncContextManager[Desk]]


@pytest.fixture
def desk_of(opens: Opens, customer: Customer, tmp_path: Path) -> OpensDesk:
    """Opens a desk inside of a test: before it the clock is not the virtual one."""

    @asynccontextmanager
    async def desk() -> AsyncIterator[Desk]:
        async with opens() as session:
            desk = Desk(session, customer(contacts=DUPLICATES), tmp_path / "out")
            assert isinstance(await desk.migrate(), Parked)
            yield desk

    return desk


async def test_an_approval_is_written_down_and_the_next_call_delivers(desk_of: OpensDesk) -> None:
    async with desk_of() as desk:
        assert await desk.decide(APPROVE) == "sent"
        assert (await desk.kinds())[-2:] == ["decide", "decided"]
        assert isinstance(await desk.migrate(), Delivered)


async def test_a_rejection_ends_as_failed(desk_of: OpensDesk, world: World) -> None:
    async with desk_of() as desk:
        assert await desk.decide(REJECT) == "sent"
        assert isinstance(await desk.migrate(), Failed)
        assert (await desk.record()).rejected


async def test_what_destroys_rows_is_not_approved_unless_that_is_allowed(
    desk_of: OpensDesk, wire: InProcess
) -> None:
    async with desk_of() as desk:
        before = len(wire.sent)
        with pytest.raises(InvalidInput, match="destroys rows"):
            await desk.decide(APPROVE, allow_destructive=False)
        assert len(wire.sent) == before


@pytest.mark.parametrize("answers", [{"nonsense": "a"}, {"fq0": "nonsense"}, {"fq0": Custom(" ")}])
async def test_answers_that_were_not_offered_cost_no_request(
    desk_of: OpensDesk, wire: InProcess, answers: dict[str, str | Custom]
) -> None:
    async with desk_of() as desk:
        before = len(wire.sent)
        with pytest.raises(InvalidInput, match="answers"):
            await desk.decide(Approve(answers))
        assert len(wire.sent) == before
        assert "decide" not in await desk.kinds()


@pytest.mark.parametrize(
    "decision", [Change("merge the names"), Cancel(), Answer({"fq0": "a"}), Credentials({"token": "t0p"})]
)
async def test_a_decision_that_the_generation_lacks_costs_no_request(
    desk_of: OpensDesk, wire: InProcess, decision: Decision
) -> None:
    async with desk_of() as desk:
        before = len(wire.sent)
        with pytest.raises(InvalidInput, match=rf"{type(decision).__name__}.*'companies'") as refused:
            await desk.decide(decision)
        assert "t0p" not in str(refused.value)
        assert len(wire.sent) == before
        assert "decide" not in await desk.kinds()


def test_credentials_show_no_value() -> None:
    credentials = Credentials({"token": "t0p"})
    assert "t0p" not in f"{credentials!r} {credentials} {[credentials]} {list(credentials.__rich_repr__())}"
    with pytest.raises(InvalidInput, match="credentials") as refused:
        Credentials("t0p")  # type: ignore[arg-type]
    assert "t0p" not in str(refused.value)


async def test_a_run_that_asks_nothing_any_more_is_left_alone(desk_of: OpensDesk, world: World) -> None:
    async with desk_of() as desk:
        await desk.somebody_else_decides(approve=True)
        sent = world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"]
        assert await desk.decide(REJECT) == "gone"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == sent
        assert isinstance(await desk.migrate(), Delivered)


async def test_other_questions_than_those_shown_are_not_answered(desk_of: OpensDesk, world: World) -> None:
    async with desk_of() as desk:
        shown = await desk.shown()
        older = msgspec.structs.replace(shown, questions=shown.questions[:0])
        sent = await decide_parked(
            context_of(desk.session), desk.journal, "acme", APPROVE, shown=older, allow_destructive=True
        )
        assert sent == "changed"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 0
        assert await desk.shown() == shown
        assert await desk.decide(APPROVE) == "sent"


async def test_looking_reads_what_is_asked_now(desk_of: OpensDesk) -> None:
    async with desk_of() as desk:
        assert await look(context_of(desk.session), await desk.record()) == await desk.shown()
        await desk.somebody_else_decides(approve=True)
        assert await look(context_of(desk.session), await desk.record()) is None


async def test_a_lost_answer_sends_nothing_twice(desk_of: OpensDesk, wire: InProcess, world: World) -> None:
    async with desk_of() as desk:
        wire.fault = lambda method, path, number: (
            Fault(lost_after=True) if path.endswith("/decisions") and number == 1 else None
        )
        assert await desk.decide(APPROVE) == "sent"
        assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 1
        assert world.verdict(10**9).blind_decisions == 0


async def test_a_decision_in_doubt_stays_in_the_journal_as_an_intent(
    desk_of: OpensDesk, wire: InProcess
) -> None:
    async with desk_of() as desk:
        wire.fault = lambda method, path, number: (
            Fault(lost_before=True) if path.endswith("/decisions") else None
        )
        with pytest.raises(UnknownOutcome):
            await desk.decide(APPROVE)
        assert (await desk.kinds())[-1] == "decide"
        wire.fault = lambda method, path, number: None
        assert await desk.decide(APPROVE) == "sent"  # the run was read first, and asks the same


async def test_nobody_decides_for_who_is_not_parked_or_held(desk_of: OpensDesk) -> None:
    async with desk_of() as desk:
        shown = await desk.shown()
        async with await desk.journal.claim("acme"):
            with pytest.raises(CustomerHeld):
                await desk.decide(APPROVE)
        await desk.decide(APPROVE)
        for external_id in ("acme", "nobody"):
            with pytest.raises(InvalidInput, match="not parked"):
                await decide_parked(
                    context_of(desk.session),
                    desk.journal,
                    external_id,
                    APPROVE,
                    shown=shown,
                    allow_destructive=True,
                )


DECISIONS = "POST /companies/{id}/imports/{run_id}/decisions"


async def test_a_canceled_customer_is_pending_without_a_request_and_the_next_call_continues(
    desk_of: OpensDesk, wire: InProcess
) -> None:
    async with desk_of() as desk:
        before = len(wire.sent)
        outcome = await desk.cancel()
        assert isinstance(outcome, Pending)
        assert outcome.reason == "canceled"
        assert outcome.ids == (await desk.record()).ids != {}
        assert (await desk.record()).outcome == outcome
        assert len(wire.sent) == before
        assert isinstance(await desk.migrate(), Parked)


async def test_canceling_can_reject_the_parked_run(desk_of: OpensDesk, world: World) -> None:
    async with desk_of() as desk:
        assert isinstance(await desk.cancel(reject_parked=True), Pending)
        assert (await desk.kinds())[-3:] == ["decide", "decided", "pending"]
        assert world.ledger.requests[DECISIONS] == 1
        assert isinstance(await desk.migrate(), Failed)
        assert isinstance(await desk.cancel(reject_parked=True), Failed)  # nothing is left to cancel
        assert world.ledger.requests[DECISIONS] == 1


async def test_canceling_rejects_nothing_that_somebody_else_approved(
    desk_of: OpensDesk, world: World
) -> None:
    async with desk_of() as desk:
        await desk.somebody_else_decides(approve=True)
        assert isinstance(await desk.cancel(reject_parked=True), Pending)
        assert world.ledger.requests[DECISIONS] == 1
        assert isinstance(await desk.migrate(), Delivered)
        assert isinstance(await desk.cancel(), Delivered)


async def test_nobody_cancels_who_is_held_or_unknown(desk_of: OpensDesk) -> None:
    async with desk_of() as desk:
        async with await desk.journal.claim("acme"):
            with pytest.raises(CustomerHeld):
                await desk.cancel()
        with pytest.raises(InvalidInput, match="nothing to cancel"):
            await cancel(context_of(desk.session), desk.journal, "nobody")
        assert set(await desk.journal.states()) == {"acme"}
