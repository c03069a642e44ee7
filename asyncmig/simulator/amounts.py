"""Checks of numbers that configure the simulator."""

__all__ = ["check_amount", "is_share"]


def is_share(value: object) -> bool:
    """Return whether `value` is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def check_amount(name: str, value: object, *, is_zero_allowed: bool = True) -> None:
    """Raise `ValueError` unless `value` is a number that is not negative and not NaN."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if not (number > 0 or (number == 0 and is_zero_allowed)):
        least = "0 or more" if is_zero_allowed else "more than 0"
        raise ValueError(f"{name} must be a number, {least}: {value!r}")
