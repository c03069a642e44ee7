"""The guide has a table of what each call does in each state. Each cell is tested against the simulator."""

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

from .conftest import CLEAN, DUPLICATES, SOURCE, OpenSession

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
class Setup:
    """A fleet, another process with the same journal, and a customer."""

    fleet: Fleet
    elsewhere: Fleet
    journal: Journal
    world: World
    customer: Customer
    spec: Spec
    future: "asyncio.Future[Outcome] | None" = None
    """The customer's future in `fleet`, if the customer runs there."""
    before: Outcome | None = None
    """The customer's recorded outcome before the call."""

    async def step(self, fleet: Fleet, step: str) -> None:
        async for status in fleet.follow("acme"):
            if status.step == step:
                return
        raise AssertionError(f"the customer ended before the step {step}")

    def imports(self) -> int:
        entries = [each for each in self.world.ledger.entries if each.template == "/companies/{id}/imports"]
        return sum(each.method == "POST" and each.status in (200, 201) for each in entries)


Setups = Callable[[str], AbstractAsyncContextManager[Setup]]


@pytest.fixture
def setups(open_session: OpenSession, world: World, customer: Customer, tmp_path: Path) -> Setups:
    @asynccontextmanager
    async def opened(text: str) -> AsyncIterator[Setup]:
        path, to = tmp_path / "fleet.db", tmp_path / "out"
        async with (
            Journal(path, threaded=False) as one,
            Journal(path, threaded=False) as two,
            open_session() as first,
            open_session() as second,
            Fleet(first, journal=one, to=to, concurrency=1) as fleet,
            Fleet(second, journal=two, to=to) as elsewhere,
        ):
            yield Setup(fleet, elsewhere, one, world, customer, customer(contacts=text))

    return opened


# States


async def _absent(setup: Setup) -> None:
    pass


async def _waiting(setup: Setup) -> None:
    setup.fleet.submit(setup.customer("first"))
    setup.future = await setup.fleet.accept(setup.spec)


async def _running(setup: Setup) -> None:
    setup.future = await setup.fleet.accept(setup.spec)
    await setup.step(setup.fleet, "running")


async def _elsewhere(setup: Setup) -> None:
    await setup.elsewhere.accept(setup.spec)
    await setup.step(setup.fleet, "running")


async def _interrupted(setup: Setup) -> None:
    await setup.elsewhere.accept(setup.spec)
    await setup.step(setup.fleet, "running")
    await setup.elsewhere.drain()


async def _canceled(setup: Setup) -> None:
    await _running(setup)
    await setup.fleet.cancel("acme")
    setup.future = None


async def _ended(setup: Setup) -> None:
    setup.before = await setup.fleet.submit(setup.spec)


async def _failed(setup: Setup) -> None:
    setup.spec.files[0].write_bytes(CLEAN.encode() + b"caf\xe9,,,\n")
    await _ended(setup)
    assert isinstance(setup.before, Failed)


async def _unknown(setup: Setup) -> None:
    await setup.fleet._session.companies.create(name="acme", source=SOURCE, external_id="acme")
    await _ended(setup)
    assert isinstance(setup.before, Unknown)


STATES: dict[str, tuple[Callable[[Setup], Awaitable[None]], str]] = {
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


async def _submit(setup: Setup) -> object:
    return setup.fleet.submit(setup.spec)


async def _retry(setup: Setup) -> object:
    return await setup.fleet.retry("acme")


async def _decide(setup: Setup) -> object:
    assert await setup.fleet.decide("acme", Approve()) == "sent"
    return setup.fleet.submit(setup.spec)


async def _cancel(setup: Setup) -> object:
    return await setup.fleet.cancel("acme")


async def _forget(setup: Setup) -> object:
    return await setup.fleet.forget("acme")


async def _resume(setup: Setup) -> object:
    return (await setup.fleet.resume()).get("acme")


CALLS: dict[str, Callable[[Setup], Awaitable[object]]] = {
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


async def check(cell: str, setup: Setup, call: Callable[[Setup], Awaitable[object]]) -> None:
    """Perform a call, and check that it does what the cell says."""
    imports = setup.imports()
    match cell:
        case "`CustomerNotFound`" | "`InvalidInput`" | "`CustomerHeld`":
            kinds = {each.__name__: each for each in (CustomerNotFound, InvalidInput, CustomerHeld)}
            with pytest.raises(kinds[cell.strip("`")]):
                await call(setup)
            if setup.future is not None:
                assert isinstance(await setup.future, Delivered)
        case "starts":
            assert isinstance(await _outcome(await call(setup)), Delivered)
        case "starts again":
            setup.spec.files[0].write_text(CLEAN, encoding="utf-8")
            assert isinstance(await _outcome(await call(setup)), Delivered)
            assert setup.imports() == imports + 1
        case "same future":
            assert await call(setup) is setup.future
            assert isinstance(await _outcome(setup.future), Delivered)
        case "continues" | "waits, continues":
            result = await call(setup)
            if cell == "waits, continues":
                await setup.elsewhere.drain()  # the other process ends
            assert isinstance(await _outcome(result), Delivered)
            assert setup.imports() == max(imports, 1)
        case "asks again":
            assert isinstance(await _outcome(await call(setup)), Parked)
        case "sends it, continues":
            assert isinstance(await _outcome(await call(setup)), Delivered)
        case "canceled":
            outcome = await call(setup)
            assert isinstance(outcome, Pending)
            assert outcome.reason == "canceled"
            assert setup.future is None or await setup.future == outcome
            status = await setup.elsewhere.status("acme")
            assert (status.pending_reason, status.is_over) == ("canceled", True)
            assert not setup.elsewhere._submitted
        case "keeps its outcome":
            result = await call(setup)
            outcome = result if call is _cancel else await _outcome(result)
            assert type(outcome) is type(setup.before)
            assert setup.imports() == imports
        case "skips":
            assert await call(setup) is None
        case "with `force`":
            with pytest.raises(InvalidInput, match="is not delivered"):
                await call(setup)
            await setup.fleet.forget("acme", force=True)
            assert await setup.fleet.customers() == []
        case "deletes":
            await call(setup)
            assert await setup.fleet.customers() == []
        case _:
            raise AssertionError(f"the test has no case for the cell {cell!r}")


def test_the_table_has_all_states_and_calls() -> None:
    cells = table()
    assert {state for state, _ in cells} == set(STATES)
    assert {call for _, call in cells} == set(CALLS)
    assert len(cells) == len(STATES) * len(CALLS) - 1


@pytest.mark.parametrize(("state", "call"), list(table()))
async def test_each_cell_describes_the_behaviour(setups: Setups, state: str, call: str, world: World) -> None:
    prepare, text = STATES[state]
    async with setups(text) as here:
        await prepare(here)
        await check(table()[state, call], here, CALLS[call])
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.duplicate_companies == 0
