"""The use of budgets that `asyncmig status` prints: of the send log, and of the last `report.json`."""

import logging
from collections.abc import Mapping, Sequence

import msgspec
from rich.console import Console

from asyncmig import generations
from asyncmig._core.limits import BY_KEY, Limits
from asyncmig._core.rate import Rate
from asyncmig._io.send_log import SendLog
from asyncmig.cli.connection import timeouts_at
from asyncmig.cli.output import SCHEMA, print_line, print_table, say
from asyncmig.cli.report import BudgetUse, read_report
from asyncmig.cli.settings import Options
from asyncmig.errors import InvalidInput
from asyncmig.journal import JournalPlace

__all__ = ["BudgetStatus", "print_budgets", "read_budgets"]

_log = logging.getLogger("asyncmig")


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The present use of one budget, or of the run slots (`runs`)."""

    budget: str
    limit: int
    window: float | None = None
    """Seconds; None for the run slots."""
    used: int
    """The slots taken in the last window, by the send log; of run slots, those taken when the report was written."""
    requests: int | None = None
    """The requests that the last run sent; None for the run slots, and if no `report.json` can be read."""
    refused: int | None = None
    """The 429s of the last run; None if no `report.json` can be read."""


def read_budgets(place: JournalPlace, options: Options) -> list[BudgetStatus]:
    """Return the use of each budget of a journal's last run, and of its run slots; empty before its first request.

    `options`: the settings of that run.
    """
    try:
        last = read_report(options.out).budget
    except (OSError, ValueError):
        last = None
    timeout = timeouts_at(options.speed).total or 0.0
    ages = SendLog(place.beside("recent"), speed=options.speed, timeout=timeout).ages()
    uses = last.limits if last else {}
    if not ages and not uses:
        return []
    try:
        limits, generation = options.all_limits, generations.find(options.api)
    except InvalidInput as error:  # the file with the settings was changed, or a later version wrote it
        _log.warning("the use of budgets is not shown: the settings of the last run have %s", error)
        return []
    named: Mapping[str, Rate] = limits.budgets if generation.endpoints else {}
    found: list[BudgetStatus] = []
    for name in dict.fromkeys((*named, *sorted({*uses, *ages}))):
        rate, use = _rate(limits, name), uses.get(name, BudgetUse()) if last else None
        found.append(
            BudgetStatus(
                budget=name,
                limit=rate.limit,
                window=rate.window,
                used=sum(age < rate.window for age in ages.get(name, ())),
                requests=use.requests if use else None,
                refused=use.refused if use else None,
            )
        )
    if last and (slots := last.run_slots):
        taken = slots.get("in_progress", 0) + slots.get("others", 0)
        limit, refused = slots.get("limit", 0), slots.get("refused", 0)
        found.append(BudgetStatus(budget="runs", limit=limit, used=taken, refused=refused))
    return found


def _rate(limits: Limits, name: str) -> Rate:
    if (rate := limits.budgets.get(name)) is not None:
        return rate
    return limits.key if name == BY_KEY and limits.key is not None else limits.endpoint


def print_budgets(data: Console, budgets: Sequence[BudgetStatus], *, as_json: bool = False) -> None:
    """Print a line for each budget; nothing if there are none."""
    if as_json:
        for each in budgets:
            print_line({"schema": SCHEMA, **msgspec.structs.asdict(each)})
        return
    if not budgets:
        return
    say(data, "Slots in use now; requests and 429s of the last run:")
    rows = [
        (
            str(each.limit if each.window is None else Rate(each.limit, each.window)),
            f"{each.used:,}",
            *("" if figure is None else f"{figure:,}" for figure in (each.requests, each.refused)),
            {BY_KEY: "all requests", "runs": "run slots"}.get(each.budget, each.budget),
        )
        for each in budgets
    ]
    heads = ("limit", "in use", "requests", "429s", "budget")
    print_table(data, heads, rows, right=heads[:-1])
