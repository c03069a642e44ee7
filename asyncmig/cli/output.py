"""What the commands write: consoles, guarded stdout and stderr, and files."""

import contextlib
import errno
import io
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast, final

import msgspec
from rich.console import Console
from rich.text import Text

__all__ = [
    "ConsoleHandler",
    "GuardedStream",
    "clean",
    "counted",
    "data_console",
    "draws",
    "escaped",
    "guarded",
    "guarded_streams",
    "is_interactive",
    "is_unread",
    "print_line",
    "report_failure",
    "say",
    "words_console",
    "write_whole",
]


_STEERING = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"
"""Controls, and what changes the direction of text, for a pattern; not the line feed."""
_CONTROL = re.compile(rf"[\n{_STEERING}]+")
_CONTROL_IN_LINES = re.compile(rf"[{_STEERING}]+")
_LONGEST = 300
_WIDE = 200


def clean(text: str, longest: int = _LONGEST) -> str:
    """Return `text` as one line without control characters or changes of direction, cut at `longest`."""
    line = _CONTROL.sub(" ", text).strip()
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def escaped(json: str) -> str:
    """Return JSON text with escapes for the characters that could steer a terminal which shows it; lines stay."""
    return _CONTROL_IN_LINES.sub(lambda found: "".join(f"\\u{ord(each):04x}" for each in found[0]), json)


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def print_line(value: object) -> None:
    """Print a value as one line of JSON on stdout; all of it is ASCII, so that no text steers a terminal."""
    sys.stdout.write(f"{json.dumps(msgspec.to_builtins(value))}\n")
    sys.stdout.flush()


def draws(console: Console) -> bool:
    """Return whether a picture that changes can be drawn: on a terminal, not in a pipe that is merely coloured."""
    if not console.is_terminal or console.is_dumb_terminal:
        return False
    return console.file.isatty() or "FORCE_COLOR" not in os.environ


def is_interactive() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def data_console() -> Console:
    """Return the console for data: stdout. In a pipe, where nobody looks, it is wide enough for any table."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False, width=wide)


def words_console() -> Console:
    """Return the console for progress and warnings: stderr."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text whole: neither wrapped nor taken for markup, and without controls but line feeds."""
    console.print(Text(_CONTROL_IN_LINES.sub(" ", text), style=style), soft_wrap=True)


@final
class ConsoleHandler(logging.Handler):
    """Shows the library's warnings as one line each; a traceback becomes its last line.

    Not its events: whoever shows those has words for them.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "event"):
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text} ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        say(self._console, f"{record.levelname.lower()}: {clean(text)}", "yellow")


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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a new one beside it, which takes its place. A link at `path` is replaced, not followed.

    Raises `OSError`; the file that was there then stays as it was.
    """
    part = path.with_name(f"{path.name[:50]}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o666)  # less the umask, as for any other file
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
