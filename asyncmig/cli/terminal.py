"""What reaches a terminal: a server's text may hold anything, and must not steer the terminal."""

import json
import logging
import os
import re
import sys
from typing import final

import msgspec
from rich.console import Console
from rich.text import Text

__all__ = [
    "ToConsole",
    "clean",
    "counted",
    "data_console",
    "draws",
    "escaped",
    "is_interactive",
    "print_line",
    "say",
    "words_console",
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
class ToConsole(logging.Handler):
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
