"""stdout and stderr that may break: a full disk, a pipe that nobody reads, a terminal that is gone."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast, final

from rich.console import Console

from asyncmig.cli.terminal import say

__all__ = ["GuardedStream", "guarded", "guarded_streams", "is_unread", "report_failure"]


@final
class GuardedStream(io.TextIOBase):
    """A stream on which writing raises nothing: what cannot be written is dropped, and `failure` says why.

    Characters that its encoding lacks are written as `\\\\xNN` escapes.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self.name = stream, name
        self.failure: OSError | None = None
        """The first error; None while all is well."""
        self.is_reported: bool = False
        """Whether the failure was told, so that the exit code need not tell it."""
        self._callbacks: list[Callable[[GuardedStream], object]] = []
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def trouble(self) -> str:
        """What went wrong, in words."""
        assert self.failure is not None
        if isinstance(self.failure, BrokenPipeError):
            return f"nobody reads {self.name} any more"
        return f"{self.name} cannot be written: {self.failure.strerror or self.failure}"

    @contextmanager
    def on_failure(self, callback: "Callable[[GuardedStream], object]") -> Generator[None]:
        """Call `callback` once if the stream fails in the block, or has failed before."""
        if self.failure is not None:
            callback(self)
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)

    def write(self, text: str, /) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self._fail(error)
        except ValueError:  # it was closed
            self._fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def _fail(self, error: OSError) -> None:
        self.failure = error
        # What its buffers still hold would fail again when the interpreter ends, and change the exit code.
        with contextlib.suppress(OSError, ValueError):
            place = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, place)
            os.close(null)
        for callback in tuple(self._callbacks):
            callback(self)


@contextmanager
def guarded() -> Generator[None]:
    """Guard stdout and stderr until the block ends.

    A descriptor that was closed before the program started (`>&-`) is opened on /dev/null: otherwise the next file
    to be opened, perhaps a sheet, would get its number and receive what is printed.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    stdout, stderr = GuardedStream(sys.stdout, "stdout"), GuardedStream(sys.stderr, "stderr")
    sys.stdout, sys.stderr = cast(TextIO, stdout), cast(TextIO, stderr)
    try:
        yield
    finally:
        stdout.flush()
        stderr.flush()
        sys.stdout, sys.stderr = before


def guarded_streams() -> Iterator[GuardedStream]:
    """Yield those of stdout and stderr that are guarded."""
    for stream in (cast(object, sys.stdout), cast(object, sys.stderr)):
        if isinstance(stream, GuardedStream):
            yield stream


def is_unread() -> bool:
    """Return whether stdout could not be written: nothing more needs to be printed there."""
    return any(stream.name == "stdout" and stream.failure is not None for stream in guarded_streams())


def report_failure(words: Console, what: str = "") -> bool:
    """Say on `words` that stdout could not be written, unless that was done; return whether it is news.

    `what`: begins the sentence. A pipe that nobody reads any more needs no words.
    """
    for stream in guarded_streams():
        stream.flush()
    failed = [
        each for each in guarded_streams() if each.name == "stdout" and each.failure and not each.is_reported
    ]
    for stream in failed:
        stream.is_reported = True
        if not isinstance(stream.failure, BrokenPipeError):
            say(words, f"Error: {what}{stream.trouble}", "red")
    return bool(failed)


def _open_closed_descriptors() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - for good
