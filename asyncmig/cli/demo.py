"""`asyncmig demo`: migrate generated customers through a simulator, and compare the results with the plan."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.cli.run import RunResult, drive
from asyncmig.cli.settings import Options
from asyncmig.cli.summary import figures, print_figures, print_outcomes
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.outputs import check_folder
from asyncmig.simulator.companies.data import Plan, generate
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.ledger import Ledger

__all__ = ["demo_options", "deviations", "play", "prepare", "print_demo"]

_MARK = ".asyncmig-demo"
_OWN = ("customers.csv", "cust-*", "out", "fleet.db*", "report.html")
_MOST_SHOWN = 10


def prepare(folder: Path, *, customers: int, seed: int) -> list[Plan]:
    """Generate the customers in `folder`, replacing those of an earlier demo; return the expected result of each.

    Raises `InvalidInput` for a folder with other content.
    """
    check_folder("out", folder)
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARK).is_file():
            raise InvalidInput(
                "out", str(folder), "is not empty and was not written by a demo: name another folder"
            )
        for pattern in _OWN:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text(
        "Written by `asyncmig demo`, which replaces this folder's content each time.\n", encoding="utf-8"
    )
    return generate(folder, customers=customers, seed=seed)


def demo_options(folder: Path, *, speed: float) -> Options:
    """Return the options of the demo's run."""
    return Options(
        manifest=folder / "customers.csv",
        out=folder / "out",
        journal=folder / "fleet.db",
        report=folder / "report.html",
        decide="approve",
        speed=speed,
    )


async def play(world: World, options: Options, words: Console) -> RunResult:
    """Serve `world` on loopback and run the fleet against it, in one process and on one clock."""
    async with serve(world) as serving:
        return await drive(
            read_manifest(options.manifest),
            options.at(serving.base_url),
            words,
            api_key=world.key,
        )


def deviations(plans: Sequence[Plan], ended: RunResult, world: World) -> list[str]:
    """Return the differences from the plan in outcomes, reasons and row counts."""
    rows = {company.external_id: company for company in ended.report.customers}
    return [fault for plan in plans for fault in _faults(plan, rows[plan.external_id], world)]


def _faults(plan: Plan, company: CustomerStatus, world: World) -> Iterator[str]:
    if company.outcome != plan.outcome:
        yield f"{plan.external_id}: {company.outcome} ({company.error}), expected {plan.outcome}"
    elif plan.reason not in (company.error or ""):
        yield f"{plan.external_id}: failed with {company.error!r}, expected {plan.reason!r}"
    elif plan.outcome == "delivered":
        planned = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
        for file in company.files:
            if file.rows != planned.get(file.sheet, 0):
                yield (
                    f"{plan.external_id}: {file.rows} rows of {file.sheet}, "
                    f"expected {planned.get(file.sheet, 0)}"
                )
        for sheet in planned.keys() - {file.sheet for file in company.files}:
            yield f"{plan.external_id}: no file of {sheet}"


def print_demo(
    data: Console, ended: RunResult, options: Options, plans: Sequence[Plan], world: World
) -> bool:
    """Print the result and the differences from the plan; return whether there are none."""
    if ended.reason:
        say(
            data, f"The demo did not finish ({clean(ended.reason)}). The next demo starts from the beginning."
        )
        return False
    faults = deviations(plans, ended, world)
    print_outcomes(data, ended, options)
    print_figures(
        data,
        [
            ("read", f"{sum(plan.rows_in for plan in plans):,} rows{_asked(plans, world)}"),
            *figures(ended),
            ("noticed", _noticed(world.ledger)),
            ("planned", _verdict(faults, len(plans))),
        ],
    )
    for fault in faults[:_MOST_SHOWN]:
        say(data, f"  {clean(fault)}", "red")
    data.print()
    for line in _next_steps(options):
        say(data, line)
    return not faults


def _asked(plans: Sequence[Plan], world: World) -> str:
    asked = sum(world.parked(plan.external_id) for plan in plans)
    return f"; {asked:,} imports asked how to handle bad rows, and the proposal was approved" if asked else ""


def _noticed(ledger: Ledger) -> str:
    delays = list(ledger.detection.values())
    if not delays:
        return "no import ended"
    return f"the end of an import after {fmean(delays):.1f} s on average, {max(delays):.1f} s at most"


def _verdict(faults: Sequence[str], customers: int) -> str:
    if not faults:
        return f"all {customers:,} customers ended as planned: outcomes, reasons and row counts"
    return f"{len(faults):,} differences from the plan:"


def _next_steps(options: Options) -> Iterator[str]:
    speed = "" if options.speed == 1 else f" --speed {options.speed:g}"
    yield f"For a report with charts, open {options.report} in a browser."
    yield f"See also {options.out}/report.json and {options.out}/cust-0001/. Next, try it with two processes:"
    yield f"  asyncmig sim{speed}    # in a second terminal; paste its first line here, then run"
    yield f"  asyncmig run {options.manifest}{speed}"
