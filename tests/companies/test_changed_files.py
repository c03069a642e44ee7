"""Files that have changed since their import are ignored, refused, or imported again."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig import Delivered, Failed, Fleet, InvalidInput, MemoryJournal, Parked, Spec, migrate
from asyncmig.customers.options import MigrationOptions
from asyncmig.simulator import World

from .conftest import CLEAN, DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
CHANGED = "changed since the import began, and not imported again: contacts.csv"


def imports(world: World) -> int:
    """Return the number of imports that were started."""
    entries = [each for each in world.ledger.entries if each.template == "/companies/{id}/imports"]
    return sum(each.method == "POST" and each.status == 201 for each in entries)


@pytest.mark.parametrize("text", [CLEAN, DUPLICATES])
@pytest.mark.parametrize("if_changed", ["ignore", "refuse", "import_again"])
async def test_the_caller_chooses_what_happens_to_changed_files(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str,
    if_changed: str,
) -> None:
    journal, spec, to = MemoryJournal(), customer(contacts=text), tmp_path / "out"
    async with open_session() as session:
        first = await migrate(session, spec, journal=journal, to=to)
        state = await journal.state("acme")
        assert type(first) is (Delivered if text is CLEAN else Parked)
        spec.files[0].write_text(CLEAN + "new@x.org,New,One,1\n", encoding="utf-8")
        with caplog.at_level(logging.WARNING, "asyncmig"):
            # The second import may append duplicates, and park.
            decide = "approve" if if_changed == "import_again" else "park"
            options = MigrationOptions(if_changed=if_changed, decide=decide)  # type: ignore[arg-type]
            if if_changed == "refuse":
                with pytest.raises(InvalidInput, match=r"contacts\.csv.*keeps its outcome"):
                    await migrate(session, spec, journal=journal, to=to, options=options)
                async with Fleet(session, journal=journal, to=to, options=options) as fleet:
                    with pytest.raises(InvalidInput, match=r"contacts\.csv.*keeps its outcome"):
                        await fleet.accept(spec)
                    (second,) = [outcome async for outcome in fleet.run([spec])]
            else:
                second = await migrate(session, spec, journal=journal, to=to, options=options)
        if if_changed == "ignore":
            assert type(second) is type(first)
            assert CHANGED in second.notes
            assert [each for each in caplog.messages if f"acme: {CHANGED}" in each]
            assert imports(world) == 1
        elif if_changed == "refuse":
            assert isinstance(second, Failed)
            assert "contacts.csv" in second.error
            assert "keeps its outcome" in second.error
            assert await journal.state("acme") == state
            again = await migrate(session, customer(contacts=text), journal=journal, to=to)
            assert type(again) is type(first)
            assert imports(world) == 1
        else:
            assert isinstance(second, Delivered)
            assert "new@x.org" in (to / "Contacts.csv").read_text(encoding="utf-8")
            assert imports(world) == 2
            third = await migrate(session, spec, journal=journal, to=to, if_changed="import_again")
            assert isinstance(third, Delivered)
            assert imports(world) == 2  # the changed files are imported already
    assert world.ledger.requests["POST /companies"] == 1


async def test_a_running_import_is_not_repeated_for_changed_files(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        running = asyncio.ensure_future(migrate(session, spec, journal=journal, to=tmp_path / "out"))
        await asyncio.sleep(5)
        running.cancel()
        await asyncio.wait([running])
        spec.files[0].write_text(CLEAN + "new@x.org,New,One,1\n", encoding="utf-8")
        outcome = await migrate(
            session, spec, journal=journal, to=tmp_path / "out", if_changed="import_again"
        )
        assert isinstance(outcome, Delivered)
        assert CHANGED in outcome.notes
    assert imports(world) == 1


def test_an_unknown_if_changed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="if_changed='always'"):
        MigrationOptions(if_changed="always")  # type: ignore[arg-type]
