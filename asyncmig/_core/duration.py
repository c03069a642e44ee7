"""A duration as people write it: `90s`, `45m`, `1h30m`."""

import re
from dataclasses import dataclass

from asyncmig.errors import InvalidInput

__all__ = ["Duration", "parse_duration"]

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,3})?)s?)?")


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration. `str` writes it as people do: `1h30m`."""

    seconds: float

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
        return "".join(f"{amount:g}{unit}" for amount, unit in parts if amount)


def parse_duration(text: str) -> Duration:
    """Parse `90s`, `90`, `45m` or `1h30m`. Raises `InvalidInput` for other text and for zero."""
    match = _DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    duration = Duration(hours * 3600 + minutes * 60 + seconds)
    if duration.seconds <= 0:
        raise InvalidInput("duration", text, "must look like 90s, 45m or 1h30m")
    return duration
