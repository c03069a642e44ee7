"""The resumable workflow of one customer with the second generation, against the simulator."""

from pathlib import Path
from typing import Any

import pytest

from asyncmig import Delivered, MemoryJournal, Outcome, Parked, Spec, migrate
from asyncmig.testing import Simulator

pytestmark = pytest.mark.looptime
HEADER = "E-mail,Given Name,Surname,Phone\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))
DEALS = "Title,Stage,Amount,Contact\nBig,won,1,p1@x.org\n"


def spec_of(folder: Path, external_id: str = "acme", **files: str) -> Spec:
    """Write a customer's files, and return its spec."""
    place = folder / external_id
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in (files or {"contacts": CONTACTS, "deals": DEALS}).items():
        path = place / f"{name}.csv"
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return Spec(external_id=external_id, name=external_id.title(), source="HubSpot", files=tuple(paths))


class Customer:
    """One customer of a simulated account."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.simulator = Simulator(api="migrations", seed=7, **options)
        self.journal, self.out = MemoryJournal(), folder / "out"
        self.spec = spec_of(folder / "in")

    async def run(self, **options: Any) -> Outcome:
        async with self.simulator.session() as session:
            return await migrate(
                session, self.spec, journal=self.journal, to=self.out, api="migrations", **options
            )

    def done(self) -> list[str]:
        """The operations that the server has accepted."""
        return [kind for kind, _ in self.simulator.world.migration("acme").accepted]


async def test_a_customer_goes_from_files_to_files(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered), outcome
    assert {Path(file.path).name for file in outcome.files} >= {"contacts.csv", "deals.csv"}
    assert all(file.flagged == "none" and file.is_verified for file in outcome.files)
    assert {path.name for path in customer.out.iterdir()} >= {
        "log.json",
        "log.md",
        "preview.json",
        "preview.html",
    }
    assert customer.done() == ["generate", "execute"]
    assert str(customer.simulator.verdict()) == "no faults"
    again = await customer.run(decide="approve")
    assert again == outcome
    assert customer.done() == ["generate", "execute"]


async def test_a_preview_parks_until_it_is_approved(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    parked = await customer.run()
    assert isinstance(parked, Parked)
    assert parked.attention.kind == "preview"
    assert parked.attention.preview is not None
    assert isinstance(await customer.run(), Parked)
    assert isinstance(await customer.run(decide="approve_safe"), Delivered)
    assert customer.done() == ["generate", "execute"]
