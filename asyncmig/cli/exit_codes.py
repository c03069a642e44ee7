"""The exit codes, one meaning each, and how an error that ends a command is printed. The guide lists the codes."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.cli.settings import SETTING_NAMES
from asyncmig.errors import (
    AsyncmigError,
    AuthError,
    CustomerHeld,
    InvalidInput,
    JournalUnavailable,
    NoAnswer,
    QueueUnavailable,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
    UnknownOutcome,
    is_temporary,
)
from asyncmig.jobs.manifest import InvalidManifest

__all__ = [
    "DELIVERED",
    "KEY_REFUSED",
    "PARKED",
    "RESUMABLE",
    "UNWRITTEN",
    "USAGE",
    "code_of",
    "code_of_error",
    "report_error",
    "sentence",
]

DELIVERED: Final = 0
USAGE: Final = 2
FAILED: Final = 3
KEY_REFUSED: Final = 4
PARKED: Final = 5
UNKNOWN: Final = 6
UNWRITTEN: Final = 74
"""EX_IOERR of sysexits.h: stdout could not be written (a full disk, a closed pipe).

`run` and `retry` drain instead, as after an interrupt, and exit with 75 if customers are pending. For the other
commands a broken stderr does not change the code."""
RESUMABLE: Final = 75
"""EX_TEMPFAIL of sysexits.h: run the same command again."""
_WORST_FIRST = (("pending", RESUMABLE), ("unknown", UNKNOWN), ("parked", PARKED), ("failed", FAILED))
_PREDICATES = frozenset(
    {"cannot", "does", "has", "is", "lies", "must", "names", "replaces", "requires", "selects"}
)
"""The first words of reasons that continue the sentence that begins with the field and its value."""
_PASSING = (
    CustomerHeld,
    JournalUnavailable,
    NoAnswer,
    QueueUnavailable,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)


def code_of(outcomes: Iterable[str]) -> int:
    """Return the exit code for these outcomes: that of the worst one."""
    found = set(outcomes)
    return next((code for outcome, code in _WORST_FIRST if outcome in found), DELIVERED)


def code_of_error(error: Exception) -> int:
    """Return the exit code for an error that ended a command."""
    if isinstance(error, AuthError):
        return KEY_REFUSED
    if isinstance(error, UnknownOutcome):
        return UNKNOWN
    passes = is_temporary(error) if isinstance(error, OSError) else isinstance(error, _PASSING)
    return RESUMABLE if passes else USAGE


def report_error(error: Exception | BaseExceptionGroup[BaseException], words: Console) -> int:
    """Print the errors that ended a command, a line each, and return the exit code; raise errors that are bugs.

    For several errors, the exit code is the first of 4, 75 and 6 that one of them has, otherwise the highest.
    """
    errors = list(_leaves(error))
    if any(isinstance(each, KeyboardInterrupt) for each in errors):
        return RESUMABLE
    known = [each for each in errors if isinstance(each, AsyncmigError | OSError)]
    if len(known) < len(errors):
        raise error
    for line in dict.fromkeys(line for each in known for line in _lines(each)):
        say(words, line, "red")
    codes = {code_of_error(each) for each in known}
    return next(
        (code for code in (KEY_REFUSED, RESUMABLE, UNKNOWN) if code in codes), max(codes, default=USAGE)
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group and of its nested groups, without cancellations: another error caused those."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
        if not isinstance(each, asyncio.CancelledError):
            yield from _leaves(each)


def _lines(error: Exception) -> Iterator[str]:
    if isinstance(error, InvalidManifest):
        for fault in error.faults:
            whole = fault.field == "manifest" and fault.line is None
            yield f"{clean(error.path)}: {clean(fault.reason if whole else str(fault), 1000)}"
    else:
        yield f"Error: {clean(sentence(error), 1000)}"


def sentence(error: Exception) -> str:
    """Return the text of an error. An `OSError` names its file first, without the error number.

    An `InvalidInput` about a setting names the option. The value is left out if the option has none, or is missing.
    """
    if isinstance(error, InvalidInput):
        field = error.field
        if field in SETTING_NAMES or field in ("queue", "select"):
            field = f"--{field.replace('_', '-')}"
        value = "" if error.value is True or error.value == "" else f" {error.value!r}"
        is_predicate = error.reason.partition(" ")[0] in _PREDICATES
        return f"{field}{value}{'' if is_predicate else ':'} {error.reason}"
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | Path):
        return f"{error.filename}: {error.strerror}"
    return str(error)
