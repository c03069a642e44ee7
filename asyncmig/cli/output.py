"""What every command writes with: consoles, text for people, lines of JSON, and guarded stdout and stderr."""

import contextlib
import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TextIO, cast, final

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from asyncmig.customers.status import LastFailure
from asyncmig.events import AttemptFailed, Recovered

__all__ = [
    "SCHEMA",
    "STYLES",
    "ConsoleHandler",
    "GuardedStream",
    "clean",
    "counted",
    "data_console",
    "draws",
    "escaped",
    "failure_line",
    "guarded",
    "guarded_streams",
    "is_interactive",
    "is_unread",
    "listed",
    "print_line",
    "print_table",
    "report_failure",
    "say",
    "say_steps",
    "shortened",
    "spoken",
    "spoken_wait",
    "whose",
    "words_console",
]

SCHEMA: Final = 2
"""The version of the JSON that the commands write: `report.json`, `--json` of run, status, review and watch."""
STYLES: Final = {
    "delivered": "green",
    "failed": "red",
    "parked": "yellow",
    "unknown": "magenta",
    "pending": "cyan",
}
"""The colour of each outcome."""
_STEERING = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"
"""For a regular expression: control characters without the line feed, and marks that change text direction."""
_CONTROL = re.compile(rf"[\n{_STEERING}]+")
_CONTROL_IN_LINES = re.compile(rf"[{_STEERING}]+")
_LONGEST = 300
_HANGING = 4
"""Columns by which a wrapped line is indented further than its first line."""
_GAP = "   "
_LEAST_LAST = 30
"""Columns that the last column of a table needs at least."""
_WIDE = 10_000


def clean(text: str, longest: int = _LONGEST) -> str:
    """Return `text` as one line of at most `longest` characters that cannot control a terminal."""
    return shortened(_CONTROL.sub(" ", text).strip(), longest)


def shortened(line: str, longest: int) -> str:
    """Return `line`, or its start and an ellipsis in at most `longest` terminal cells, cut between two words.

    A single word that is too long is cut inside.
    """
    if cell_len(line) <= longest:
        return line
    start = line[: max(0, longest - 2)]
    while cell_len(start) > longest - 2:
        start = start[:-1]
    words = start if line[len(start) :].startswith(" ") else start.rpartition(" ")[0]
    return f"{words.rstrip()} …" if words.strip() else f"{start}…"


def escaped(json: str) -> str:
    """Return JSON text with escapes for characters that could control a terminal; line feeds stay."""
    return _CONTROL_IN_LINES.sub(lambda found: "".join(f"\\u{ord(each):04x}" for each in found[0]), json)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural if necessary."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def print_line(value: object) -> None:
    """Print a value as one line of JSON on stdout.

    Characters that could control a terminal, or that the encoding of stdout lacks, are escaped.
    """
    built = msgspec.to_builtins(value)
    line = escaped(json.dumps(built, ensure_ascii=False))
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(built)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def draws(console: Console) -> bool:
    """Return whether a live view can be drawn: on a terminal, not in a pipe for which FORCE_COLOR enables colours."""
    if not console.is_terminal or console.is_dumb_terminal:
        return False
    return console.file.isatty() or "FORCE_COLOR" not in os.environ


def is_interactive() -> bool:
    """Return whether a person can answer a prompt: stdin and stdout are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def data_console() -> Console:
    """Return the console for data, stdout. In a pipe it is so wide that each row of a table is one line."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False, width=wide)


