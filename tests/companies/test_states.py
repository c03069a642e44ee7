"""The guide's table of what each call does in each state: every cell is performed against the simulator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import GUIDE

from asyncmig import (
    Approve,
    CustomerHeld,
    CustomerNotFound,
    Delivered,
    Failed,
    Fleet,
    InvalidInput,
    Journal,
    Outcome,
    Parked,
    Pending,
    Spec,
    Unknown,
)
from asyncmig.simulator import World

from .conftest import CLEAN, DUPLICATES, SOURCE, Opens

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]


def table() -> dict[tuple[str, str], str]:
    """Return the cells of the guide's table by state and call."""
    lines = GUIDE.text.split("| state | `submit` |", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    calls = ["submit", *(each.strip("` ") for each in rows[0] if each)]
    return {
        (state, call): cell
        for state, *cells in rows[2:]
        for call, cell in zip(calls, cells, strict=True)
        if cell != "-"
    }


@dataclass
class Place:
    """A fleet, another process with the same journal, and a customer."""

    fleet: Fleet
    elsewhere: Fleet
    journal: Journal
    world: World
    customer: Customer
    spec: Spec
    future: "asyncio.Future[Outcome] | None" = None
    """The customer's future in `fleet`, if it is under way there."""
    before: Outcome | None = None
    """Its recorded outcome."""

    async def step(self, fleet: Fleet, step: str) -> None:
        async for status in fleet.follow("acme"):
            if status.step == step:
                return
        raise AssertionError(f"it ended before it was {step}")

    def imports(self) -> int:
        entries = [each for each in self.world.ledger.entries if each.template == "/companies/{id}/imports"]
        return sum(each.method == "POST" and each.status in (200, 201) for each in entries)


Places = Callable[[str], AbstractAsyncContextManager[Place]]


@pytest.fixture
def places(opens: Opens, world: World, customer: Customer, tmp_path: Path) -> Places:
    @asynccontextmanager
    async def opened(text: str) -> AsyncIterator[Place]:
        path, to = tmp_path / "fleet.db", tmp_path / "out"
        async with (
            Journal(path, threaded=False) as one,
            Journal(path, threaded=False) as two,
            opens() as first,
            opens() as second,
            Fleet(first, journal=one, to=to, concurrency=1) as fleet,
            Fleet(second, journal=two, to=to) as elsewhere,
        ):
            yield Place(fleet, elsewhere, one, world, customer, customer(contacts=text))

    return opened


# States


async def _absent(place: Place) -> None:
    pass


async def _waiting(place: Place) -> None:
    place.fleet.submit(place.customer("first"))
    place.future = await place.fleet.accept(place.spec)


async def _running(place: Place) -> None:
    place.future = await place.fleet.accept(place.spec)
    await place.step(place.fleet, "running")


async def _elsewhere(place: Place) -> None:
    await place.elsewhere.accept(place.spec)
    await place.step(place.fleet, "running")


async def _interrupted(place: Place) -> None:
    await place.elsewhere.accept(place.spec)
    await place.step(place.fleet, "running")
    await place.elsewhere.drain()


async def _canceled(place: Place) -> None:
    await _running(place)
    await place.fleet.cancel("acme")
    place.future = None


async def _ended(place: Place) -> None:
    place.before = await place.fleet.submit(place.spec)


async def _failed(place: Place) -> None:
    place.spec.files[0].write_bytes(CLEAN.encode() + b"caf\xe9,,,\n")
    await _ended(place)
    assert isinstance(place.before, Failed)


async def _unknown(place: Place) -> None:
    await place.fleet._session.companies.create(name="acme", source=SOURCE, external_id="acme")
    await _ended(place)
    assert isinstance(place.before, Unknown)


STATES: dict[str, tuple[Callable[[Place], Awaitable[None]], str]] = {
    "not in the journal": (_absent, CLEAN),
    "waiting for a place": (_waiting, CLEAN),
    "running here": (_running, CLEAN),
    "running in another process": (_elsewhere, CLEAN),
    "interrupted": (_interrupted, CLEAN),
    "canceled": (_canceled, CLEAN),
    "parked": (_ended, DUPLICATES),
    "failed": (_failed, CLEAN),
    "unknown": (_unknown, CLEAN),
    "delivered": (_ended, CLEAN),
}


# Calls


async def _submit(place: Place) -> object:
    return place.fleet.submit(place.spec)


async def _retry(place: Place) -> object:
    return await place.fleet.retry("acme")


async def _decide(place: Place) -> object:
    assert await place.fleet.decide("acme", Approve()) == "sent"
    return place.fleet.submit(place.spec)


async def _cancel(place: Place) -> object:
    return await place.fleet.cancel("acme")


async def _forget(place: Place) -> object:
    return await place.fleet.forget("acme")


async def _resume(place: Place) -> object:
    return (await place.fleet.resume()).get("acme")


CALLS: dict[str, Callable[[Place], Awaitable[object]]] = {
    "submit": _submit,
    "retry": _retry,
    "decide": _decide,
    "cancel": _cancel,
    "forget": _forget,
    "resume": _resume,
}


# Cells


async def _outcome(result: object) -> Outcome:
    assert isinstance(result, asyncio.Future)
    outcome: Outcome = await result
    return outcome


async def check(cell: str, place: Place, call: Callable[[Place], Awaitable[object]]) -> None:
    """Perform a call, and check that it does what the cell says."""
    imports = place.imports()
    match cell:
        case "`CustomerNotFound`" | "`InvalidInput`" | "`CustomerHeld`":
            kinds = {each.__name__: each for each in (CustomerNotFound, InvalidInput, CustomerHeld)}
            with pytest.raises(kinds[cell.strip("`")]):
                await call(place)
            if place.future is not None:
                assert isinstance(await place.future, Delivered)
        case "starts":
            assert isinstance(await _outcome(await call(place)), Delivered)
        case "starts again":
            place.spec.files[0].write_text(CLEAN, encoding="utf-8")
            assert isinstance(await _outcome(await call(place)), Delivered)
            assert place.imports() == imports + 1
        case "same future":
            assert await call(place) is place.future
            assert isinstance(await _outcome(place.future), Delivered)
        case "continues" | "waits, continues":
            result = await call(place)
            if cell == "waits, continues":
                await place.elsewhere.drain()  # the other process ends
            assert isinstance(await _outcome(result), Delivered)
            assert place.imports() == max(imports, 1)
        case "asks again":
            assert isinstance(await _outcome(await call(place)), Parked)
        case "sends it, continues":
            assert isinstance(await _outcome(await call(place)), Delivered)
        case "canceled":
            outcome = await call(place)
            assert isinstance(outcome, Pending)
            assert outcome.reason == "canceled"
            assert place.future is None or await place.future == outcome
            status = await place.elsewhere.status("acme")
            assert (status.pending_reason, status.is_over) == ("canceled", True)
            assert not place.elsewhere._submitted
        case "keeps its outcome":
            result = await call(place)
            outcome = result if call is _cancel else await _outcome(result)
            assert type(outcome) is type(place.before)
            assert place.imports() == imports
        case "skips":
            assert await call(place) is None
        case "with `force`":
            with pytest.raises(InvalidInput, match="is not delivered"):
                await call(place)
            await place.fleet.forget("acme", force=True)
            assert await place.fleet.customers() == []
        case "deletes":
            await call(place)
            assert await place.fleet.customers() == []
        case _:
            raise AssertionError(f"no test knows what {cell!r} means")


def test_the_table_has_all_states_and_calls() -> None:
    cells = table()
    assert {state for state, _ in cells} == set(STATES)
    assert {call for _, call in cells} == set(CALLS)
    assert len(cells) == len(STATES) * len(CALLS) - 1


@pytest.mark.parametrize(("state", "call"), list(table()))
async def test_each_cell_is_true(places: Places, state: str, call: str, world: World) -> None:
    prepare, text = STATES[state]
    async with places(text) as here:
        await prepare(here)
        await check(table()[state, call], here, CALLS[call])
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.duplicate_companies == 0
