"""Methods of a fleet that take the external id of a customer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from inprocess import InProcess

from asyncmig import (
    Approve,
    CustomerHeld,
    CustomerNotFound,
    Delivered,
    Failed,
    Fleet,
    InvalidInput,
    Journal,
    JournalPort,
    MemoryJournal,
    Parked,
    Pending,
    Reject,
    Spec,
    migrate,
)
from asyncmig.customers.status import CustomerStatus
from asyncmig.events import MigrationChanged, RunChanged
from asyncmig.jobs.instructions import read_known
from asyncmig.jobs.progress import LiveProgress
from asyncmig.jobs.runners import digest_of
from asyncmig.journal.ports import Activity
from asyncmig.simulator import World

from .conftest import CLEAN, DUPLICATES, OpenSession

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]
Customer = Callable[..., Spec]
OpensFleet = Callable[..., AbstractAsyncContextManager[Fleet]]


@pytest.fixture
def fleets(open_session: OpenSession, tmp_path: Path) -> OpensFleet:
    """Return a function that opens a fleet with its own session; concurrent fleets represent processes."""

    @asynccontextmanager
    async def fleet(journal: JournalPort, **options: object) -> AsyncIterator[Fleet]:
        async with (
            open_session() as session,
            Fleet(session, journal=journal, to=tmp_path / "out", **options) as opened,
        ):  # type: ignore[arg-type]
            yield opened

    return fleet


async def wait_for_step(fleet: Fleet, external_id: str, step: str) -> CustomerStatus:
    async for status in fleet.follow(external_id):
        if status.step == step:
            return status
    raise AssertionError(f"{external_id} ended before the step {step}")


class AgingJournal(MemoryJournal):  # type: ignore[misc]
    """A journal whose description of a holder changes with each read, as that of a file changes each second."""

    reads = 0

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        self.reads += 1
        found = await super().activity(external_id)
        return {
            name: replace(each, holder=each.holder and f"{each.holder}, last seen {self.reads} s ago")
            for name, each in found.items()
        }


async def test_follow_ignores_changes_in_the_description_of_the_holder(
    fleets: OpensFleet, customer: Customer
) -> None:
    async with fleets(AgingJournal()) as fleet:
        await fleet.accept(customer())
        seen = [status async for status in fleet.follow("acme")]
    without_holder = [msgspec.structs.replace(status, held_by=None) for status in seen[:-1]]
    assert all(earlier != later for earlier, later in pairwise(without_holder))
    assert {"uploading", "running"} <= {status.step for status in seen}


async def test_follow_yields_each_status_until_the_outcome(fleets: OpensFleet, customer: Customer) -> None:
    async with fleets(MemoryJournal()) as fleet:
        future = await fleet.accept(customer())
        seen = [status async for status in fleet.follow("acme")]
        assert [seen[0].step, seen[0].outcome, seen[0].name] == ["waiting", "pending", "acme Ltd"]
        assert isinstance(await future, Delivered)
        assert seen[-1] == await fleet.status("acme")
        assert (seen[-1].outcome, seen[-1].step, seen[-1].is_over) == ("delivered", "ended", True)
        assert {"uploading", "running"} <= {status.step for status in seen}
        assert not any(status.is_over for status in seen[:-1])
        assert [status async for status in fleet.follow("acme")] == seen[-1:]
        with pytest.raises(CustomerNotFound):
            await fleet.status("beta")


async def test_a_parked_customer_continues_after_a_decision(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    async with fleets(MemoryJournal()) as fleet:
        parked = await fleet.submit(customer(contacts=DUPLICATES))
        asked = await fleet.questions("acme")
        assert isinstance(asked, Parked)
        assert asked.attention == parked.attention
        with pytest.raises(InvalidInput, match="is not a question of this run"):
            await fleet.decide("acme", Approve({"nothing": "a"}))
        assert await fleet.decide("acme", Reject(), shown="other questions") == "changed"
        assert await fleet.decide("acme", Approve(), shown=digest_of(asked)) == "sent"
        assert await fleet.questions("acme") is None
        with pytest.raises(InvalidInput, match="asks nothing now: it is pending, at the step running"):
            await fleet.decide("acme", Approve())
        *_, last = [status async for status in fleet.follow("acme")]
        assert last.outcome == "delivered"
    assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 1


async def test_a_decision_waits_until_the_customer_is_released(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    journal = MemoryJournal()
    async with fleets(journal) as here, fleets(journal) as elsewhere:
        await here.submit(customer(contacts=DUPLICATES))
        async with await journal.claim("acme"):
            assert await here.questions("acme") is None
            deciding = asyncio.ensure_future(elsewhere.decide("acme", Approve()))
            await asyncio.sleep(30)
            assert not deciding.done()
        assert await deciding == "sent"
        *_, last = [status async for status in here.follow("acme")]
        assert last.outcome == "delivered"
    assert world.verdict(asyncio.get_running_loop().time()).duplicate_imports == 0


@pytest.mark.parametrize("step", ["waiting", "uploading", "running"])
async def test_a_canceled_customer_continues_after_retry(
    fleets: OpensFleet, customer: Customer, world: World, step: str
) -> None:
    journal = MemoryJournal()
    async with fleets(journal, concurrency=1) as fleet:
        other = await fleet.accept(customer("other"))
        future = await fleet.accept(customer())
        if step != "waiting":
            await other
            await wait_for_step(fleet, "acme", step)
        outcome = await fleet.cancel("acme")
        assert isinstance(outcome, Pending)
        assert outcome.reason == "canceled"
        assert ("the run continues at the server" in outcome.error) is (step == "running")
        assert await future == outcome
        (status,) = [status async for status in fleet.follow("acme")]
        assert (status.outcome, status.pending_reason, status.is_over) == ("pending", "canceled", True)
        assert (await fleet.resume()).keys() == (set() if other.done() else {"other"})
        requests = len(world.ledger.requests)
        await other
        await asyncio.sleep(600)
        assert isinstance(await (await fleet.retry("acme")), Delivered)
        assert len(world.ledger.requests) >= requests
        assert isinstance(await other, Delivered)
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert (verdict.duplicate_companies, verdict.duplicate_imports) == (0, 0)


async def test_a_customer_is_canceled_from_another_process(
    fleets: OpensFleet, customer: Customer, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.db"
    async with (
        Journal(path, threaded=False) as one,
        Journal(path, threaded=False) as two,
        fleets(one) as here,
        fleets(two) as elsewhere,
    ):
        future = await here.accept(customer())
        await wait_for_step(elsewhere, "acme", "running")
        outcome = await elsewhere.cancel("acme")
        assert await future == outcome
        assert isinstance(outcome, Pending)
        assert outcome.reason == "canceled"
        assert isinstance(await here.submit(customer()), Delivered)
        assert isinstance(await elsewhere.cancel("acme"), Delivered)
        assert await two.instructions() == {}


async def test_cancel_rejects_a_parked_run_only_on_request(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    async with fleets(MemoryJournal()) as fleet:
        await fleet.submit(customer(contacts=DUPLICATES))
        outcome = await fleet.cancel("acme")
        assert "the run continues at the server" in getattr(outcome, "error", "")
        assert await fleet.questions("acme") is None
        assert isinstance(await (await fleet.retry("acme")), Parked)
        outcome = await fleet.cancel("acme", reject_parked=True)
        assert isinstance(outcome, Pending)
        assert isinstance(await (await fleet.retry("acme")), Failed)
    assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 1


async def test_retry_starts_a_failed_customer_again_without_its_spec(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    spec = customer(contacts=CLEAN + "café\n")
    spec.files[0].write_bytes(CLEAN.encode() + b"caf\xe9,,,\n")
    journal = MemoryJournal()
    async with fleets(journal) as fleet:
        assert isinstance(await fleet.submit(spec), Failed)
        assert await fleet.resume() == {}
        spec.files[0].write_text(CLEAN, encoding="utf-8")
        assert isinstance(await (await fleet.retry("acme")), Delivered)
        assert await journal.instructions() == {}
    assert world.ledger.requests["POST /companies"] == 1


async def test_a_retry_that_was_carried_out_before_a_crash_is_not_repeated(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    spec, journal = customer(), MemoryJournal()
    spec.files[0].write_bytes(CLEAN.encode() + b"caf\xe9,,,\n")
    async with fleets(journal) as fleet:
        await fleet.submit(spec)
        asked = (await read_known(journal, "acme")).again().wanted("retry")
        await fleet.submit(spec)
        assert world.ledger.requests["POST /companies/{id}/imports"] == 1
        await journal.instruct("acme", asked)  # as if a process was killed before it carried this out
        (outcome,) = await asyncio.gather(*(await fleet.resume()).values())
        assert isinstance(outcome, Failed)
        assert world.ledger.requests["POST /companies/{id}/imports"] == 2
        await journal.instruct("acme", asked)  # as if a process was killed after it carried this out
        (outcome,) = await asyncio.gather(*(await fleet.resume()).values())
        assert isinstance(outcome, Failed)
        assert world.ledger.requests["POST /companies/{id}/imports"] == 2
        assert await journal.instructions() == {}


async def test_migrate_carries_out_the_instructions_in_the_journal(
    open_session: OpenSession, fleets: OpensFleet, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with fleets(journal) as fleet:
        await fleet.accept(customer())
        await fleet.cancel("acme")
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out" / "acme")
    assert isinstance(outcome, Delivered)
    assert await journal.instructions() == {}


async def test_only_delivered_customers_are_forgotten_without_force(
    fleets: OpensFleet, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with fleets(journal) as fleet:
        await fleet.submit(customer())
        await fleet.submit(customer("parked", contacts=DUPLICATES))
        with pytest.raises(InvalidInput, match=r"is not delivered \(parked\)"):
            await fleet.forget("parked")
        running = await fleet.accept(customer("running"))
        with pytest.raises(CustomerHeld):
            await fleet.forget("running", force=True)
        await running
        await fleet.forget("parked", force=True)
        await fleet.forget("acme")
        assert list(await journal.states()) == ["running"]
        for name in ("acme", "parked"):
            with pytest.raises(CustomerNotFound):
                await fleet.status(name)
        assert (tmp_path / "out" / "acme" / "Contacts.csv").exists()


async def test_customers_are_filtered_sorted_and_paged(fleets: OpensFleet, customer: Customer) -> None:
    async with fleets(MemoryJournal()) as fleet:
        for name in ("delta", "alpha", "gamma", "beta"):
            await fleet.submit(customer(name, contacts=DUPLICATES if name == "gamma" else CLEAN))

        async def names(**options: object) -> list[str]:
            return [each.external_id for each in await fleet.customers(**options)]  # type: ignore[arg-type]

        assert await names() == ["delta", "alpha", "gamma", "beta"]
        assert await names(sort="external_id") == ["alpha", "beta", "delta", "gamma"]
        assert await names(sort="-name", limit=2) == ["gamma", "delta"]
        assert await names(sort="-name", limit=2, after="delta") == ["beta", "alpha"]
        assert await names(outcome="parked") == ["gamma"]
        assert await names(outcome=["parked", "failed"], step="running") == ["gamma"]
        assert await names(step="ended", after="delta") == ["alpha", "beta"]
        for wrong in ({"outcome": "done"}, {"step": "run"}, {"sort": "size"}, {"limit": 0}, {"after": "x"}):
            with pytest.raises(InvalidInput, match=next(iter(wrong))):
                await names(**wrong)


async def test_resume_continues_all_unfinished_customers_without_specs(
    fleets: OpensFleet, customer: Customer, world: World, transport: InProcess, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path, threaded=False) as journal:
        async with fleets(journal, concurrency=4) as fleet:
            assert isinstance(await fleet.submit(customer("delivered")), Delivered)
            assert isinstance(await fleet.submit(customer("parked", contacts=DUPLICATES)), Parked)
            for name in ("running", "canceled", "uploading", "first", "waits", "again"):
                await fleet.accept(customer(name))
            await wait_for_step(fleet, "running", "running")
            await fleet.cancel("canceled")
        assert {each.external_id for each in await statuses_in(journal)} == {
            *("delivered", "parked", "running", "canceled", "uploading", "first", "waits", "again")
        }
    async with Journal(path, threaded=False) as journal, fleets(journal) as fleet:
        futures = await fleet.resume()
        assert futures.keys() == {"running", "uploading", "first", "waits", "again"}
        outcomes = await asyncio.gather(*futures.values())
        assert {type(each) for each in outcomes} == {Delivered}
        assert await fleet.resume() == {}
        assert (await journal.instructions()).keys() == {"canceled"}
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert (verdict.duplicate_companies, verdict.duplicate_imports) == (0, 0)


async def statuses_in(journal: Journal) -> list[CustomerStatus]:
    from asyncmig.jobs.status import read_statuses

    return await read_statuses(journal)


async def test_resume_gets_secrets_from_a_callback(
    fleets: OpensFleet, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    secret = {"destination": {"base_url": "https://crm.example", "auth": {"token": "s3cret-token"}}}
    spec = msgspec.structs.replace(customer(), connections=secret)
    path = tmp_path / "fleet.db"
    transport.disconnected = True
    async with Journal(path, threaded=False) as journal:
        async with fleets(journal) as fleet:
            await fleet.accept(spec)
        stored = repr(await journal.instructions())
        assert "crm.example" not in stored
        assert "s3cret-token" not in stored
        transport.disconnected = False
        async with fleets(journal) as fleet:
            outcome = await (await fleet.resume())["acme"]
            assert isinstance(outcome, Failed)
            assert "was submitted with secrets" in outcome.error

        async def secrets(known: Spec) -> Spec:
            assert known.connections is None
            return msgspec.structs.replace(known, connections=secret)

        async with fleets(journal, secrets=secrets) as fleet:
            assert isinstance(await (await fleet.resume())["acme"], Delivered)


async def test_accept_refuses_an_invalid_spec(fleets: OpensFleet, customer: Customer, tmp_path: Path) -> None:
    spec = customer()
    async with fleets(MemoryJournal(), root=tmp_path / "in") as fleet:
        with pytest.raises(InvalidInput, match="name"):
            await fleet.accept(msgspec.structs.replace(spec, name=" "))
        outside = tmp_path / "outside.csv"
        outside.write_text(CLEAN, encoding="utf-8")
        with pytest.raises(InvalidInput, match="outside"):
            await fleet.accept(msgspec.structs.replace(spec, files=(outside,)))
        spec.files[0].unlink()
        with pytest.raises(InvalidInput, match=r"contacts\.csv"):
            await fleet.accept(spec)
        assert await fleet.customers() == []


async def test_a_status_has_its_progress_in_numbers(
    fleets: OpensFleet, customer: Customer, world: World
) -> None:
    journal = MemoryJournal()
    async with fleets(journal) as fleet, fleets(journal) as elsewhere:
        future = await fleet.accept(customer(contacts=CLEAN, more=CLEAN))
        seen = [status.progress async for status in fleet.follow("acme") if status.progress]
        await future
        total = 2 * len(CLEAN.encode())
        assert {each.bytes_total for each in seen} == {total}
        sent = [each.bytes_sent for each in seen]
        assert sorted(set(sent)) == [0, total // 2, total]
        running = [each for each in seen if each.percent is not None]
        assert [each.percent for each in running] == sorted(each.percent or 0 for each in running)
        estimates = [each.seconds_left for each in running if each.seconds_left is not None]
        assert estimates
        assert estimates[-1] < estimates[0]
        assert (await elsewhere.status("acme")).progress == seen[-1]


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("42% done", 42.0),
        ("3 of 4 rows", 75.0),
        ("200 %", 100.0),
        (f"{'9' * 5000} of {'9' * 5000} rows", None),
        (f"{'9' * 400} / {'9' * 400} rows", None),
        ("1" * 200_000, None),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_huge_numbers_in_a_progress_text_are_parsed_safely(text: str, percent: float | None) -> None:
    progress, ids = LiveProgress(), {"run": "r1"}
    progress.take(MigrationChanged(at=0.0, external_id="acme", step="running", ids=ids))
    progress.take(RunChanged(at=1.0, status="running", progress=text, ids=ids))
    shown = progress.added_to(CustomerStatus(external_id="acme", name="Acme", ids=ids)).progress
    assert shown is not None
    assert shown.percent == percent
