"""A fleet that is cancelled in an iteration of the event loop releases all resources. The same call continues it."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import Turns

from asyncmig import Fleet, Journal, MemoryJournal, Outcome, Session, Spec
from asyncmig.journal import JournalPort
from asyncmig.transfers.uploads import UploadLimits

from .test_kills import comparable, customers, files, remove_journal, server_state, simulated

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_fsync")]
Open = Callable[[], JournalPort]


async def work(
    transport: InProcess, specs: list[Spec], out: Path, journal: JournalPort, turns: Turns
) -> dict[str, Outcome]:
    """Run the fleet. Then check that it released all resources, whether it was cancelled or not."""
    session = Session(KEY, BASE_URL, transport=transport, rng=Random(1))
    upload_slots = session._context.kept(UploadLimits).slots
    free_upload_slots = upload_slots.value
    fleet = Fleet(session, journal=journal, to=out, decide="approve", export="full", concurrency=1)
    task = asyncio.current_task()
    assert task is not None
    turns.watch(task)
    try:
        async with session, fleet:
            return {outcome.external_id: outcome async for outcome in fleet.run(specs)}
    finally:
        turns.stop()
        task.uncancel()
        assert asyncio.all_tasks() == {task}
        assert transport.open == 0
        assert not list(out.rglob("*.part"))
        assert fleet._admission._free == 1
        assert upload_slots.value == free_upload_slots
        assert all(not any(gate.waiting.values()) for gate in session.stats().values())
        await asyncio.sleep(62.0)
        assert all(gate.used == 0 for gate in session.stats().values())


async def cancelled(
    specs: list[Spec], out: Path, open_journal: Open, turns: Turns
) -> tuple[bool, object, object]:
    """Cancel the fleet in one iteration, then run it to its end.

    Return whether it was cancelled, the outcomes and the state of the server.
    """
    transport, journal, was_cancelled = simulated(), open_journal(), False
    if isinstance(journal, Journal):
        await journal.__aenter__()
    try:
        await work(transport, specs, out, journal, turns)
    except asyncio.CancelledError:
        was_cancelled = True
    for spec in specs:  # every claim was released
        await (await journal.claim(spec.external_id)).release()
    outcomes = await work(transport, specs, out, journal, Turns())
    if isinstance(journal, Journal):
        await journal.__aexit__(None, None, None)
    return was_cancelled, comparable(outcomes), server_state(transport)


def run(specs: list[Spec], out: Path, open_journal: Open, turns: Turns) -> tuple[bool, object, object]:
    descriptors = len(os.listdir("/proc/self/fd"))
    with asyncio.Runner(loop_factory=turns.loop) as runner:
        result = runner.run(cancelled(specs, out, open_journal, turns))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return result


@pytest.mark.usefixtures("without_garbage")
@pytest.mark.parametrize("place", ["in-memory-every-turn", "on-disk-every-eighteenth"])
def test_a_fleet_cancelled_in_any_iteration_releases_all_and_can_be_continued(
    tmp_path: Path, place: str, stride: int
) -> None:
    """With a journal on disk, `--every-point` selects every ninth iteration."""
    in_memory, out = place.startswith("in-memory"), tmp_path / "out"

    def open_journal() -> JournalPort:
        return MemoryJournal() if in_memory else Journal(tmp_path / "fleet.db", threaded=False)

    specs = [spec for spec in customers(tmp_path / "in") if spec.external_id in ("parks", "fails")]
    turns = Turns()
    _, *expected = run(specs, out, open_journal, turns)
    expected.append(files(out))
    number = 1
    while True:
        shutil.rmtree(out)
        remove_journal(tmp_path)
        was_cancelled, *result = run(specs, out, open_journal, Turns(number))
        assert [*result, files(out)] == expected, number
        if not was_cancelled:
            break
        number += 1 if in_memory else 9 * stride
    print(f"cancelled in {number} iterations")  # noqa: T201
    assert number > 100
