"""The budget of one endpoint: how many requests may be under way, and what a 429 teaches.

Theory of operation
-------------------
Nobody knows how the server counts: a fixed window, a sliding one, a bucket. So the unit here is not the
request but the interval in which it can have arrived: from its send to its answer. A slot is taken at the send
and becomes free `window` seconds after the *answer*. At most W slots are taken. Whatever the latency, no
window of the server then holds more than W of our arrivals, under any of these ways of counting. (A log of
sends alone is not safe: a slow request and a fast one a window later may arrive together.)

W starts at the documented limit and is only believed until a 429 says otherwise:

- All stop for a moment (`hold`), then one probe goes. Refusals of requests that were sent before that are old
  news. If the probe is accepted at once, the server did not forget a window in a second or two: it has a bucket
  with a small burst B, namely what it had accepted above the refill, less one. If it is refused, the window is
  used up: probes go on until one is accepted, and W becomes what was accepted in the window before the 429. If that
  is less than half of W, somebody else uses the same budget: W is halved, and the old W remembered as a ceiling.
- After a clean and busy window W is tried half way to the ceiling; at the ceiling, after `patience` such windows,
  higher by 1, 2, 4, ...; and B by an eighth. A 429 in the window of a trial needs no probe to be understood: the
  trial is undone, what it started from is the ceiling now, and the patience is doubled (else somebody who shares the
  budget and stays would be met every minute).

Sends are `SPREAD` apart (closer where the limit is large: a whole burst takes at most a thirtieth of the window), and
until a large burst was accepted once, only as many requests are unanswered as half of what was accepted so far: a
server with a small bucket then costs one or two 429s, not ninety.

Absolute times on the caller's clock go in and come out; nothing here awaits.
"""

import enum
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import final

__all__ = ["MARGIN", "Limiter"]

MARGIN = 0.05
"""Seconds added to the window: clocks of two machines do not run alike."""
SPREAD = 0.02
FEWEST_UNPROVEN = 4
PROVEN = 90
MOST_PATIENCE = 16
LONGEST_PROBE_WAIT = 8.0
LONGEST_RETRY_AFTER = 60.0


class _Mode(enum.Enum):
    OPEN = "open"
    HOLD = "hold"
    """After a 429: nobody sends until `_held_until`, then one probe does."""
    PROBE = "probe"
    """The probe is under way."""


