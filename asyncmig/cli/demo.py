"""`asyncmig demo`: migrate generated customers through a simulated API, and compare the result with the plan."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console

from asyncmig.cli.options import DEFAULT_RATE
from asyncmig.cli.output import SCHEMA, clean, print_line, say, say_steps
from asyncmig.cli.run import RunResult, drive
from asyncmig.cli.settings import Options
from asyncmig.cli.sim import new_world
from asyncmig.cli.summary import figures, print_figures, print_outcomes
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.outputs import check_folder
from asyncmig.journal import JournalPlace
from asyncmig.simulator.companies.data import Plan, generate
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.ledger import Ledger

__all__ = ["DemoOptions", "DemoResult", "play", "print_demo"]

_MARK = ".asyncmig-demo"
_OWN = ("customers.csv", "cust-*", "out", "fleet.db*", "report.html")
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of `asyncmig demo`."""

    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder to write; the files of an earlier demo are replaced."),
    ] = Path("asyncmig-demo")
    customers: Annotated[
        int, typer.Option(min=1, max=9999, metavar="N", help="How many customers to generate.")
    ] = 40
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed generates the same customers.")
    ] = 1
    speed: Annotated[
        float, typer.Option(min=0.01, metavar="FACTOR", help="Run the clock this many times faster.")
    ] = 60.0


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo planned, and how its run ended."""

    options: Options
    plans: Sequence[Plan]
    world: World
    ended: RunResult

    def deviations(self) -> list[str]:
        """Return the differences from the plan in outcomes, reasons and row counts."""
        rows = {row.external_id: row for row in self.ended.report.customers}
        return [fault for plan in self.plans for fault in _faults(plan, rows[plan.external_id], self.world)]


async def play(demo: DemoOptions, words: Console) -> DemoResult:
    """Generate customers, serve a simulated API and run the fleet against it, in one process and on one clock.

    Raises `InvalidInput` for a folder with other content.
    """
    plans, world = _generate(demo), new_world(seed=demo.seed, rate=DEFAULT_RATE)
    say(words, f"{demo.customers:,} customers with messy files in {demo.out}/, and a simulator on loopback.")
    async with serve(world) as serving:
        options = Options(
            manifest=demo.out / "customers.csv",
            out=demo.out / "out",
            journal=JournalPlace(str(demo.out / "fleet.db")),
            report=demo.out / "report.html",
            decide="approve",
            speed=demo.speed,
            base_url=serving.base_url,
        )
        ended = await drive(read_manifest(options.manifest), options, words, api_key=world.key)
    return DemoResult(options, plans, world, ended)


def _generate(demo: DemoOptions) -> list[Plan]:
    """Generate the customers, replacing those of an earlier demo; return the expected result of each."""
    folder = demo.out
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
    return generate(folder, customers=demo.customers, seed=demo.seed)


def _faults(plan: Plan, row: CustomerStatus, world: World) -> Iterator[str]:
    if row.outcome != plan.outcome:
        yield f"{plan.external_id}: {row.outcome} ({row.error}), expected {plan.outcome}"
    elif plan.reason not in (row.error or ""):
        yield f"{plan.external_id}: failed with {row.error!r}, expected {plan.reason!r}"
    elif plan.outcome == "delivered":
        planned = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
        for file in row.files:
            if file.rows != planned.get(file.sheet, 0):
                yield (
                    f"{plan.external_id}: {file.rows} rows of {file.sheet}, "
                    f"expected {planned.get(file.sheet, 0)}"
                )
        for sheet in planned.keys() - {file.sheet for file in row.files}:
            yield f"{plan.external_id}: no file of {sheet}"


def print_demo(data: Console, result: DemoResult, *, as_json: bool) -> bool:
    """Print the result and the differences from the plan; return whether there are none."""
    ended, options = result.ended, result.options
    faults = [] if ended.reason else result.deviations()
    as_planned = not faults and not ended.reason
    if as_json:
        outcomes = Counter(row.outcome for row in ended.customers)
        verdict = {"as_planned": as_planned, "reason": ended.reason, "differences": faults}
        print_line({"schema": SCHEMA, **verdict, "outcomes": outcomes, "budget": ended.report.budget})
        return as_planned
    if ended.reason:
        reason = clean(ended.reason)
        say(data, f"The demo did not finish ({reason}). The next demo starts from the beginning.")
        return False
    data.print()
    print_outcomes(data, ended.customers, f"{options.out}/report.json")
    asked = sum(result.world.parked(plan.external_id) for plan in result.plans)
    parked = (
        f"; {asked:,} imports asked how to handle bad rows, and the proposal was approved" if asked else ""
    )
    figures_of_demo = [
        ("read", f"{sum(plan.rows_in for plan in result.plans):,} rows{parked}"),
        *figures(ended),
        ("noticed", _noticed(result.world.ledger)),
        ("planned", _verdict(faults, len(result.plans))),
    ]
    print_figures(data, figures_of_demo)
    for fault in faults[:_MOST_SHOWN]:
        say(data, f"  {clean(fault)}", "red")
    data.print()
    say_steps(data, _next_steps(options))
    return not faults


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
