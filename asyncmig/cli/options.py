"""What `asyncmig run` was asked for, and the command line that asks for the same again."""

import re
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from asyncmig.companies.expected import RowFilter
from asyncmig.errors import InvalidInput
from asyncmig.session import Scope

__all__ = ["DecideChoice", "Options", "Rate", "parse_rate"]

DecideChoice = Literal["park", "approve-safe", "approve", "reject"]
_RATE = re.compile(r"(\d{1,9})/(\d{0,9}(?:\.\d{1,9})?)(s|m|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in so many seconds."""

    limit: int = 100
    window: float = 60.0

    def __str__(self) -> str:
        return f"{self.limit}/{self.window:g}s"


def parse_rate(text: str) -> Rate:
    """Read `100/60s`, `100/1m` or `100/m`; raise `InvalidInput` for anything else, or for a rate of nothing."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or not (match[2] or match[3]):
        raise InvalidInput("rate", text, "must look like 100/60s: so many requests in so many seconds")
    rate = Rate(int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"])
    if rate.limit < 1 or rate.window <= 0:
        raise InvalidInput("rate", text, "must be more than nothing")
    return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The arguments of `asyncmig run`, with their defaults."""

    manifest: Path
    out: Path = Path("out")
    journal: Path = Path("fleet.db")
    decide: DecideChoice = "park"
    filter: RowFilter = "valid"
    scope: Scope = "endpoint"
    rate: Rate = Rate()
    concurrency: int = 500
    speed: float = 1.0
    base_url: str | None = None

    def at(self, base_url: str) -> "Options":
        """Return the same, for another server."""
        return replace(self, base_url=base_url)

    def command(self, decide: DecideChoice | None = None) -> str:
        """Return the line that goes on from here, with another decision if one is given; it holds no key."""
        wanted = replace(self, decide=decide or self.decide)
        words = ["asyncmig", "run", str(wanted.manifest)]
        for field in fields(Options):
            value = getattr(wanted, field.name)
            if field.name != "manifest" and value != field.default:
                text = f"{value:g}" if isinstance(value, float) else str(value)
                words += [f"--{field.name.replace('_', '-')}", text]
        return shlex.join(words)
