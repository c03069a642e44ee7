"""The limiter of one budget: how many requests may be in flight, and what the client learns from a 429.

**Theory of operation.** The server may count by a fixed window, a sliding window or a token bucket; this is not
documented. The client does not know when a request arrives, only that it arrives between its send and its answer. A
request therefore takes a slot when it is sent, and the slot becomes free `window` seconds after the *answer*. At most
W slots are taken at a time. Then no window of the server contains more than W of our arrivals, whatever the latency
and however the server counts. (A log of sends is not enough: a slow request may arrive together with a fast one that
was sent a window later.)

W starts at the documented limit. A 429 corrects it:

- The limiter holds all requests for one or two seconds, and then sends one request as a probe. It ignores refusals of
  requests that were sent before the hold.
  - If the server accepts the first probe, its window was not full one or two seconds earlier. So the server uses a
    token bucket with a small burst B. B becomes the number of requests that the server had accepted in excess of the
    refill, less one.
  - If the server refuses the probe, its window is full. Probes continue until one is accepted. W becomes the number
    of requests that were accepted in the window before the 429. If that is less than half of W, another client uses
    the same budget: W is halved, and the old W becomes the ceiling.
- After a busy window without a 429, W rises half way to the ceiling. At the ceiling, after `patience` such windows, W
  rises by 1, 2, 4, ..., and B by an eighth. Each rise is a trial for one window. A 429 during a trial needs no probe:
  the trial is undone, the value before it becomes the ceiling, and `patience` doubles. Without the doubling, a client
  that permanently shares the budget would cause a 429 every minute.

Sends are `SPREAD` seconds apart. With a large limit they are closer, so that a whole burst takes at most a thirtieth
of the window. Until the server has accepted a large burst once, the number of unanswered requests is at most half of
the number that it has accepted so far. A server with a small bucket then causes one or two 429s instead of ninety.

A window of more than `SHORT_WINDOW` seconds is never probed, because each refused request could cost the slot of an
hour. Its requests are sent one at a time, so that at most one of them is refused. A 429 holds the budget until the
server's `Retry-After`, or until one window after the last accepted request.

The headers of responses take precedence (`apply_headers`). They can only lower the number of requests, so that a
wrong header costs time but causes no 429.

All times are absolute times on the caller's clock, in seconds.
"""

import enum
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping
from random import Random
from typing import final

from asyncmig._core.limits import RateHeaders

__all__ = ["MARGIN", "SHORT_WINDOW", "Limiter"]

MARGIN = 0.05
"""Seconds added to the window, because the clocks of two machines differ in speed."""
SPREAD = 0.02
"""The longest time between two sends of a burst, in seconds."""
FEWEST_UNPROVEN = 4
"""The number of requests that may be unanswered before the server has accepted any."""
PROVEN = 90
"""The number of accepted requests after which a large burst counts as accepted."""
MOST_PATIENCE = 16
"""The largest `patience`: the number of windows without a 429 before a trial."""
LONGEST_PROBE_WAIT = 8.0
"""The longest pause before a probe, in seconds."""
_MOST_DOUBLINGS = 3
"""How often this pause doubles until it is the longest. Without a bound, 2.0**1024 overflows."""
SHORT_WINDOW = 120.0
"""The longest window, in seconds, whose limit is learnt by probes."""


class _Mode(enum.Enum):
    OPEN = "open"
    HOLD = "hold"
    """After a 429: nothing is sent until `_held_until`, then one probe."""
    PROBE = "probe"
    """The probe is in flight."""


_OPEN, _HOLD, _PROBE = _Mode  # a name of the module is read faster than a member of an enumeration


