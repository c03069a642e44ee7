"""Exit codes: one meaning each, as the README lists them."""

from collections.abc import Iterable
from typing import Final

from asyncmig.errors import (
    AuthError,
    CustomerHeld,
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

__all__ = [
    "DELIVERED",
    "KEY_REFUSED",
    "PARKED",
    "RESUMABLE",
    "UNWRITTEN",
    "USAGE",
    "code_of",
    "code_of_error",
    "worst_code",
]

DELIVERED: Final = 0
USAGE: Final = 2
FAILED: Final = 3
KEY_REFUSED: Final = 4
PARKED: Final = 5
UNKNOWN: Final = 6
UNWRITTEN: Final = 74
"""EX_IOERR of sysexits.h: stdout could not be written (a full disk, a pipe that nobody reads).

`run` and `retry` end in order instead, as after an interrupt: with 75 if anything is left to do. A broken
stderr changes no code of the other commands."""
RESUMABLE: Final = 75
"""EX_TEMPFAIL of sysexits.h: try the same again."""
_WORST_FIRST = (("pending", RESUMABLE), ("unknown", UNKNOWN), ("parked", PARKED), ("failed", FAILED))
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
    """Return the code for customers that ended so: the worst one wins."""
    found = set(outcomes)
    return next((code for outcome, code in _WORST_FIRST if outcome in found), DELIVERED)


def code_of_error(error: Exception) -> int:
    """Return the code for an error that ended a command."""
    if isinstance(error, AuthError):
        return KEY_REFUSED
    if isinstance(error, UnknownOutcome):
        return UNKNOWN
    passes = is_temporary(error) if isinstance(error, OSError) else isinstance(error, _PASSING)
    return RESUMABLE if passes else USAGE


def worst_code(codes: Iterable[int]) -> int:
    """Return the code of a command that several errors ended: 4, 75, 6, then any other."""
    found = set(codes)
    return next(
        (code for code in (KEY_REFUSED, RESUMABLE, UNKNOWN) if code in found), max(found, default=USAGE)
    )
