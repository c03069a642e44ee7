"""`--when-held`: a run reports a customer as pending if another process holds it, or waits for that process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncmig import Journal

from .conftest import SPEED, Cli, Simulator
from .test_run import GOOD, outcomes


@contextmanager
def held(journal: Path, external_id: str, until: Callable[[], bool]) -> Iterator[None]:
    """Hold a customer in another thread, like another process, until `until` returns true or the block ends."""
    is_held, ended = threading.Event(), threading.Event()

    async def hold() -> None:
        async with Journal(journal) as opened, await opened.claim(external_id):
            is_held.set()
            while not (until() or ended.is_set()):  # noqa: ASYNC110 - another thread changes the condition
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    try:
        assert is_held.wait(60)
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(("option", "code", "acme"), [("return", 75, "pending"), ("wait", 0, "delivered")])
def test_a_held_customer_stays_pending_or_is_waited_for(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    tmp_path: Path,
    option: str,
    code: int,
    acme: str,
) -> None:
    def other_is_created() -> bool:
        return option == "wait" and simulator.count("POST /companies") > 0

    manifest = customers(acme=GOOD, bolt=GOOD)
    with held(tmp_path / "fleet.db", "acme", other_is_created):
        result = cli(
            "run", manifest, "--when-held", option, "--speed", SPEED, "--base-url", simulator.base_url
        )
    assert result.code == code, result
    assert outcomes(tmp_path) == {"acme": acme, "bolt": "delivered"}
    assert ("--when-held wait" in result.out) == (option == "return"), result.out
    assert ("   held by process " in result.out) == (option == "return"), result.out