def words_console() -> Console:
    """Return the console for progress and warnings, stderr."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(console: Console, text: str, style: str = "", *, wrap: bool = True) -> None:
    """Print text without interpreting markup, and without control characters other than line feeds.

    On a terminal, lines are wrapped between words, and continued with an indent. `wrap=False` is for what is to be
    copied, such as a command.
    """
    cleaned = Text(_CONTROL_IN_LINES.sub(" ", text), style=style)
    if not wrap or not console.is_terminal:
        console.print(cleaned, soft_wrap=True)
        return
    for line in cleaned.split("\n", allow_blank=True):
        _print_wrapped(console, line, len(line.plain) - len(line.plain.lstrip()) + _HANGING)


def say_steps(console: Console, lines: Iterable[str]) -> None:
    """Print the next steps: sentences, and commands, which are indented and not wrapped."""
    for line in lines:
        say(console, line, wrap=not line.startswith(" "))


def _print_wrapped(console: Console, line: Text, indent: int, start: Text = Text()) -> None:  # noqa: B008
    """Print a line after `start`, wrapped between words; each line after the first has an indent."""
    for number, each in enumerate(line.wrap(console, max(20, console.width - indent)) or [line]):
        whole = Text(" " * indent) + each if number else start + each
        whole.rstrip()
        console.print(whole, soft_wrap=True)


def print_table(
    console: Console, heads: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Collection[str] = ()
) -> None:
    """Print rows below their heads. The last column is wrapped between words; the others are never cut.

    If the others leave too little room for the last one, each row is printed as one wrapped line. `right`: the heads
    of the columns that are aligned on the right.
    """
    table = [
        [each if isinstance(each, Text) else Text(clean(each)) for each in row] for row in (heads, *rows)
    ]
    widths = [max(row[n].cell_len for row in table) for n in range(len(heads) - 1)]
    fixed, longest = sum(widths) + len(_GAP) * len(widths), max(row[-1].cell_len for row in table)
    longest_word = max((cell_len(word) for row in table for word in row[-1].plain.split()), default=0)
    is_narrow = console.width - fixed < min(max(_LEAST_LAST, longest_word), longest)
    for number, row in enumerate(table):
        if is_narrow:
            _print_wrapped(console, Text("  ").join(cell for cell in row if cell.plain), _HANGING)
            continue
        for head, cell, width in zip(heads, row, widths, strict=False):
            cell.align("right" if head in right else "left", width)
            cell.append(_GAP)
        _print_wrapped(console, row[-1], fixed, Text("").join(row[:-1]))
        if number == 0:
            console.print("─" * min(fixed + longest, console.width), soft_wrap=True)


@final
class ConsoleHandler(logging.Handler):
    """Prints the library's warnings, one line each, with the error's type and text instead of a traceback.

    Log records of events are skipped: the live view prints events.
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
    """A stream whose writes never raise: after an error the text is dropped, and `failure` holds the error.

    Characters that its encoding does not have are written as `\\\\xNN` escapes.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self.name: str = name
        self.failure: OSError | None = None
        """The first error; None if there was none."""
        self.is_reported: bool = False
        """Whether the failure was reported. Then it does not change the exit code."""
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
        """The failure in words."""
        assert self.failure is not None
        if isinstance(self.failure, BrokenPipeError):
            return f"{self.name} was closed by its reader"
        return f"{self.name} cannot be written: {self.failure.strerror or self.failure}"

    @contextmanager
    def on_failure(self, callback: "Callable[[GuardedStream], object]") -> Generator[None]:
        """Call `callback` once if the stream fails inside the block or failed before it."""
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
        except ValueError:  # the stream is closed
            self._fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def _fail(self, error: OSError) -> None:
        self.failure = error
        # Buffered text would fail again when the interpreter exits, and change the exit code.
        with contextlib.suppress(OSError, ValueError):
            place = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, place)
            os.close(null)
        for callback in tuple(self._callbacks):
            callback(self)


@contextmanager
def guarded() -> Generator[None]:
    """Replace stdout and stderr by guarded streams until the block ends.

    A descriptor that was closed before the program started (`>&-`) is opened on /dev/null. Otherwise the next
    file that is opened, for example a sheet, would get its number and receive the printed text.
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
    """Yield stdout and stderr if they are guarded."""
    for stream in (cast(object, sys.stdout), cast(object, sys.stderr)):
        if isinstance(stream, GuardedStream):
            yield stream


def is_unread() -> bool:
    """Return whether a write to stdout failed, so that printing more is useless."""
    return any(stream.name == "stdout" and stream.failure is not None for stream in guarded_streams())


def report_failure(words: Console, what: str = "") -> bool:
    """Print on `words` that stdout could not be written, once; return whether this is the first report.

    `what`: the start of the sentence. A pipe that its reader closed is not an error and prints nothing.
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
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - for good


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


def failure_line(event: AttemptFailed) -> str:
    """Return a line about an attempt that failed and is repeated."""
    return f"{'retrying':>11}  {whose(event)}  {clean(LastFailure.of(event).words, 1000)}"


def whose(event: AttemptFailed | Recovered) -> str:
    """Return what an attempt was for: a customer, an id of the server, or all customers."""
    return event.external_id or event.ids.get("id") or "all customers"
