"""A pending outcome has a reason, so that a caller knows whether the same call continues."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from inprocess import Fault, InProcess

from asyncmig import (
    Approve,
    Cancel,
    Decision,
    Delivered,
    Failed,
    Fleet,
    InvalidInput,
    MemoryJournal,
    NoAnswer,
    Parked,
    Pending,
    Spec,
    migrate,
)
from asyncmig.customers.options import MigrationOptions
from asyncmig.events import AttemptFailed
from asyncmig.jobs.status import read_statuses
from asyncmig.simulator import Reply, World

from .conftest import DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
TAKEN = Reply(status=400, body=b'{"error": "a name that is taken"}')


@pytest.mark.parametrize("error", [LookupError("mine"), OSError("my database"), ValueError("mine")], ids=repr)
async def test_an_exception_in_decide_is_not_reported_as_an_outage(
    open_session: OpenSession, customer: Customer, tmp_path: Path, error: Exception
) -> None:
    async def decide(parked: Parked) -> Decision:
        raise error

    journal, spec = MemoryJournal(), customer(contacts=DUPLICATES)
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path / "out", decide=decide)
        assert isinstance(outcome, Pending)
        assert outcome.reason == "crashed"
        assert outcome.ids.keys() == {"company", "run"}
        assert str(error) in outcome.error
        (status,) = await read_statuses(journal)
        assert status.pending_reason == "crashed"
        assert isinstance(
            await migrate(session, spec, journal=journal, to=tmp_path / "out", decide="approve"), Delivered
        )


async def test_a_session_error_in_decide_is_reported_as_an_outage(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async def decide(parked: Parked) -> Decision:
        raise NoAnswer("GET", "/sources", "the connection was reset")

    async with open_session() as session:
        outcome = await migrate(
            session,
            customer(contacts=DUPLICATES),
            journal=MemoryJournal(),
            to=tmp_path / "out",
            decide=decide,
        )
    assert isinstance(outcome, Pending)
    assert outcome.reason == "server_away"


@pytest.mark.parametrize("decision", [Approve({"gone": "a"}), Cancel()], ids=repr)
async def test_an_invalid_decision_leaves_the_customer_parked_with_the_reason(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path, decision: Decision
) -> None:
    async def decide(parked: Parked) -> Decision:
        return decision

    journal = MemoryJournal()
    async with open_session() as session:
        outcome = await migrate(
            session, customer(contacts=DUPLICATES), journal=journal, to=tmp_path / "out", decide=decide
        )
    assert isinstance(outcome, Parked)
    assert "gone" in outcome.refused or "Cancel" in outcome.refused
    assert outcome.refused in outcome.error
    assert not [url for _, method, url in transport.sent if url.endswith("/decisions")]
    (status,) = await read_statuses(journal)
    assert status.outcome == "parked"


async def test_a_refused_key_is_the_reason_of_a_pending_outcome(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    world.key = "another"
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Pending)
    assert outcome.reason == "key_refused"


def refused(text: str) -> Fault:
    return Fault(instead=Reply(status=403, body=text.encode()))


@pytest.mark.parametrize("endpoint", ["/companies", "/imports"])
async def test_a_refused_account_is_the_reason_and_the_next_call_continues(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path, endpoint: str
) -> None:
    def fault(method: str, path: str, number: int) -> Fault | None:
        is_start = method == "POST" and path.endswith(endpoint)
        return refused('{"error": "Your plan has ended"}') if is_start else None

    transport.fault = fault
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path / "out")
        assert isinstance(outcome, Pending)
        assert outcome.reason == "account_refused"
        assert "Your plan has ended" in outcome.error
        transport.fault = lambda method, path, number: None
        assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path / "out"), Delivered)


async def test_a_refused_creation_is_not_recorded_as_possibly_created(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    def fault(method: str, path: str, number: int) -> Fault | None:
        if method == "POST" and path.endswith("/companies"):
            return refused('{"error": "No"}') if number == 1 else Fault(instead=TAKEN)
        return None

    transport.fault = fault
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        await migrate(session, spec, journal=journal, to=tmp_path / "out")
        outcome = await migrate(session, spec, journal=journal, to=tmp_path / "out")
    assert isinstance(outcome, Failed)  # `Unknown` if the first create might have arrived
    assert "a name that is taken" in outcome.error


async def test_a_403_page_of_a_proxy_is_not_a_refusal_of_the_account(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    transport.fault = lambda method, path, number: refused("<html>") if method == "POST" else None
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Pending)
    assert outcome.reason == "server_away"


async def test_a_step_is_repeated_for_retry_seconds(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    def fault(method: str, path: str, number: int) -> Fault | None:
        return Fault(refused=True) if method == "PUT" else None

    transport.fault = fault
    reported: list[AttemptFailed] = []
    async with open_session() as session:
        with session.events.subscribe(
            lambda event: reported.append(event) if isinstance(event, AttemptFailed) else None
        ):
            begun = asyncio.get_running_loop().time()
            outcome = await migrate(
                session, customer(), journal=MemoryJournal(), to=tmp_path, retry_seconds=3600.0
            )
            ended = asyncio.get_running_loop().time()
    assert isinstance(outcome, Pending)
    assert outcome.reason == "server_away"
    assert outcome.ids.keys() == {"company"}
    assert ended - begun >= 3600.0
    assert {each.external_id for each in reported} == {"acme"}
    assert any(each.until is not None and 3500.0 <= each.until - begun <= 3700.0 for each in reported)


async def test_drained_customers_have_the_reason_interrupted(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with (
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path) as fleet,
        await journal.claim("held"),
    ):
        running = fleet.submit(customer("running"))
        await asyncio.sleep(15.0)
        await fleet.drain()
        outcomes = [await running, await fleet.submit(customer("late"))]
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Pending)]
    assert reasons == ["interrupted", "interrupted"]


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_an_invalid_retry_seconds_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="retry_seconds"):
        MigrationOptions(retry_seconds=value)
