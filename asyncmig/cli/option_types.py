"""Rates and durations as people write them on a command line."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import typer
from typer.models import OptionInfo

from asyncmig._core.rate import Rate, parse_rate
from asyncmig.errors import InvalidInput

__all__ = [
    "DEFAULT_RATE",
    "Duration",
    "Rate",
    "duration_option",
    "parse_duration",
    "parse_rate",
    "rate_option",
    "spoken",
]

T = TypeVar("T")
_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,3})?)s?)?")


DEFAULT_RATE = Rate()


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time."""

    seconds: float

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
        return "".join(f"{amount:g}{unit}" for amount, unit in parts if amount)


def parse_duration(text: str) -> Duration:
    """Read `90s`, `90`, `45m` or `1h30m`; raise `InvalidInput` for anything else, or for no time at all."""
    match = _DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    duration = Duration(hours * 3600 + minutes * 60 + seconds)
    if duration.seconds <= 0:
        raise InvalidInput("duration", text, "must look like 90s, 45m or 1h30m")
    return duration


def spoken(seconds: float) -> str:
    """Return a length of time for people: two units at most, and no more digits than anybody needs."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rate_option(words: str, envvar: str | None = None) -> OptionInfo:
    """Return an option that takes a rate."""
    return _option(parse_rate, words, envvar, "RATE")


def duration_option(words: str, envvar: str) -> OptionInfo:
    """Return an option that takes a duration."""
    return _option(parse_duration, words, envvar, "DURATION")


def _option(parse: Callable[[str], T], words: str, envvar: str | None, metavar: str) -> OptionInfo:
    def parser(value: object) -> T:
        try:
            return parse(str(value))  # a default is a value already, and reads as it is written
        except InvalidInput as error:
            raise typer.BadParameter(f"{error.value!r} {error.reason}") from error

    option = typer.Option(parser=parser, help=words, envvar=envvar, show_envvar=False, metavar=metavar)
    assert isinstance(option, OptionInfo)
    return option