@final
class Limiter:
    """Slots of one budget. The caller takes one, sends, and reports the answer, the loss, or that it did not send."""

    __slots__ = (
        "_accepted",
        "_burst_known",
        "_busy",
        "_ceiling",
        "_clean",
        "_cut_at",
        "_freeing",
        "_held_until",
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
        self._spread = _spread(limit, window)
        self.slots: int = limit
        """W: how many may be taken."""
        self.burst: int = limit
        """B: how many may go at once."""
        self.refused: int = 0
        self._open = 0
        self._freeing: deque[float] = deque()
        self._last_send = float("-inf")
        self._mode = _Mode.OPEN
        self._held_until = self._cut_at = float("-inf")
        self._probe: float | None = None
        """When the probe that is under way was sent."""
        self._probes = 0
        self._accepted: deque[float] = deque()
        self._proven, self._was_full = 0, False
        self._level, self._level_at = 0.0, float("-inf")
        self._slots_known = self._burst_known = limit
        """W and B without the trial that is on."""
        self._ceiling, self._patience, self._step, self._clean = limit, 1, 1, 0
        self._review_at, self._busy = float("inf"), False

    # What may be sent

    def used(self, now: float) -> int:
        """Return the slots that are taken: unanswered, or answered less than a window ago."""
        self._advance(now)
        return self._open + len(self._freeing)

    @property
    def held_until(self) -> float:
        return self._held_until

    def next_at(self, now: float) -> float | None:
        """Return when a slot may be taken: `now`, a later time, or None until an answer comes."""
        freeing = self._freeing
        if (freeing and freeing[0] <= now) or now >= self._review_at:
            self._advance(now)
        if self._mode is _Mode.PROBE:
            return None
        if self._held_until > now:
            return self._held_until
        if self._mode is _Mode.HOLD:
            return now
        if self._proven < PROVEN and self._unproven():
            return None
        over = self._open + len(freeing) - self.slots
        if over >= 0:
            self._fill()
            return freeing[over] if over < len(freeing) else None
        spread = self._spread if self._proven >= PROVEN or not self._was_full else self._spread * 2
        return max(now, self._last_send + spread)

    def take(self, now: float) -> None:
        """Take a slot at the time that `next_at` gave; the request is sent now."""
        self._open += 1
        self._last_send = now
        if self._mode is _Mode.HOLD:
            self._mode, self._probe = _Mode.PROBE, now

    def wait_for(self, position: int, now: float) -> float:
        """Return about how many seconds pass until the request at `position` (from 0) in the line is sent."""
        over = self.used(now) - self.slots + position
        wait = position * self._spread
        if over >= 0:
            rounds, rest = divmod(over, self.slots)
            first = self._freeing[min(rest, len(self._freeing) - 1)] - now if self._freeing else self._window
            wait = first + rounds * self._window
        return max(wait, self._held_until - now, 0.0)

    # What came of it

    def unsent(self, now: float, *, sent_at: float) -> None:
        """The request was not sent after all: its slot is free at once, and the next one may be the probe."""
        self._open -= 1
        if sent_at == self._probe:
            self._hold(now)

    def lost(self, now: float, *, sent_at: float) -> None:
        """No answer will come: the request may have arrived, up to now. As a probe it told nothing."""
        self._leave(now)
        if sent_at == self._probe:
            self._hold(now + self._rng.uniform(1.0, 2.0))

    def accepted(self, now: float, *, sent_at: float) -> None:
        """An answer came, and it was not a 429."""
        self._leave(now)
        self._remember(now)
        self._proven += 1
        if sent_at == self._probe:
            self._learn(now)

    def rejected(self, now: float, *, sent_at: float, retry_after: float | None = None) -> None:
        """A 429 came. Everybody holds; `retry_after`: at least so many seconds (at most `LONGEST_RETRY_AFTER`)."""
        self._leave(now)
        self.refused += 1
        asked = now + min(LONGEST_RETRY_AFTER, retry_after or 0.0)
        if sent_at == self._probe:
            self._probes += 1
            self._hold(max(asked, now + self._pause()))
        elif self._mode is not _Mode.OPEN or sent_at < self._cut_at:
            self._held_until = max(
                asked, self._held_until
            )  # sent before the last cut: no news but for what it asks
        else:
            self._probes, self._cut_at = 0, now
            self._held_until = max(asked, now + self._pause())
            if not self._undo_trial(now):
                self._hold(self._held_until)

    def resize(self, limit: int) -> None:
        """Believe in another limit from now on, and forget what was learnt."""
        self._limit = self.slots = self.burst = self._ceiling = limit
        self._spread = _spread(limit, self._window)
        self._slots_known = self._burst_known = limit
        self._patience = self._step = 1

    # Between processes

    def recent(self, now: float) -> list[float]:
        """Return the ages in seconds of the answers whose slots are taken; 0 for what is unanswered."""
        self._advance(now)
        return [now - (at - self._window - MARGIN) for at in self._freeing] + [0.0] * self._open

    def resume(self, ages: Iterable[float], now: float) -> None:
        """Take the slots that another process used; `ages` in seconds, clamped to the window."""
        ends = sorted(now - min(max(age, 0.0), self._window) for age in ages)
        self._freeing.extend(end + self._window + MARGIN for end in ends)

    # Learning

    def _advance(self, now: float) -> None:
        while self._freeing and self._freeing[0] <= now:
            self._freeing.popleft()
        if now >= self._review_at:
            self._review(now)

    def _fill(self) -> None:
        """All slots are taken. That they come back as believed is to be proven once, by a slower burst."""
        self._busy = True
        if not self._was_full:
            self._was_full, self._proven = True, 0

    def _unproven(self) -> bool:
        """Return whether as many are under way as may be, while no large burst was accepted yet."""
        return self._proven < self.slots and self._open >= max(FEWEST_UNPROVEN, self._proven // 2)

    def _leave(self, now: float) -> None:
        """Let the slot of a request that may have arrived until now become free after a window."""
        self._open -= 1
        self._freeing.append(now + self._window + MARGIN)

    def _remember(self, now: float) -> None:
        """Count an acceptance: in the last window, and in the server's bucket as far as it can be guessed."""
        self._accepted.append(now)
        if self._mode is _Mode.OPEN:  # else a 429 is still to be explained by them
            while self._accepted[0] <= now - self._window:
                self._accepted.popleft()
        dripped = (now - self._level_at) * self.slots / self._window
        self._level = 1.0 + max(0.0, self._level - dripped)
        self._level_at = now

    def _pause(self) -> float:
        return min(LONGEST_PROBE_WAIT, self._rng.uniform(1.0, 2.0) * 2.0**self._probes)

    def _hold(self, until: float) -> None:
        """Let nobody send until then, and then one probe."""
        self._mode, self._probe, self._held_until = _Mode.HOLD, None, until

    def _learn(self, now: float) -> None:
        """The probe was accepted: conclude from how many it took, and go on."""
        self._mode, self._probe = _Mode.OPEN, None
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
        """Return to what is known to work, if something else was being tried."""
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
        """A window has passed without a 429: what was tried is known now; if it was busy, try a little more."""
        busy = self._busy
        clean = self._clean
        self._await_review(now)
        if self._mode is not _Mode.OPEN:
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
