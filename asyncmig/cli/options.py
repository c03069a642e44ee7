"""Options that several commands share, and how a command gets them: `Command`, and `dataclass_options`."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, ParamSpec, Protocol, cast, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.models import OptionInfo

from asyncmig._core.limits import Rate, parse_rate
from asyncmig.errors import InvalidInput
from asyncmig.journal import JournalPlace

__all__ = [
    "DEFAULT_JOURNAL",
    "DEFAULT_RATE",
    "ApiOption",
    "Command",
    "ExternalId",
    "JournalOption",
    "JsonOption",
    "QueueOption",
    "ReportOption",
    "SelectOption",
    "dataclass_options",
    "environment_name",
    "journal_option",
    "rate_option",
    "setting_option",
    "source_of",
]

P = ParamSpec("P")
DEFAULT_RATE = Rate()
_HYPHEN = "\ue000"
_KIND = inspect.Parameter.KEYWORD_ONLY


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting."""
    return f"ASYNCMIG_{setting.upper()}"


def setting_option(
    name: str | None,
    metavar: str,
    words: str,
    *,
    least: float | None = None,
    parse: Callable[[str], object] | None = None,
) -> OptionInfo:
    """Return the option of a setting. An environment variable can also set it, unless `name` is None.

    `least`: the smallest number. `parse`: turns the text into the value. Raises `InvalidInput`.
    """

    def parser(text: object) -> object:
        assert parse is not None
        try:
            return parse(str(text))  # a default is parsed from its own text
        except InvalidInput as error:
            raise typer.BadParameter(f"{error.value!r} {error.reason}") from error

    return OptionInfo(
        default=...,
        help=words,
        metavar=metavar,
        min=least,
        parser=parser if parse else None,
        envvar=environment_name(name) if name else None,
        show_envvar=False,
    )


def rate_option(name: str | None) -> OptionInfo:
    """Return an option that takes a rate limit; `name` as in `setting_option`."""
    words = "The rate limit: requests in a window, such as 100/60s."
    return setting_option(name, "RATE", words, parse=parse_rate)


class Command(TyperCommand):
    """A command whose errors and help suit asyncmig's options.

    An error about a value names its origin, if that is not the command line. The help breaks lines only between
    words: click also breaks `by-class` at the hyphen.
    """

    def parse_args(self, ctx: "typer.Context", args: list[str]) -> list[str]:  # type: ignore[override]  # click's own
        """Parse the arguments. An error names the variable or the `[defaults]` that a wrong value comes from."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            origin = source_of(ctx, error.param.name) if error.param is not None else "default"
            if origin not in ("command line", "default"):
                named = "[defaults] of the manifest" if origin == "manifest" else origin
                error.message = f"{error.message.rstrip('.')} (from {named})"
            raise

    def get_help(self, ctx: object) -> str:
        """Return the help. While click wraps the texts, another character stands for each hyphen."""
        self.help: str | None = (self.help or "").replace("-", _HYPHEN)
        for each in self.params:
            if isinstance(each, TyperArgument | TyperOption) and each.help:
                each.help = each.help.replace("-", _HYPHEN)
        return super().get_help(cast("typer.Context", ctx)).replace(_HYPHEN, "-")


class _Function(Protocol):
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
        cast("_Function", command)(**own_values, **groups_values)

    flattened.__dict__["__signature__"] = inspect.Signature(parameters)
    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    del flattened.__dict__["__wrapped__"]  # otherwise typer reads the annotations of the original
    return cast("Callable[P, None]", flattened)


def _parameters(group: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, _KIND, default=default, annotation=hints[field.name])


def journal_option(callback: Callable[[typer.Context, JournalPlace], None] | None = None) -> OptionInfo:
    """Return the `--journal` option; `callback` can take the other settings from the journal's last run."""

    def checked(context: typer.Context, place: JournalPlace) -> JournalPlace:
        place = _without_password(context, place)
        if callback is not None and not context.resilient_parsing:
            callback(context, place)
        return place

    words = (
        "Where the state of every customer is kept: a file, a postgresql:// URL, or an environment variable that "
        "holds such a URL."
    )
    if callback is not None:
        words += " Options that are not given have the values of its last run."
    return OptionInfo(
        default=...,
        help=words,
        envvar=environment_name("journal"),
        show_envvar=False,
        is_eager=callback is not None,
        callback=checked,
        parser=lambda text: JournalPlace(str(text)),
        metavar="JOURNAL",
    )


def _without_password(context: typer.Context, place: JournalPlace) -> JournalPlace:
    """Return a journal's place that may be printed. Raises `InvalidInput` for a password on the command line."""
    if not place.shows_password:
        return place
    variable = environment_name("journal")
    if source_of(context, "journal") == variable:
        return JournalPlace(variable)
    why = f"has a password: put it into an environment variable such as {variable}, and give that name"
    raise InvalidInput("journal", "***", why)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object per line.")]
DEFAULT_JOURNAL = JournalPlace("fleet.db")
JournalOption = Annotated[JournalPlace, journal_option()]
ApiOption = Annotated[
    str,
    setting_option(
        "api",
        "NAME",
        "The API generation of the server: companies or migrations. A customer that is in the journal keeps its own.",
    ),
]
ReportOption = Annotated[
    Path | None,
    setting_option("report", "FILE", "HTML file to write at the end, with outcomes, reasons and charts."),
]


def source_of(context: typer.Context, name: str) -> str:
    """Return the origin of a setting's value, for people."""
    source = context.get_parameter_source(name)
    origins = {
        "COMMANDLINE": "command line",
        "ENVIRONMENT": environment_name(name),
        "DEFAULT_MAP": "manifest",
    }
    return origins.get(source.name, "default") if source else "default"


SelectOption = Annotated[
    str | None,
    typer.Option(
        metavar="CUSTOMERS",
        help="Only these customers: external ids such as acme-001,bolt-002, or status:failed,parked for all with "
        "these outcomes.",
    ),
]
QueueOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Send the customers to workers through this queue: its URL, or the environment variable that holds it. "
        "The workers write the sheets. They use their own --decide, --filter and --retries unless you give these.",
    ),
]
ExternalId = Annotated[str, typer.Argument(metavar="EXTERNAL_ID", help="Your own id of the customer.")]
