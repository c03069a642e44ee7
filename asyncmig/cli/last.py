"""What the last run of a journal was asked for, kept beside it: no key, no secret."""

from collections.abc import Mapping
from pathlib import Path
from typing import final

import msgspec

from asyncmig.cli.files import write_whole
from asyncmig.cli.settings import PATHS, Settings
from asyncmig.errors import InvalidInput

__all__ = ["LastRun", "has_last_run", "recall", "remember"]


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


def has_last_run(journal: Path) -> bool:
    """Return whether something tells what the last run of a journal was asked for."""
    return _place(journal).exists()


def recall(journal: Path) -> LastRun:
    """Return what the last run of a journal was asked for. Raises `InvalidInput` if nothing tells."""
    place = _place(journal)
    try:
        return msgspec.json.decode(place.read_bytes(), type=LastRun)
    except FileNotFoundError:
        why = f"has no run to repeat: {place} is not there" if journal.exists() else "there is no such file"
        reason = f"{why}; name the manifest: asyncmig run MANIFEST"
    except (OSError, msgspec.MsgspecError) as error:
        reason = f"does not tell what its last run was asked for: {place} cannot be read ({error})"
    raise InvalidInput("journal", str(journal), reason)


def _place(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.last")
