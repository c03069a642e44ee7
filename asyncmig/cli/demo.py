"""`asyncmig demo`: migrate generated customers through a simulated API, and compare the result with the plan."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from asyncmig._core.limits import Limits
from asyncmig.cli.connection import run_at
from asyncmig.cli.options import DEFAULT_RATE, JsonOption
from asyncmig.cli.output import (
    SCHEMA,
    clean,
    counted,
    data_console,
    print_line,
    say,
    say_steps,
    words_console,
)
from asyncmig.cli.run import drive
from asyncmig.cli.settings import Options
from asyncmig.cli.sim import new_world
from asyncmig.cli.summary import RunResult, figures, print_figures, print_outcomes
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.outputs import check_folder
from asyncmig.journal import JournalPlace
from asyncmig.simulator import Plan, RunDurations, World, generate, migrations, serve
from asyncmig.simulator.migrations import data as migrations_data

__all__ = ["demo"]

P = TypeVar("P", Plan, migrations_data.Plan)
_MARK = ".asyncmig-demo"
_OWN = ("answers.toml", "customers.csv", "cust-*", "out", "fleet.db*", "report.html")
_MOST_SHOWN = 10
_FAST_LIMITS = "agent=600/1h,create=120/1h,generate=120/1h"
_FAST_RUNS = RunDurations(queued=1.0, base=15.0, per_row=0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of `asyncmig demo`."""

    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder to write to. The files of an earlier demo are replaced."),
    ] = Path("asyncmig-demo")
    api: Annotated[
        str, typer.Option(metavar="companies|migrations", help="The API generation to demonstrate.")
    ] = "companies"
    customers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=9999,
            metavar="N",
            help="How many customers to generate; the default is 40, or 12 with --api migrations.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed generates the same customers.")
    ] = 1
    speed: Annotated[
        float, typer.Option(min=0.01, metavar="FACTOR", help="Run the clock this many times as fast.")
    ] = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """How the run of the demo ended, and how that differs from the plan."""

    options: Options
    ended: RunResult
    differences: Sequence[str]
    """In outcomes, reasons and row counts."""
    read: str
    """What the customers' files contain, and what the runs asked."""
    more: Sequence[tuple[str, str]]
    """Further figures: a name, and a sentence."""


def demo(options: DemoOptions, as_json: JsonOption = False) -> None:
    """Migrate generated customers through a simulator, offline.

    Their files contain the usual faults. The demo takes less than a minute. The exit code is 0 if every customer
    ended as planned, otherwise 1.
    """
    result = run_at(options.speed, _play(options, words_console()))
    raise typer.Exit(0 if _print(data_console(), result, as_json=as_json) else 1)


async def _play(demo: DemoOptions, words: Console) -> _Result:
    """Generate customers, serve a simulated API and run the fleet against it, in one process and on one clock.

    Raises `InvalidInput` for a folder with other content, and for an unknown API generation.
    """
    plays = {"companies": _play_companies, "migrations": _play_migrations}
    if demo.api not in plays:
        raise InvalidInput("--api", demo.api, f"must be {' or '.join(plays)}")
    _prepare(demo.out)
    return await plays[demo.api](demo, words)


def _prepare(folder: Path) -> None:
    """Make the folder, or delete what an earlier demo wrote in it."""
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


def _options(demo: DemoOptions, base_url: str) -> Options:
    return Options(
        manifest=demo.out / "customers.csv",
        out=demo.out / "out",
        journal=JournalPlace(str(demo.out / "fleet.db")),
        report=demo.out / "report.html",
        decide="approve",
        speed=demo.speed,
        base_url=base_url,
    )


async def _play_companies(demo: DemoOptions, words: Console) -> _Result:
    plans = generate(demo.out, customers=demo.customers or 40, seed=demo.seed)
    world = new_world(seed=demo.seed, rate=DEFAULT_RATE)
    say(
        words,
        f"Wrote messy files of {len(plans):,} customers to {demo.out}/. A simulator of the API runs on loopback.",
    )
    async with serve(world) as serving:
        options = _options(demo, serving.base_url)
        ended = await drive(read_manifest(options.manifest), options, words, api_key=world.key)
    asked = sum(world.parked(plan.external_id) for plan in plans)
    parked = (
        f"; {asked:,} imports asked how to handle bad rows, and the proposal was approved" if asked else ""
    )
    noticed, delays = "no import ended", list(world.ledger.detection.values())
    if delays:
        noticed = f"ends of imports: {fmean(delays):.1f} s late on average, {max(delays):.1f} s at most"
    return _Result(
        options=options,
        ended=ended,
        differences=list(_differences(plans, ended, partial(_wrong_sheets, world))),
        read=f"{sum(plan.rows_in for plan in plans):,} rows{parked}",
        more=[("noticed", noticed)],
    )


