"""A journal that is unreachable for a while: the responses that the server sent meanwhile are not lost."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec
import pytest
from inprocess import InProcess

from asyncmig import (
    Delivered,
    Fleet,
    JournalError,
    MemoryJournal,
    Outcome,
    Pending,
    Session,
    Spec,
    adopt,
    migrate,
)
from asyncmig.events import AttemptFailed, Recovered
from asyncmig.journal import Activity, ClaimPort, Instruction, JournalEvent, Wanted
from asyncmig.simulator import Variants, World

from .conftest import DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]


class UnreachableJournal:
    """A journal whose claims, writes and releases fail while `is_unreachable` returns True."""

    def __init__(self, is_unreachable: Callable[[str], bool]) -> None:
        self.inner, self.is_unreachable = MemoryJournal(), is_unreachable

    def check(self, kind: str) -> None:
        if self.is_unreachable(kind):
            raise JournalError("postgresql://db/fleet", "connection refused")

    async def claim(self, external_id: str) -> "UnreachableClaim":
        self.check("claim")
        return UnreachableClaim(self, await self.inner.claim(external_id))

    async def state(self, external_id: str) -> bytes | None:
        return await self.inner.state(external_id)

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        return await self.inner.activity(external_id)

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        await self.inner.instruct(external_id, instruction)

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        await self.inner.delete_instruction(external_id, instruction)

    async def instruction(self, external_id: str) -> Instruction | None:
        return await self.inner.instruction(external_id)

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        return await self.inner.instructions(wanted)

    async def forget(self, external_id: str) -> None:
        await self.inner.forget(external_id)

    async def states(self) -> dict[str, bytes]:
        return await self.inner.states()

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        return await self.inner.events(external_id, after=after, limit=limit)


class UnreachableClaim:
    def __init__(self, journal: UnreachableJournal, claim: ClaimPort) -> None:
        self._journal, self._claim = journal, claim
        self.external_id, self.token = claim.external_id, claim.token

    @property
    def state(self) -> bytes | None:
        return self._claim.state

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        self._journal.check(kind)
        await self._claim.write(kind, detail, state)

    async def release(self) -> None:
        await self._claim.release()
        self._journal.check("release")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, tb: object) -> None:
        with contextlib.suppress(*([] if exc is None else [JournalError])):
            await self.release()


async def test_an_outcome_is_returned_even_if_the_claim_cannot_be_released(
    open_session: OpenSession, customer: Customer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = UnreachableJournal(lambda kind: kind == "release")
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
    assert isinstance(outcome, Delivered)
    assert "connection refused" in caplog.text


ANSWERS = ["created", "uploaded", "started", "decided", "export started", "exported", "delivered"]


def exported(customer: Customer, world: World) -> Spec:
    """Return the spec of a customer that parks and has a destination."""
    world.variants = Variants(failed_writes=0.0, hollow_writes=0.0)
    connections = {"destination": {"base_url": "https://d.invalid", "auth": {}}}
    return msgspec.structs.replace(customer(contacts=DUPLICATES), connections=connections)


def unreachable_for(seconds: float, first: str) -> Callable[[str], bool]:
    """Return a function: whether a journal is unreachable, for `seconds` from the first write of kind `first`."""
    since: list[float] = []

    def is_unreachable(kind: str) -> bool:
        now = asyncio.get_running_loop().time()
        if kind == first and not since:
            since.append(now)
        return bool(since) and now < since[0] + seconds

    return is_unreachable


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_response_is_recorded_once_the_journal_is_reachable_again(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path, answer: str
) -> None:
    journal = UnreachableJournal(unreachable_for(80.0, answer))
    async with open_session() as session:
        outcome = await migrate(
            session,
            exported(customer, world),
            journal=journal,
            to=tmp_path / "out",
            decide="approve",
            export="canary",
        )
    assert isinstance(outcome, Delivered)
    kinds = [event.kind for event in await journal.events("acme")]
    assert [kinds.count(kind) for kind in ANSWERS] == [1] * len(ANSWERS)
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_imports == verdict.duplicate_companies == verdict.unaccounted == 0


async def test_no_request_follows_a_creation_until_the_journal_has_the_company(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    journal = UnreachableJournal(unreachable_for(80.0, "created"))
    async with open_session() as session:
        migration = asyncio.ensure_future(migrate(session, customer(), journal=journal, to=tmp_path / "out"))
        await asyncio.sleep(79.0)
        assert [method for _, method, _ in transport.sent] == ["POST"]
        assert isinstance(await migration, Delivered)


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_response_that_could_not_be_recorded_is_recorded_by_the_next_call(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path, answer: str
) -> None:
    journal, spec = UnreachableJournal(unreachable_for(3600.0, answer)), exported(customer, world)

    async def call(session: Session) -> Outcome:
        return await migrate(
            session, spec, journal=journal, to=tmp_path / "out", decide="approve", export="canary"
        )

    async with open_session() as session:
        with pytest.raises(JournalError, match="connection refused; the journal does not have"):
            await call(session)
        await asyncio.sleep(3600.0)
        assert isinstance(await call(session), Delivered)
    kinds = [event.kind for event in await journal.events("acme")]
    assert [kinds.count(kind) for kind in ANSWERS] == [1] * len(ANSWERS)
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_imports == verdict.duplicate_companies == verdict.unaccounted == 0


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0])
async def test_a_customer_cancelled_during_the_outage_continues_from_the_response(
    open_session: OpenSession,
    customer: Customer,
    tmp_path: Path,
    seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = UnreachableJournal(unreachable_for(80.0, "created"))
    async with open_session() as session:
        migration = asyncio.ensure_future(migrate(session, customer(), journal=journal, to=tmp_path / "out"))
        await asyncio.sleep(5.0 + seconds)
        migration.cancel()
        await asyncio.wait([migration])
        assert migration.cancelled()
        assert "`asyncmig adopt acme " in caplog.text
        await asyncio.sleep(80.0)
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
    assert isinstance(outcome, Delivered)


async def test_a_change_by_another_process_during_the_outage_is_kept(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = UnreachableJournal(unreachable_for(1800.0, "created"))
    async with open_session() as session:
        with pytest.raises(JournalError) as caught:
            await migrate(session, customer(), journal=journal, to=tmp_path / "out")
        advice = re.search(r"`asyncmig adopt acme (\S+)`", str(caught.value))
        assert advice is not None
        await adopt(journal.inner, "acme", advice[1])
        await asyncio.sleep(1800.0)
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
    assert isinstance(outcome, Delivered)
    kinds = [event.kind for event in await journal.events("acme")]
    assert "created" not in kinds
    assert outcome.ids["company"] == advice[1]


async def test_the_outcome_of_a_drained_customer_has_ids_that_the_journal_lacks(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal = UnreachableJournal(unreachable_for(3600.0, "started"))
    async with open_session() as session, Fleet(session, journal=journal, to=tmp_path / "out") as fleet:
        ending = fleet.submit(customer())
        await asyncio.sleep(60.0)
        await fleet.drain()
        outcome = await ending
    assert isinstance(outcome, Pending)
    (company,) = world.companies.values()
    assert outcome.ids["company"] == company.id
    assert outcome.ids["run"] in company.runs
    assert f"does not have run {outcome.ids['run']} yet" in outcome.error


async def test_failures_to_reach_the_journal_are_reported_at_intervals(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    loop, events = asyncio.get_running_loop(), list[object]()
    journal = UnreachableJournal(lambda kind: kind == "uploaded" and loop.time() < 200.0)
    async with open_session() as session:
        with session.events.subscribe(events.append):
            outcome = await migrate(session, customer(), journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    failures = [event for event in events if isinstance(event, AttemptFailed)]
    assert 4 <= len(failures) <= 6
    assert {(event.external_id, event.endpoint, event.error) for event in failures} == {
        ("acme", "journal", "connection refused")
    }
    assert all(event.until == pytest.approx(failures[0].at + 900.0, abs=2.0) for event in failures)
    assert len([event for event in events if isinstance(event, Recovered)]) == 1
