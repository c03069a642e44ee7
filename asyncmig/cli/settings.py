"""What the commands can be told, with its help and its default."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, Never, cast

import typer
from typer.models import OptionInfo

from asyncmig._journal.file import check_is_path
from asyncmig.cli.amounts import (
    DEFAULT_RATE,
    Duration,
    Rate,
    duration_option,
    parse_duration,
    parse_rate,
    rate_option,
)
from asyncmig.companies.expected import RowFilter
from asyncmig.session import Scope

__all__ = [
    "PATHS",
    "BaseUrlOption",
    "DecideChoice",
    "Display",
    "JournalOption",
    "Reach",
    "Settings",
    "environment_name",
    "journal_option",
    "read_settings",
    "written",
]

PATHS = frozenset({"out", "journal", "report", "root"})
"""Settings that are paths: those in a file are relative to that file."""
DecideChoice = Literal["park", "approve-safe", "approve", "reject"]


def environment_name(setting: str) -> str:
    """Return the variable that stands for a setting where the command line does not have it."""
    return f"ASYNCMIG_{setting.upper()}"


def written(value: object) -> str:
    """Return a value as it is written on a command line."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(
    name: str, words: str, *, least: float | None = None, callback: Callable[[Path], Path] | None = None
) -> OptionInfo:
    option = typer.Option(
        help=words, min=least, envvar=environment_name(name), show_envvar=False, callback=callback
    )
    assert isinstance(option, OptionInfo)
    return option


def journal_option(callback: Callable[[typer.Context, Path], Path]) -> OptionInfo:
    """Return the option of a command that takes its other settings from what stands beside the journal."""

    def checked(context: typer.Context, path: Path) -> Path:
        return callback(context, _checked_journal(path))

    option = typer.Option(
        help="File that remembers how far it came, and beside which the settings of its last run stand.",
        envvar=environment_name("journal"),
        show_envvar=False,
        is_eager=True,
        callback=checked,
    )
    assert isinstance(option, OptionInfo)
    return option


def _checked_journal(path: Path) -> Path:
    check_is_path(path)
    return path


JournalOption = Annotated[
    Path, _setting("journal", "File that remembers how far it came.", callback=_checked_journal)
]


BaseUrlOption = Annotated[
    str | None, _setting("base_url", "The API's whole prefix; VERN_BASE_URL if not given.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How the API is reached."""

    scope: Annotated[
        Scope, _setting("scope", "Whether the server counts its limit by endpoint or by key.")
    ] = "endpoint"
    rate: Annotated[Rate, rate_option("The limit.", environment_name("rate"))] = DEFAULT_RATE
    speed: Annotated[
        float,
        _setting("speed", "Make the clock run so many times faster: for the simulator only.", least=0.01),
    ] = 1.0
    base_url: BaseUrlOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Reach):
    """What holds for a whole fleet: on the command line, in the environment, in a manifest's `[defaults]`."""

    out: Annotated[Path, _setting("out", "Folder for EXTERNAL_ID/SHEET.csv and report.json.")] = Path("out")
    journal: JournalOption = Path("fleet.db")
    report: Annotated[
        Path | None,
        _setting("report", "HTML file to write at the end: outcomes, a picture of the fleet, reasons."),
    ] = None
    root: Annotated[
        Path | None,
        _setting(
            "root", "Folder that all input files must lie below, also once symbolic links are followed."
        ),
    ] = None
    decide: Annotated[
        DecideChoice,
        _setting(
            "decide",
            "What to do when an import asks: park (leave it), approve-safe (approve what destroys no rows).",
        ),
    ] = "park"
    filter: Annotated[
        RowFilter, _setting("filter", "Rows to download: valid drops every row with a bad cell.")
    ] = "valid"
    retries: Annotated[
        int,
        _setting("retries", "How often an import that failed is begun again, with the same files.", least=0),
    ] = 0
    deliver_rejected: Annotated[
        bool,
        typer.Option(
            "--deliver-rejected",
            help="Fetch what is left of an import that was rejected.",
            envvar=environment_name("deliver_rejected"),
            show_envvar=False,
        ),
    ] = False
    concurrency: Annotated[int, _setting("concurrency", "Customers under way at once.", least=1)] = 500
    max_duration: Annotated[
        Duration | None,
        duration_option(
            "End in order after so long, as Ctrl-C does: 90s, 45m, 1h30m.", environment_name("max_duration")
        ),
    ] = None
    stop_after_failures: Annotated[
        int | None,
        _setting("stop_after_failures", "End in order once so many customers have failed.", least=1),
    ] = None

    def given(self) -> Mapping[str, str]:
        """Return what is not the default, as it is written on a command line."""
        values = ((field, getattr(self, field.name)) for field in fields(Settings))
        return {field.name: written(value) for field, value in values if value != field.default}


_READERS: Mapping[str, Callable[[str], object]] = {
    "out": Path,
    "journal": Path,
    "report": Path,
    "root": Path,
    "rate": parse_rate,
    "retries": int,
    "deliver_rejected": lambda text: text == str(True),
    "concurrency": int,
    "max_duration": parse_duration,
    "stop_after_failures": int,
    "speed": float,
}


def read_settings(texts: Mapping[str, str]) -> Settings:
    """Return the settings that `Settings.given` has written. Raises `ValueError` for others."""
    values = {name: _READERS.get(name, str)(text) for name, text in texts.items()}
    return replace(Settings(), **cast("dict[str, Never]", values))  # each reader gives its field's own type


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """What is printed while a command works."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print events as JSON, one a line, on stdout; words go to stderr.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what did not go well.")] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print each step of each customer; with --json each request, too."
        ),
    ] = False
