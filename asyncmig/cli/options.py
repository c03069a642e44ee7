"""Option types (rates, durations), and `dataclass_options`: fields of dataclasses as options of a command."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime, timedelta
from typing import ParamSpec, Protocol, TypeVar, cast, get_type_hints

import typer
from typer.models import OptionInfo

from asyncmig._core.duration import Duration, parse_duration
from asyncmig._core.limits import Limits
from asyncmig._core.rate import Rate, parse_rate
from asyncmig.errors import InvalidInput

__all__ = [
    "DEFAULT_RATE",
    "Duration",
    "Rate",
    "dataclass_options",
    "duration_option",
    "environment_name",
    "limits_option",
    "parse_duration",
    "parse_rate",
    "rate_option",
    "setting_option",
    "spoken",
    "spoken_wait",
]


T = TypeVar("T")


DEFAULT_RATE = Rate()
_DAY = 24 * 3600.0
_LONG = 300.0
"""Seconds of a wait from which the time of its end is shown."""


def spoken(seconds: float) -> str:
    """Return a duration for people, in at most two units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def spoken_wait(seconds: float) -> str:
    """Return a wait for people; of a long one also the time of day at which it ends."""
    if seconds < _LONG:
        return spoken(seconds)
    until = datetime.now().astimezone() + timedelta(seconds=seconds)
    return f"until {until:{'%H:%M' if seconds < _DAY else '%d %b %H:%M'}}, {spoken(seconds)}"


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting."""
    return f"ASYNCMIG_{setting.upper()}"


def setting_option(name: str, metavar: str, words: str, *, least: float | None = None) -> OptionInfo:
    """Return the option of a setting, which an environment variable can also set. `least`: the smallest number."""
    option = typer.Option(
        help=words, metavar=metavar, min=least, envvar=environment_name(name), show_envvar=False
    )
    assert isinstance(option, OptionInfo)
    return option


def rate_option(envvar: str | None = None) -> OptionInfo:
    """Return an option that takes a rate limit."""
    return _option(parse_rate, "The rate limit: requests in a window, such as 100/60s.", envvar, "RATE")


def limits_option(envvar: str) -> OptionInfo:
    """Return an option that takes all limits of a server."""
    words = (
        "All limits of the server: per-endpoint, per-key, per-minute, by-class, or numbers that differ from "
        "by-class, such as agent=50/1h,runs=5."
    )
    return _option(Limits.parse, words, envvar, "LIMITS")


def duration_option(words: str, envvar: str) -> OptionInfo:
    """Return an option that takes a duration."""
    return _option(parse_duration, words, envvar, "DURATION")


def _option(parse: Callable[[str], T], words: str, envvar: str | None, metavar: str) -> OptionInfo:
    def parser(value: object) -> T:
        try:
            return parse(str(value))  # a default is parsed from its own text
        except InvalidInput as error:
            raise typer.BadParameter(f"{error.value!r} {error.reason}") from error

    option = typer.Option(parser=parser, help=words, envvar=envvar, show_envvar=False, metavar=metavar)
    assert isinstance(option, OptionInfo)
    return option


P = ParamSpec("P")
_KIND = inspect.Parameter.KEYWORD_ONLY


class _Command(Protocol):
    def __call__(self, **values: object) -> None: ...


def dataclass_options(command: Callable[P, None]) -> Callable[P, None]:
    """Return `command` with each dataclass parameter replaced by its fields, so that typer makes options of them.

    Several commands can share a dataclass, so help texts and defaults are written once. If the command has a
    parameter of the same name as a field, that parameter is the option and also fills the field.
    """
    given = inspect.signature(command, eval_str=True).parameters
    groups = {name: cast("type", p.annotation) for name, p in given.items() if is_dataclass(p.annotation)}
    own = [p.replace(kind=_KIND) for name, p in given.items() if name not in groups]
    names = {p.name for p in own}
    shared = [p for group in groups.values() for p in _parameters(group) if p.name not in names]
    parameters = sorted([*own, *shared], key=lambda p: p.default is not inspect.Parameter.empty)

    @functools.wraps(command)
    def flattened(**values: object) -> None:
        own_values = {name: value for name, value in values.items() if name in given}
        groups_values = {
            name: group(**{field.name: values[field.name] for field in fields(group)})
            for name, group in groups.items()
        }
        cast("_Command", command)(**own_values, **groups_values)

    flattened.__dict__["__signature__"] = inspect.Signature(parameters)
    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    del flattened.__dict__["__wrapped__"]  # otherwise typer reads the annotations of the original
    return cast("Callable[P, None]", flattened)


def _parameters(group: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, _KIND, default=default, annotation=hints[field.name])
