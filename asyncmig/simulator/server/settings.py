"""The settings of a simulated server: how long its runs take, and its choices where the contract is silent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Self, TypeVar

__all__ = [
    "BaseVariants",
    "Readings",
    "RunDurations",
    "amount",
    "check_amount",
    "is_share",
    "readings_of",
    "refusal",
    "share",
    "silence",
    "text",
]

T = TypeVar("T")
Readings = tuple[object, ...]
"""The values of a choice that the contract allows. The first is the default."""


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
        for each in fields(self):
            check_amount(f"pace.{each.name}", getattr(self, each.name))

    def draw(self, rows: int, rng: Random) -> tuple[float, float]:
        """Return the seconds for which a run is queued, and for which it runs."""
        running = (self.base + self.per_row * rows) * rng.lognormvariate(0.0, self.sigma)
        return self.queued * rng.uniform(0.5, 1.5), running


# Fields of variants. `number` is that of the silence in the contract's list; 0 for a choice that is not in it.


def silence(number: int, *readings: T) -> T:
    """Return a field whose value is one of `readings`."""
    return _field(number, readings, _check_reading)


def amount(number: int, *readings: T) -> T:
    """Return a field for any number from 0 on, or None if that is one of `readings`."""
    return _field(number, readings, _check_amount)


def share(number: int, *readings: float) -> float:
    """Return a field for a number from 0 to 1."""
    return _field(number, readings, _check_share)


def text(number: int, *readings: T) -> T:
    """Return a field for any text, or None if that is one of `readings`."""
    return _field(number, readings, _check_text)


def refusal(*readings: T) -> T:
    """Return a field for an error that the contract names. It is never drawn, because it ends a customer."""
    return _field(None, readings, _check_reading)


def _field(number: int | None, readings: tuple[T, ...], check: Callable[[str, object, Readings], None]) -> T:
    return field(default=readings[0], metadata={"silence": number, "readings": readings, "check": check})


def _check_reading(name: str, value: object, readings: Readings) -> None:
    if not any(value == known and type(value) is type(known) for known in readings):
        raise ValueError(f"{name} must be one of {', '.join(map(str, readings))}: {value!r}")


def _check_amount(name: str, value: object, readings: Readings) -> None:
    if value is not None or None not in readings:
        check_amount(name, value)


def _check_share(name: str, value: object, _: Readings) -> None:
    if not is_share(value):
        raise ValueError(f"{name} must be a number from 0 to 1: {value!r}")


def _check_text(name: str, value: object, readings: Readings) -> None:
    if not isinstance(value, str) and value not in readings:
        raise ValueError(f"{name} must be text: {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVariants:
    """The choices of a server where the contract is silent. Times are in seconds, shares are from 0 to 1."""

    drift: bool = silence(15, False, True)
    """Numbers are sent as strings; optional fields are absent; there are unknown fields."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a value that its field cannot have."""
        for each in fields(self):
            each.metadata["check"](each.name, getattr(self, each.name), each.metadata["readings"])

    @classmethod
    def drawn(cls, rng: Random) -> Self:
        """Return a random reading of every silence."""
        drawn = {
            each.name: rng.choice(each.metadata["readings"])
            for each in fields(cls)
            if each.metadata["silence"] is not None
        }
        return cls(**drawn)

    def with_reading(self, name: str, value: object, rate: float) -> Self:
        """Return these choices with one more. A choice that is a share becomes `rate`, any other one `value`."""
        is_rate = any(each.name == name and each.metadata["check"] is _check_share for each in fields(self))
        return replace(self, **{name: rate if is_rate else value})  # type: ignore[arg-type]


def readings_of(variants: type[BaseVariants], number: int | None) -> Mapping[str, Readings]:
    """Return the choices with this number, and their readings."""
    return {
        each.name: each.metadata["readings"]
        for each in fields(variants)
        if each.metadata["silence"] == number
    }
