"""A rate limit: as people write it (`100/60s`, `5/1h`), and as the headers of a response state it."""

import math
import re
from dataclasses import dataclass

from asyncmig._core.arguments import check_fields
from asyncmig.errors import InvalidInput

__all__ = ["Rate", "RateHeaders", "parse_rate"]

_RATE = re.compile(r"(\d{1,9})/(\d{0,9}(?:\.\d{1,9})?)(s|m|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` requests in `window` seconds. Raises `InvalidInput` for numbers that are not positive."""

    limit: int = 100
    window: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.limit < 1 or not 0 < self.window < math.inf:
            raise InvalidInput("rate", str(self), "must have a limit and a window greater than 0")

    def __str__(self) -> str:
        hours = self.window / 3600.0
        return (
            f"{self.limit}/{hours:g}h"
            if hours >= 1 and hours.is_integer()
            else f"{self.limit}/{self.window:g}s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHeaders:
    """The values of `Retry-After` and `X-RateLimit-*` in a response; None for a header that is absent."""

    retry_after: float | None = None
    """Seconds until the server may accept another request."""
    limit: int | None = None
    """The number of requests that a window allows."""
    remaining: int | None = None
    """The number of requests that the server accepts until the reset."""
    reset: float | None = None
    """Seconds until the reset; not positive if the reset has passed."""


def parse_rate(text: str) -> Rate:
    """Parse `100/60s`, `100/1m` or `100/m`. Raises `InvalidInput` for any other text and for numbers of 0."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or not (match[2] or match[3]):
        raise InvalidInput("rate", text, "must look like 100/60s (requests/seconds)")
    try:
        return Rate(int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"])
    except InvalidInput as error:
        raise InvalidInput("rate", text, error.reason) from None
