"""The settings that every simulated API generation has: how long runs take; and checks of numbers."""

from dataclasses import dataclass
from random import Random

__all__ = ["RunDurations", "check_amount", "is_share"]


def is_share(value: object) -> bool:
    """Return whether `value` is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def check_amount(name: str, value: object, *, is_zero_allowed: bool = True) -> None:
    """Raise `ValueError` unless `value` is a number that is not negative and not NaN."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if not (number > 0 or (number == 0 and is_zero_allowed)):
        least = "0 or more" if is_zero_allowed else "more than 0"
        raise ValueError(f"{name} must be a number, {least}: {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDurations:
    """How long runs take, in seconds: drawn around `base + per_row * rows`."""

    queued: float = 4.0
    base: float = 30.0
    per_row: float = 0.2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        """Raise `ValueError` for a time that is negative."""
        for name in ("queued", "base", "per_row", "sigma"):
            check_amount(f"pace.{name}", getattr(self, name))

    def draw(self, rows: int, rng: Random) -> tuple[float, float]:
        """Return the seconds for which a run is queued, and for which it runs."""
        running = (self.base + self.per_row * rows) * rng.lognormvariate(0.0, self.sigma)
        return self.queued * rng.uniform(0.5, 1.5), running
