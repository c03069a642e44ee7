"""Polls and the learnt size of their budget."""

import asyncio
from contextlib import aclosing

import pytest
from run_server import LIFE, Server, now

from asyncmig._io.gate import Gate
from asyncmig._io.poller import Poller

pytestmark = pytest.mark.looptime


async def test_polls_alone_restore_a_budget_that_another_client_has_used() -> None:
    gate = Gate(limit=20)
    async with aclosing(Poller()) as poller:
        waits = [
            asyncio.create_task(poller.watch(n, gate=gate, read=server, lifecycle=LIFE, started=now()).wait())
            for n, server in enumerate([Server((0, "running")) for _ in range(30)])
        ]
        await asyncio.sleep(50.0)
        for _ in range(2):  # two refusals, as if another client used the budget
            async with gate.slot() as slot:
                slot.answered(429)
        await asyncio.sleep(30.0)
        assert gate.statistics().slots < 20
        await asyncio.sleep(1200.0)
        assert gate.statistics().slots == 20
    await asyncio.gather(*waits, return_exceptions=True)
