"""The settings of the commands, those of the last run (kept beside the journal), and their session."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, Never, cast, final
from urllib.parse import urlsplit

import msgspec
import typer
from typer.models import OptionInfo

from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import is_loopback
from asyncmig.cli.files import write_whole
from asyncmig.cli.option_types import (
    DEFAULT_RATE,
    Duration,
    Rate,
    duration_option,
    parse_duration,
    parse_rate,
    rate_option,
)
from asyncmig.customers.outcome import RowFilter
from asyncmig.errors import InvalidInput
from asyncmig.journal import Journal
from asyncmig.journal.file import check_is_path
from asyncmig.session import Scope, Session

__all__ = [
    "PATHS",
    "BaseUrlOption",
    "DecideChoice",
    "Display",
    "JournalOption",
    "LastRun",
    "Reach",
    "Settings",
    "check_journal",
    "environment_name",
    "journal_option",
    "open_session",
    "read_settings",
    "recall",
    "recall_if_any",
    "remember",
    "written",
]

_log = logging.getLogger("asyncmig")
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


@final
class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """The last run. Paths are as they were given, relative to `folder`."""

    schema: int = 1
    folder: str
    manifest: str
    settings: dict[str, str]
    queue: str | None = None
    """The environment variable that held the URL of the workers' queue; "" if the URL was given, None without one."""

    def path(self) -> Path:
        """Return the manifest's path, from the folder that is the present one now."""
        return self._from_here(self.manifest)

    def defaults(self) -> Mapping[str, str]:
        """Return the settings with paths from the folder that is the present one now."""
        moved = {name: str(self._from_here(text)) for name, text in self.settings.items() if name in PATHS}
        return {**self.settings, **moved}

    def queue_again(self, given: str | None) -> str | None:
        """Return the queue for the same run once more; `given`: what `--queue` says now.

        Raises `InvalidInput` if the last run had a queue that nothing names.
        """
        if given is None and self.queue == "":
            raise InvalidInput("queue", "", "the last run went through a queue: name it again with --queue")
        return given or self.queue

    def _from_here(self, path: str) -> Path:
        return Path(path) if Path.cwd() == Path(self.folder) else Path(self.folder, path)


def remember(manifest: Path, settings: Settings, queue: str | None = None) -> None:
    """Write down what a run is asked for; `queue` as in `LastRun`. Raises `OSError`."""
    last = LastRun(
        folder=str(Path.cwd()), manifest=str(manifest), settings=dict(settings.given()), queue=queue
    )
    write_whole(_place(settings.journal), msgspec.json.format(msgspec.json.encode(last), indent=1) + b"\n")


def recall(journal: Path) -> LastRun:
    """Return the settings of the last run of a journal. Raises `InvalidInput` if they cannot be read."""
    place = _place(journal)
    try:
        return _read_last(place)
    except FileNotFoundError:
        why = f"has no run to repeat: {place} is not there" if journal.exists() else "there is no such file"
        reason = f"{why}; name the manifest: asyncmig run MANIFEST"
    except (OSError, msgspec.MsgspecError) as error:
        reason = f"the settings of its last run cannot be read: {place}: {error}"
    raise InvalidInput("journal", str(journal), reason)


def recall_if_any(journal: Path) -> LastRun | None:
    """Return the settings of the last run of a journal; None if there are none.

    Settings that cannot be read are ignored with a warning: the caller has settings of its own.
    """
    place = _place(journal)
    try:
        return _read_last(place)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("%s is ignored, it does not hold the settings of a run: %s", place, error)
    return None


def _read_last(place: Path) -> LastRun:
    if place.exists() and not place.is_file():  # reading a FIFO would wait for a writer
        raise OSError("is not a file")
    return msgspec.json.decode(place.read_bytes(), type=LastRun)


def _place(journal: Path) -> Path:
    return journal.parent / f"{journal.name}.last"


async def check_journal(path: Path) -> None:
    """Raise `JournalError` unless `path` is a journal that this version can read. Nothing is created."""
    async with Journal(path, read_only=True):
        pass


def open_session(
    reach: Reach, journal: Path | None, api_key: str | None = None, *, retry: RetryPolicy | None = None
) -> Session:
    """Return a session that knows what the last one with this journal sent. `api_key`: `VERN_API_KEY` if not given.

    Without a journal it knows of no other, and writes nothing down.

    Raises `InvalidInput`, also for a faster clock with a server whose own clock does not run faster, too: it would
    be sent more than its limit.
    """
    session = Session(
        api_key,
        reach.base_url,
        limit=reach.rate.limit,
        window=reach.rate.window,
        scope=reach.scope,
        recent=None if journal is None else journal.with_name(f"{journal.name}.recent"),
        retry=retry,
    )
    if reach.speed != 1 and not is_loopback(session.base_url):
        host = urlsplit(session.base_url).hostname
        raise InvalidInput(
            "speed", reach.speed, f"is for the simulator on this machine, and {host} is another one"
        )
    return session
