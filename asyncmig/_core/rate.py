"""A rate limit as people write it: `100/60s`, `5/1h`."""

import math
import re
from dataclasses import dataclass

from asyncmig._core.arguments import check_fields
from asyncmig.errors import InvalidInput

__all__ = ["Rate", "parse_rate"]

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


def parse_rate(text: str) -> Rate:
    """Parse `100/60s`, `100/1m` or `100/m`. Raises `InvalidInput` for anything else and for zeros."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or not (match[2] or match[3]):
        raise InvalidInput("rate", text, "must look like 100/60s (requests/seconds)")
    try:
        return Rate(int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"])
    except InvalidInput as error:
        raise InvalidInput("rate", text, error.reason) from None
