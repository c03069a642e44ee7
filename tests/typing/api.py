"""The public API as type checkers see it: read by mypy and pyright, and never run."""

from pathlib import Path
from typing import assert_type

import asyncmig
from asyncmig import preflight


async def handles() -> None:
    async with asyncmig.Session() as session:
        assert_type(session, asyncmig.Session)
        assert_type(await session.companies.sources(), tuple[asyncmig.Source, ...])
        assert_type(await session.companies.templates(), tuple[asyncmig.Template, ...])
        company = await session.companies.create(name="Acme", source="id", external_id="acme")
        assert_type(company, asyncmig.Company)
        run = await company.imports.start(files=[Path("contacts.csv")])
        assert_type(run, asyncmig.ImportRun)
        assert_type(await run.wait(), asyncmig.ImportState)
        assert_type(run.needs_attention, asyncmig.NeedsAttention | None)
        async for state in run.updates():
            assert_type(state, asyncmig.ImportState)
        await run.approve(answers={"fq0": "a", "fq1": asyncmig.Custom("text")})
        assert_type(await company.download(to="out", filter="all"), list[asyncmig.Downloaded])


async def fleet(specs: list[asyncmig.Spec]) -> None:
    async with asyncmig.Session() as session, asyncmig.Fleet(session, journal="fleet.db") as driven:
        async for outcome in driven.run(specs):
            match outcome:
                case asyncmig.Delivered():
                    assert_type(outcome.files, tuple[asyncmig.Downloaded, ...])
                case asyncmig.Parked():
                    assert_type(outcome.destructive, tuple[asyncmig.Action, ...])
                case asyncmig.Failed() | asyncmig.Unknown() | asyncmig.Pending():
                    assert_type(outcome.error, str)


async def check(spec: asyncmig.Spec, templates: tuple[asyncmig.Template, ...]) -> None:
    assert_type(await spec.check(templates, head=1000), preflight.Checked)
    assert_type(await preflight.check(spec.files), preflight.Checked)
    assert_type(spec.validate(), int)


async def gate() -> None:
    budget = asyncmig.Gate(limit=100, window=60.0)
    async with budget.slot(lane=asyncmig.Lane.WORK, max_wait=5.0) as slot:
        assert_type(slot, asyncmig.Slot)
        slot.answered(200)
    assert_type(budget.statistics(), asyncmig.GateStatistics)
    assert_type(budget.wait_estimate(), float)