@final
class Limiter:
    """The slots of one budget.

    The caller takes a slot and sends a request. Then it reports the answer, that no answer will come, or that it did
    not send the request.
    """

    __slots__ = (
        "_accepted",
        "_burst_known",
        "_busy",
        "_ceiling",
        "_clean",
        "_configured",
        "_cut_at",
        "_freeing",
        "_held_until",
        "_is_long",
        "_last_accepted",
        "_last_send",
        "_level",
        "_level_at",
        "_limit",
        "_mode",
        "_open",
        "_patience",
        "_probe",
        "_probes",
        "_proven",
        "_review_at",
        "_rng",
        "_slots_known",
        "_spread",
        "_step",
        "_was_full",
        "_window",
        "burst",
        "refused",
        "slots",
    )

    def __init__(self, *, limit: int, window: float, rng: Random) -> None:
        self._limit, self._window, self._rng = limit, window, rng
        self._configured = limit
        self._spread, self._is_long = _spread(limit, window), window > SHORT_WINDOW
        self.slots: int = limit
        """W: the most slots that may be taken at a time."""
        self.burst: int = limit
        """B: the most requests that may be sent at once."""
        self.refused: int = 0
        self._open = 0
        self._freeing: deque[float] = deque()
        self._last_send = self._last_accepted = float("-inf")
        self._mode = _OPEN
        self._held_until = self._cut_at = float("-inf")
        self._probe: float | None = None
        """When the probe in flight was sent."""
        self._probes = 0
        self._accepted: deque[float] = deque()
        self._proven, self._was_full = 0, False
        self._level, self._level_at = 0.0, float("-inf")
        self._slots_known = self._burst_known = limit
        """W and B without the present trial."""
        self._ceiling, self._patience, self._step, self._clean = limit, 1, 1, 0
        self._review_at, self._busy = float("inf"), False

    # What may be sent

    def used(self, now: float) -> int:
        """Return the number of taken slots: unanswered, or answered less than a window ago."""
        self._advance(now)
        return self._open + len(self._freeing)

    def dump(self) -> dict[str, object]:
        """Return the state as values that JSON can represent, for `load` in another process."""
        state: dict[str, object] = {name: getattr(self, name) for name in self.__slots__ if name != "_rng"}
        return state | {
            "_freeing": list(self._freeing),
            "_accepted": list(self._accepted),
            "_mode": self._mode.value,
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Take over a state that `dump` returned. Raises `KeyError` or `ValueError` for another."""
        for name in self.__slots__:
            if name != "_rng":
                setattr(self, name, state[name])
        self._freeing, self._accepted = deque(self._freeing), deque(self._accepted)
        self._mode = _Mode(self._mode)

    @property
    def window(self) -> float:
        """The window, in seconds."""
        return self._window

    @property
    def limit(self) -> int:
        """The configured limit."""
        return self._configured

    @property
    def held_until(self) -> float:
        """The end of the present or last hold."""
        return self._held_until

    def next_at(self, now: float) -> float | None:
        """Return the earliest time at which a slot can be taken; None if that depends on the next answer."""
        freeing = self._freeing
        if (freeing and freeing[0] <= now) or now >= self._review_at:
            self._advance(now)
        if self._mode is _PROBE:
            return None
        if self._held_until > now:
            return self._held_until
        if self._mode is _HOLD:
            return now
        if self._is_long and self._open:
            return None
        if self._proven < PROVEN and self._awaits_proof():
            return None
        over = self._open + len(freeing) - self.slots
        if over >= 0:
            self._note_full()
            return freeing[over] if over < len(freeing) else None
        spread = self._spread if self._proven >= PROVEN or not self._was_full else self._spread * 2
        return max(now, self._last_send + spread)

    def take(self, now: float) -> None:
        """Take a slot at the time that `next_at` returned; the request is sent now."""
        self._open += 1
        self._last_send = now
        if self._mode is _HOLD:
            self._mode, self._probe = _PROBE, now

    def wait_for(self, position: int, now: float) -> float:
        """Return the approximate seconds until the request at `position` (from 0) in the queue is sent."""
        over = self.used(now) - self.slots + position
        wait = position * self._spread
        if over >= 0:
            rounds, rest = divmod(over, self.slots)
            first = self._freeing[min(rest, len(self._freeing) - 1)] - now if self._freeing else self._window
            wait = first + rounds * self._window
        return max(wait, self._held_until - now, 0.0)

    # The results of requests

    def unsent(self, now: float, *, sent_at: float) -> None:
        """Report that the request was not sent. Its slot is free at once. Another probe follows an unsent one."""
        self._open -= 1
        if sent_at == self._probe:
            self._hold(now)

    def lost(self, now: float, *, sent_at: float) -> None:
        """Report that no answer will come: the request may have arrived at any time until now.

        Another probe follows a lost one.
        """
        self._free_later(now)
        if sent_at == self._probe:
            self._hold(now + self._rng.uniform(1.0, 2.0))

    def accepted(self, now: float, *, sent_at: float) -> None:
        """Report an answer other than a 429."""
        self._free_later(now)
        self._count_accepted(now)
        self._proven += 1
        self._last_accepted = now
        if sent_at == self._probe:
            self._learn(now)

    def rejected(self, now: float, *, sent_at: float, retry_after: float | None = None) -> None:
        """Report a 429. It holds all requests, for at least `retry_after` seconds (at most one window)."""
        self.refused += 1
        if self._is_long:
            self._refuse_long(now, retry_after)
            return
        asked = now + min(self._window, retry_after or 0.0)
        self._free_later(now)
        if sent_at == self._probe:
            self._probes += 1
            self._hold(max(asked, now + self._pause()))
        elif self._mode is not _OPEN or sent_at < self._cut_at:
            # It was sent before the hold, so it shows nothing new. Its `Retry-After` still applies.
            self._held_until = max(asked, self._held_until)
        else:
            self._probes, self._cut_at = 0, now
            self._held_until = max(asked, now + self._pause())
            if not self._undo_trial(now):
                self._hold(self._held_until)

    def _refuse_long(self, now: float, retry_after: float | None) -> None:
        """Hold a long window: for `retry_after`, or until a window after the last accepted request."""
        if retry_after is not None:
            until = now + min(self._window, max(1.0, retry_after)) + MARGIN
        else:
            until = self.unexplained_hold(now)
        self._open -= 1
        insort(self._freeing, until)
        self.hold_until(until)

    def unexplained_hold(self, now: float) -> float:
        """Return until when a 429 without a `Retry-After` holds a long window."""
        until = self._last_accepted + self._window + MARGIN
        return until if until > now else now + self._window + MARGIN  # then other clients use the budget

    def hold_until(self, until: float) -> None:
        """Send nothing before `until`. W and B stay the same."""
        self._held_until = max(self._held_until, until)

    def apply_headers(self, headers: RateHeaders, now: float) -> None:
        """Apply the headers of a response that concern this budget. They can only lower the number of requests."""
        if headers.limit is not None and headers.limit > 0:
            limit = min(headers.limit, self._configured)
            if limit != self._limit:
                self._set_limit(limit)
        if headers.remaining is None or headers.reset is None or not headers.reset > 0:
            return
        until = now + min(headers.reset, self._window) + MARGIN
        over = self.slots - self.used(now) - max(0, headers.remaining)
        for _ in range(over):
            insort(self._freeing, until)

    def resize(self, limit: int) -> None:
        """Use another limit from now on, and forget what the 429s have shown."""
        self._configured = limit
        self._set_limit(limit)

    def _set_limit(self, limit: int) -> None:
        self._limit = self.slots = self.burst = self._ceiling = limit
        self._spread = _spread(limit, self._window)
        self._slots_known = self._burst_known = limit
        self._patience = self._step = 1

    # Between processes

    def recent(self, now: float) -> list[float]:
        """Return the ages in seconds of the answers whose slots are still taken; 0 for each unanswered request."""
        self._advance(now)
        return [now - (at - self._window - MARGIN) for at in self._freeing] + [0.0] * self._open

    def resume(self, ages: Iterable[float], now: float) -> None:
        """Take the slots that another process used. `ages`: seconds since their answers, from 0 to the window."""
        for age in ages:
            insort(self._freeing, now - min(max(age, 0.0), self._window) + self._window + MARGIN)

    # Learning

    def _advance(self, now: float) -> None:
        while self._freeing and self._freeing[0] <= now:
            self._freeing.popleft()
        if now >= self._review_at:
            self._review(now)

    def _note_full(self) -> None:
        """Record that all slots are taken. At first, a large burst must then be accepted at half speed."""
        self._busy = True
        if not self._was_full:
            self._was_full, self._proven = True, 0

    def _awaits_proof(self) -> bool:
        """Return whether an answer must arrive first, because no large burst was accepted so far."""
        return self._proven < self.slots and self._open >= max(FEWEST_UNPROVEN, self._proven // 2)

    def _free_later(self, now: float) -> None:
        """Let the slot become free in one window: its request may have arrived at any time until now."""
        self._open -= 1
        self._freeing.append(now + self._window + MARGIN)

    def _count_accepted(self, now: float) -> None:
        """Count an accepted request, for the last window and for the level of the server's bucket."""
        self._accepted.append(now)
        if self._mode is _OPEN:  # otherwise `_learn` still needs them to explain a 429
            while self._accepted[0] <= now - self._window:
                self._accepted.popleft()
        refilled = (now - self._level_at) * self.slots / self._window
        self._level = 1.0 + max(0.0, self._level - refilled)
        self._level_at = now

    def _pause(self) -> float:
        return min(
            LONGEST_PROBE_WAIT, self._rng.uniform(1.0, 2.0) * 2.0 ** min(self._probes, _MOST_DOUBLINGS)
        )

    def _hold(self, until: float) -> None:
        """Send nothing before `until`, and then one probe."""
        self._mode, self._probe, self._held_until = _HOLD, None, until

    def _learn(self, now: float) -> None:
        """Set W or B, depending on the number of probes that were refused, and end the hold."""
        self._mode, self._probe = _OPEN, None
        before = sum(at > self._cut_at - self._window for at in self._accepted) - 1
        if self._probes == 0 and self.burst == self._limit:
            self.burst = max(1, min(self.burst, int(self._level) - 1))
        else:
            if self._probes == 0:
                self.burst = max(1, self.burst // 2)
            self._learn_window(before)
        self._slots_known, self._burst_known = self.slots, self.burst
        self._await_review(now)

    def _learn_window(self, accepted: int) -> None:
        if accepted * 2 < self.slots:
            self._ceiling = max(self._ceiling, self.slots)
            self.slots = max(1, self.slots // 2)
        else:
            self.slots = self._ceiling = max(1, min(self.slots, accepted))

    def _undo_trial(self, now: float) -> bool:
        """Undo the present trial; return whether there was one."""
        if (self.slots, self.burst) == (self._slots_known, self._burst_known):
            return False
        self.slots, self.burst = self._slots_known, self._burst_known
        self._ceiling = self.slots
        self._patience = min(MOST_PATIENCE, self._patience * 2)
        self._step = 1
        self._await_review(now)
        return True

    def _await_review(self, now: float) -> None:
        self._review_at, self._busy, self._clean = now + self._window, False, 0

    def _review(self, now: float) -> None:
        """After a window without a 429, accept the present trial. If the window was busy, begin the next trial."""
        busy = self._busy
        clean = self._clean
        self._await_review(now)
        if self._mode is not _OPEN:
            return
        self._slots_known, self._burst_known = self.slots, self.burst
        if not busy:
            self._clean = clean
            return
        if self.slots < self._ceiling:
            self.slots += (self._ceiling - self.slots + 1) // 2
        elif clean + 1 < self._patience:
            self._clean = clean + 1
        elif self.slots < self._limit:
            self.slots = self._ceiling = min(self._limit, self.slots + self._step)
            self._step *= 2
        elif self.burst < self._limit:
            self.burst = min(self._limit, self.burst + max(1, self.burst // 8))


def _spread(limit: int, window: float) -> float:
    return min(SPREAD, window / (30 * limit))
