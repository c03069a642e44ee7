"""What reaches a terminal: a server's text may hold anything, and must not steer the terminal."""

import logging
import re
from typing import final

from rich.console import Console
from rich.text import Text

__all__ = ["ToConsole", "clean", "data_console", "say", "words_console"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_LONGEST = 300


def clean(text: str, longest: int = _LONGEST) -> str:
    """Return `text` as one line without control characters or changes of direction, cut at `longest`."""
    line = _CONTROL.sub(" ", text).strip()
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def data_console() -> Console:
    """Return the console for data: stdout."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def words_console() -> Console:
    """Return the console for progress and warnings: stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line whole: neither wrapped nor taken for markup."""
    console.print(Text(text, style=style), soft_wrap=True)


@final
class ToConsole(logging.Handler):
    """Shows the library's warnings as one line each; a traceback becomes its last line."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text} ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        say(self._console, f"{record.levelname.lower()}: {clean(text)}", "yellow")
