"""The settings of the last run, kept beside the journal as `JOURNAL.last`: `retry`, `review` and `watch` use them."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Never, cast, final

import msgspec
import typer

from asyncmig._core.duration import parse_duration
from asyncmig._core.limits import Limits, parse_rate
from asyncmig.cli.options import journal_option
from asyncmig.cli.settings import PATHS, Options, Settings, path_from
from asyncmig.customers.files import write_whole
from asyncmig.errors import InvalidInput
from asyncmig.journal import JournalPlace, open_journal

__all__ = [
    "LastRun",
    "LastRunJournal",
    "check_journal",
    "from_last_run",
    "options_of",
    "read_settings",
    "recall_if_any",
    "remember",
    "remember_queued",
]

_log = logging.getLogger("asyncmig")
_READERS: Mapping[str, Callable[[str], object]] = {
    "out": Path,
    "journal": JournalPlace,
    "report": Path,
    "root": Path,
    "answers": Path,
    "cancel_blocked_after": parse_duration,
    "rate": parse_rate,
    "limits": Limits.parse,
    "retries": int,
    "deliver_rejected": lambda text: text == str(True),
    "concurrency": int,
    "max_duration": parse_duration,
    "stop_after_failures": int,
    "speed": float,
}


def read_settings(texts: Mapping[str, str]) -> Settings:
    """Parse the settings that `Settings.given` returns. Raises `ValueError` for other text."""
    values = {name: _READERS.get(name, str)(text) for name, text in texts.items()}
    # Each reader returns the type of its field.
    return replace(Settings(), **cast("dict[str, Never]", values))


def from_last_run(context: typer.Context, journal: JournalPlace) -> None:
    """Make the settings of a journal's last run the defaults of the command line and the environment.

    Raises `JournalError` if there is no such journal, `InvalidInput` if it had no run.
    """
    last = _recall(journal)
    if last.queue is None:  # otherwise the workers have a journal of their own
        asyncio.run(check_journal(journal))
    context.obj, context.default_map = last, dict(last.defaults())


def _from_last_run_if_any(context: typer.Context, journal: JournalPlace) -> None:
    """Do the same if there was a last run: the journal may have been written by a program instead."""
    if last := recall_if_any(journal):
        context.obj, context.default_map = last, dict(last.defaults())


LastRunJournal = Annotated[JournalPlace, journal_option(_from_last_run_if_any)]


@final
class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """The last run. Paths are as they were given, relative to `folder`."""

    schema: int = 1
    folder: str
    manifest: str
    settings: dict[str, str]
    queue: str | None = None
    """The workers' queue: its URL without a password, or the environment variable that held it; None without one."""
    queued: tuple[str, ...] | None = None
    """Customers of this or an earlier run that were given to a queue, by external id.

    None: an earlier version did not record them.
    """

    def options(self) -> Options:
        """Return the settings and the manifest of the run. Raises `InvalidInput` for settings that cannot be read."""
        try:
            return Options.of(self.path(), read_settings(self.defaults()))
        except (TypeError, ValueError) as error:
            reason = f"the settings of the last run beside the journal cannot be read ({error})"
            raise InvalidInput("journal", self.settings.get("journal", ""), reason) from error

    def command(self) -> str:
        """Return the command line that continues the run. Raises `InvalidInput` like `options`."""
        return self.options().command(queue=self.queue)

    def path(self) -> Path:
        """Return the manifest's path, relative to the present folder if it is the run's folder."""
        return Path(self.manifest) if Path.cwd() == Path(self.folder) else Path(self.folder, self.manifest)

    def defaults(self) -> Mapping[str, str]:
        """Return the settings, with paths that are valid in the present folder."""
        if Path.cwd() == Path(self.folder):
            return self.settings
        return {
            name: path_from(Path(self.folder), name, text) if name in PATHS else text
            for name, text in self.settings.items()
        }

    def is_queued(self, external_id: str) -> bool:
        """Return whether a customer was given to a queue."""
        return self.queue is not None if self.queued is None else external_id in self.queued


def remember(manifest: Path, settings: Settings, queue: str | None = None) -> None:
    """Save the settings of a run; `queue` as in `LastRun`. Raises `OSError`."""
    before = recall_if_any(settings.journal)
    queued = before.queued if before else ()
    last = LastRun(
        folder=str(Path.cwd()),
        manifest=str(manifest),
        settings=dict(settings.given()),
        queue=queue,
        queued=queued if queued is not None or queue is None else (),
    )
    _write(settings.journal, last)


def remember_queued(journal: JournalPlace, external_ids: Iterable[str]) -> None:
    """Add customers that are given to a queue to the saved settings of the last run. Raises `OSError`."""
    last = _recall(journal)
    queued = tuple(sorted({*(last.queued or ()), *external_ids}))
    _write(journal, msgspec.structs.replace(last, queued=queued))


def _write(journal: JournalPlace, last: LastRun) -> None:
    place = journal.beside("last")
    if journal.path is None:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(place, msgspec.json.format(msgspec.json.encode(last), indent=1) + b"\n")


def _recall(journal: JournalPlace) -> LastRun:
    """Return the settings of the last run of a journal. Raises `InvalidInput` if they cannot be read."""
    place = journal.beside("last")
    try:
        return _read_last(place)
    except FileNotFoundError:
        is_missing = journal.path is not None and not journal.path.exists()
        why = "there is no such file" if is_missing else f"has no run to repeat: {place} is not there"
        reason = f"{why}; name the manifest: asyncmig run MANIFEST"
    except (OSError, msgspec.MsgspecError) as error:
        reason = f"the settings of its last run cannot be read: {place}: {error}"
    raise InvalidInput("journal", str(journal), reason)


def recall_if_any(journal: JournalPlace) -> LastRun | None:
    """Return the settings of the last run of a journal; None if there are none.

    Settings that cannot be read are ignored with a warning: the caller has settings of its own.
    """
    place = journal.beside("last")
    try:
        return _read_last(place) if os.path.exists(place) else None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("%s is ignored because it does not contain the settings of a run: %s", place, error)
    return None


def _read_last(place: Path) -> LastRun:
    if place.exists() and not place.is_file():  # reading a FIFO would wait for a writer
        raise OSError("is not a file")
    return msgspec.json.decode(place.read_bytes(), type=LastRun)


def options_of(last: LastRun | None) -> Options | None:
    """Return the settings of a last run; None without one, and with a warning if they cannot be read."""
    try:
        return last.options() if last else None
    except InvalidInput as error:
        _log.warning("%s", error.reason)
        return None


async def check_journal(place: JournalPlace) -> None:
    """Raise `JournalError` unless there is a journal that this version can read. Nothing is created."""
    async with open_journal(place, read_only=True):
        pass
