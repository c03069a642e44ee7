"""How long runs take."""

from dataclasses import dataclass
from random import Random

from asyncmig.simulator.amounts import check_amount

__all__ = ["RunDurations"]


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