async def _play_migrations(demo: DemoOptions, words: Console) -> _Result:
    plans, scripts = migrations_data.generate(demo.out, customers=demo.customers or 12, seed=demo.seed)
    limits = migrations.Limits.parse(_FAST_LIMITS)
    world = migrations.World(
        key=f"sim-key-{demo.seed}", seed=demo.seed, scripts=scripts, limits=limits, pace=_FAST_RUNS
    )
    say(
        words,
        f"Wrote messy files of {len(plans):,} customers to {demo.out}/, and rules that answer questions to "
        f"{demo.out}/answers.toml. A simulator of the API runs on loopback. The documented limits allow one new "
        f"customer an hour; this simulator allows more: {_FAST_LIMITS}.",
    )
    async with serve(world) as serving:
        options = replace(
            _options(demo, serving.base_url),
            api="migrations",
            answers=demo.out / "answers.toml",
            limits=Limits.parse(_FAST_LIMITS),
        )
        ended = await drive(
            read_manifest(options.manifest, api=options.api), options, words, api_key=world.key
        )
    asked = sum(plan.questions for plan in plans)
    verdict = world.verdict(asyncio.get_running_loop().time())
    return _Result(
        options=options,
        ended=ended,
        differences=list(_differences(plans, ended, partial(_wrong_counts, world))),
        read=f"{sum(plan.rows_in for plan in plans):,} rows; runs asked {counted(asked, 'question')}, and the rules "
        "in answers.toml answered",
        more=[("server", f"{counted(len(world.ledger.entries), 'request')} received; {verdict}")],
    )


def _differences(
    plans: Iterable[P], ended: RunResult, wrong_rows: Callable[[P, CustomerStatus], Iterator[str]]
) -> Iterator[str]:
    """Yield how customers differ from their plans; `wrong_rows` compares those that are delivered as planned."""
    rows = {row.external_id: row for row in ended.report.customers}
    for plan in plans:
        row = rows[plan.external_id]
        if row.outcome != plan.outcome:
            yield f"{plan.external_id}: {row.outcome} ({row.error}), expected {plan.outcome}"
        elif plan.reason not in (row.error or ""):
            yield f"{plan.external_id}: failed with {row.error!r}, expected {plan.reason!r}"
        elif plan.outcome == "delivered":
            for text in wrong_rows(plan, row):
                yield f"{plan.external_id}: {text}"


def _wrong_sheets(world: World, plan: Plan, row: CustomerStatus) -> Iterator[str]:
    planned = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
    for file in row.files:
        if file.rows != (expected := planned.get(file.sheet, 0)):
            yield f"{file.rows} rows of {file.sheet}, expected {expected}"
    for sheet in planned.keys() - {file.sheet for file in row.files}:
        yield f"no file of {sheet}"


def _wrong_counts(world: migrations.World, plan: migrations_data.Plan, row: CustomerStatus) -> Iterator[str]:
    rows, flagged = sum(file.rows for file in row.files), row.rows.flagged or 0
    answers = len(world.answers(plan.external_id))
    if (rows, flagged, answers) != (plan.rows, plan.flagged, plan.questions):
        expected = f"{plan.rows}, {plan.flagged} and {plan.questions}"
        yield f"{rows} rows, {flagged} of them flagged, and {answers} answers; expected {expected}"


def _print(data: Console, result: _Result, *, as_json: bool) -> bool:
    """Print the result and the differences from the plan; return whether there are none."""
    ended, options = result.ended, result.options
    faults: Sequence[str] = () if ended.reason else result.differences
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
    planned = f"all {len(ended.customers):,} customers ended as planned: outcomes, reasons and row counts"
    if faults:
        planned = f"{len(faults):,} differences from the plan:"
    print_figures(data, [("read", result.read), *figures(ended), *result.more, ("planned", planned)])
    for fault in faults[:_MOST_SHOWN]:
        say(data, f"  {clean(fault)}", "red")
    data.print()
    say_steps(data, _next_steps(options))
    return not faults


def _next_steps(options: Options) -> Iterator[str]:
    is_first = options.api == "companies"
    speed = "" if options.speed == 1 else f" --speed {options.speed:g}"
    more = "" if is_first else f" --api migrations --limits {_FAST_LIMITS}"
    answers = "" if is_first else f" --decide approve --answers {options.answers}"
    yield f"For a report with charts, open {options.report} in a browser."
    yield f"The sheets are in {options.out}/, with the status of each customer in report.json."
    yield "Next, try it with two processes:"
    yield f"  asyncmig sim{speed}{more}    # in a second terminal; paste its first line here, then run"
    yield f"  asyncmig run {options.manifest}{speed}{more}{answers}"
