"""`--when-held`: a customer that another process works on is left pending, or waited for."""

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
    """Hold a customer in another thread, as another process would, until `until` is true or the block ends."""
    is_held, ended = threading.Event(), threading.Event()

    async def hold() -> None:
        async with Journal(journal) as opened, await opened.claim(external_id):
            is_held.set()
            while not (until() or ended.is_set()):  # noqa: ASYNC110 - it is about another thread
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
def test_a_held_customer_is_left_or_waited_for(
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
        told = cli("run", manifest, "--when-held", option, "--speed", SPEED, "--base-url", simulator.base_url)
    assert told.code == code, told
    assert outcomes(tmp_path) == {"acme": acme, "bolt": "delivered"}
    assert ("--when-held wait" in told.out) == (option == "return"), told.out
    assert ("   held by process " in told.out) == (option == "return"), told.out
