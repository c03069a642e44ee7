"""Rate limits of a server: fixed and sliding windows, a two-window counter, a token bucket. All of them are pure."""

from collections import deque
from typing import Protocol, final

from asyncmig.simulator.amounts import check_amount

__all__ = ["FixedWindow", "RateLimit", "SlidingCounter", "SlidingLog", "TokenBucket"]


def _check(limit: float, window: float) -> None:
    check_amount("limit", limit)
    check_amount("window", window, is_zero_allowed=False)


class RateLimit(Protocol):
    """Decides about one call after another."""

    def allow(self, now: float) -> bool:
        """Count a call at `now` and return whether it is allowed."""
        ...


@final
class FixedWindow:
    """`limit` calls in each window; windows begin at `phase` and every `window` seconds after."""

    def __init__(
        self, limit: int, window: float = 60.0, *, phase: float = 0.0, count_rejects: bool = False
    ) -> None:
        _check(limit, window)
        self._limit, self._window, self._phase, self._rejects = limit, window, phase, count_rejects
        self._current, self._count = -1.0, 0

    def allow(self, now: float) -> bool:
        """Count a call at `now` (seconds) and return whether it is allowed."""
        current = (now - self._phase) // self._window
        if current != self._current:
            self._current, self._count = current, 0
        allowed = self._count < self._limit
        self._count += allowed or self._rejects
        return allowed


@final
class SlidingLog:
    """`limit` calls in any `window` seconds."""

    def __init__(self, limit: int, window: float = 60.0, *, count_rejects: bool = False) -> None:
        _check(limit, window)
        self._limit, self._window, self._rejects = limit, window, count_rejects
        self._log: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """Count a call at `now` (seconds) and return whether it is allowed."""
        while self._log and self._log[0] <= now - self._window:
            self._log.popleft()
        allowed = len(self._log) < self._limit
        if allowed or self._rejects:
            self._log.append(now)
        return allowed


@final
class SlidingCounter:
    """The present fixed window, plus the previous one weighted by how much of it is still in view."""

    def __init__(self, limit: int, window: float = 60.0, *, count_rejects: bool = False) -> None:
        _check(limit, window)
        self._limit, self._window, self._rejects = limit, window, count_rejects
        self._current, self._count, self._previous = -1.0, 0, 0

    def allow(self, now: float) -> bool:
        """Count a call at `now` (seconds) and return whether it is allowed."""
        current, into = divmod(now, self._window)
        if current != self._current:
            self._previous = self._count if current == self._current + 1 else 0
            self._current, self._count = current, 0
        allowed = self._previous * (1 - into / self._window) + self._count < self._limit
        self._count += allowed or self._rejects
        return allowed


@final
class TokenBucket:
    """`burst` tokens, refilled at `limit` in `window` seconds. With `count_rejects`, a refused call costs one too."""

    def __init__(self, limit: int, window: float = 60.0, *, burst: int, count_rejects: bool = False) -> None:
        _check(limit, window)
        check_amount("burst", burst)
        self._rate, self._burst, self._rejects = limit / window, burst, count_rejects
        self._tokens, self._at = float(burst), 0.0

    def allow(self, now: float) -> bool:
        """Count a call at `now` (seconds) and return whether it is allowed."""
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now
        allowed = self._tokens >= 1.0
        if allowed or self._rejects:
            self._tokens = max(0.0, self._tokens - 1.0)
        return allowed
