"""Methods of a fleet that take the external id of a customer, with the second generation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncmig import Approve, Delivered, Fleet, MemoryJournal, Parked, Pending, Spec
from asyncmig.testing import Simulator

pytestmark = pytest.mark.looptime
CONTACTS = "E-mail,Given Name,Surname,Phone\n" + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))


def spec_of(folder: Path) -> Spec:
    path = folder / "contacts.csv"
    path.write_text(CONTACTS, encoding="utf-8")
    return Spec(external_id="acme", name="Acme", source="HubSpot", files=(path,))


@asynccontextmanager
async def opened(simulator: Simulator, journal: MemoryJournal, to: Path) -> AsyncIterator[Fleet]:
    """Open a fleet that represents a separate process."""
    async with (
        simulator.session() as session,
        Fleet(session, journal=journal, to=to, api="migrations") as fleet,
    ):
        yield fleet


async def test_a_customer_is_accepted_canceled_retried_decided_and_followed(tmp_path: Path) -> None:
    simulator, journal = Simulator(api="migrations", seed=7), MemoryJournal()
    async with opened(simulator, journal, tmp_path / "out") as fleet:
        future = await fleet.accept(spec_of(tmp_path))
        assert (await fleet.status("acme")).api == "migrations"
        async for status in fleet.follow("acme"):
            if status.step == "running":
                break
        canceled = await fleet.cancel("acme")
        assert isinstance(canceled, Pending)
        assert canceled.reason == "canceled"
        assert await future == canceled
        assert await fleet.resume() == {}
        assert isinstance(await (await fleet.retry("acme")), Parked)
        asked = await fleet.questions("acme")
        assert asked is not None
        assert asked.attention.preview is not None
        status = await fleet.status("acme")
        assert status.progress is not None
        assert status.progress.bytes_sent == status.progress.bytes_total == len(CONTACTS)
        assert await fleet.decide("acme", Approve(), shown=asked) == "recorded"
    # The first process ended after the decision.
    async with opened(simulator, journal, tmp_path / "out") as fleet:
        (outcome,) = await asyncio.gather(*(await fleet.resume()).values())
        assert isinstance(outcome, Delivered)
        *_, last = [status async for status in fleet.follow("acme")]
        assert last.outcome == "delivered"
    assert str(simulator.verdict()) == "no faults"


async def test_a_fleet_does_not_touch_customers_of_the_other_generation(tmp_path: Path) -> None:
    simulator, journal = Simulator(api="migrations", seed=7), MemoryJournal()
    async with simulator.session() as session:
        async with Fleet(session, journal=journal, to=tmp_path / "out", api="migrations") as fleet:
            await fleet.accept(spec_of(tmp_path))
        async with Fleet(session, journal=journal, to=tmp_path / "out") as companies:
            assert await companies.resume() == {}
            assert (await companies.status("acme")).api == "migrations"
            for call in (companies.retry, companies.cancel):
                with pytest.raises(ValueError, match="belongs to the API generation 'migrations'"):
                    await call("acme")
