"""Which requests a limiter allows and what it learns from a 429, without a loop or a clock."""

from itertools import pairwise
from random import Random

import pytest
from gateload import most_in_a_window
from hypothesis import given
from hypothesis import strategies as st

from asyncmig._core.limiter import Limiter


def new_limiter(limit: int = 100, window: float = 60.0) -> Limiter:
    return Limiter(limit=limit, window=window, rng=Random(1))


def take(limiter: Limiter, now: float) -> float:
    """Take the next slot at or after `now`, and return its time."""
    at = limiter.next_at(now)
    assert at is not None
    assert limiter.next_at(at) == at
    limiter.take(at)
    return at


def answer(limiter: Limiter, now: float, count: int = 1, latency: float = 0.1) -> float:
    """Make `count` accepted requests, one after the other. Return the time of the last answer."""
    for _ in range(count):
        sent = take(limiter, now)
        now = sent + latency
        limiter.accepted(now, sent_at=sent)
    return now


def refuse(limiter: Limiter, now: float, **more: float) -> float:
    """Make a request that is refused. Return the end of the hold."""
    sent = take(limiter, now)
    limiter.rejected(sent + 0.1, sent_at=sent, **more)
    return limiter.held_until


def probe(limiter: Limiter, *, accepted: bool) -> float:
    """Send the probe as early as possible. Return the time of its answer."""
    sent = take(limiter, limiter.held_until)
    assert limiter.next_at(sent + 0.05) is None
    if accepted:
        limiter.accepted(sent + 0.1, sent_at=sent)
    else:
        limiter.rejected(sent + 0.1, sent_at=sent)
    return sent + 0.1


def busy_window(limiter: Limiter, now: float) -> float:
    """Use every slot for one window from `now`. Return the end of the window."""
    end = now + 60.2
    while (at := limiter.next_at(now)) is not None and at < end:
        now = answer(limiter, at)
    limiter.next_at(end)
    return end


# The window


def test_a_slot_is_taken_until_a_window_and_a_margin_after_its_answer() -> None:
    limiter = new_limiter(limit=1)
    sent = take(limiter, 0.0)
    assert limiter.next_at(100.0) is None
    limiter.accepted(5.0, sent_at=sent)
    assert limiter.next_at(6.0) == 65.05
    assert (limiter.used(65.0), limiter.used(65.05)) == (1, 0)


def test_the_window_of_a_lost_request_begins_when_it_is_lost() -> None:
    limiter = new_limiter(limit=1)
    limiter.lost(30.0, sent_at=take(limiter, 0.0))
    assert limiter.next_at(31.0) == 90.05


def test_an_unsent_request_takes_no_slot() -> None:
    limiter = new_limiter(limit=1)
    limiter.unsent(0.0, sent_at=take(limiter, 0.0))
    assert limiter.next_at(0.0) == 0.02
    assert limiter.used(0.0) == 0


def test_slots_become_free_one_by_one() -> None:
    limiter = new_limiter(limit=2)
    answer(limiter, 0.0, count=2, latency=1.0)
    assert limiter.next_at(2.0) == 61.05
    take(limiter, 61.05)
    assert limiter.next_at(61.06) == 62.05


@pytest.mark.parametrize(("limit", "apart"), [(10, 0.02), (100, 0.02), (1000, 0.002)])
def test_sends_are_spread_over_a_thirtieth_of_the_window_at_most(limit: int, apart: float) -> None:
    limiter = new_limiter(limit)
    take(limiter, 0.0)
    assert limiter.next_at(0.0) == pytest.approx(apart)
    limiter.resize(2000)
    assert limiter.next_at(0.0) == pytest.approx(0.001)


def test_unanswered_requests_are_limited_until_a_burst_was_accepted() -> None:
    limiter = new_limiter()
    open_ = [take(limiter, 0.1 * n) for n in range(4)]
    assert limiter.next_at(1.0) is None
    limiter.accepted(1.0, sent_at=open_[0])
    now = answer(limiter, 1.0, count=20)
    for n in range(7):
        take(limiter, now + n)
    assert limiter.next_at(now + 8.0) is None
    limiter.lost(now + 8.0, sent_at=open_[1])
    assert limiter.next_at(now + 8.0) == now + 8.0


def test_after_a_burst_all_slots_may_be_unanswered() -> None:
    limiter = new_limiter()
    now = answer(limiter, 0.0, count=90) + 61.0
    for _ in range(100):
        now = take(limiter, now)
    assert limiter.next_at(now) is None


def test_the_first_refill_is_slower() -> None:
    limiter = new_limiter(limit=3)
    now = answer(limiter, 0.0, count=3)
    assert limiter.next_at(now) is not None
    first = take(limiter, 70.0)
    assert limiter.next_at(70.0) == pytest.approx(first + 0.04)


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 30.0), st.booleans()), max_size=60),
    st.integers(1, 5),
)
def test_no_window_can_contain_more_arrivals_than_slots(
    calls: list[tuple[float, float, bool]], limit: int
) -> None:
    limiter, now = new_limiter(limit, window=10.0), 0.0
    spans: list[tuple[float, float]] = []
    open_: list[tuple[float, float, bool]] = []

    def finish(until: float) -> float:
        for end, sent, lost in sorted(each for each in open_ if each[0] <= until):
            (limiter.lost if lost else limiter.accepted)(end, sent_at=sent)
            spans.append((sent, end))
            open_.remove((end, sent, lost))
        return until

    for pause, latency, lost in calls:
        now = finish(now + pause)
        while (at := limiter.next_at(now)) is None or at > now:
            now = finish(at if at is not None else min(open_)[0])
        limiter.take(now)
        open_.append((now + latency, now, lost))
    finish(float("inf"))
    assert most_in_a_window(spans, 10.0) <= limit


# Holds and probes


def test_a_429_holds_all_requests_for_one_to_two_seconds_and_then_allows_one_probe() -> None:
    limiter = new_limiter()
    until = refuse(limiter, 10.0)
    assert 11.1 <= until <= 12.1
    assert limiter.next_at(10.2) == until
    take(limiter, until)
    assert limiter.next_at(until + 5.0) is None


@pytest.mark.parametrize(("asked", "seconds"), [(20.0, 20.0), (999.0, 60.0), (-5.0, None), (0.0, None)])
def test_retry_after_is_followed_for_at_most_a_minute(asked: float, seconds: float | None) -> None:
    held = refuse(new_limiter(), 10.0, retry_after=asked) - 10.1
    assert held == pytest.approx(seconds) if seconds else 1.0 <= held <= 2.0


def test_refusals_of_requests_sent_before_the_first_one_change_only_the_hold() -> None:
    limiter = new_limiter()
    first, second, third = take(limiter, 0.0), take(limiter, 0.1), take(limiter, 0.2)
    limiter.rejected(0.3, sent_at=first)
    until = limiter.held_until
    limiter.rejected(0.4, sent_at=second)
    assert limiter.held_until == until
    limiter.rejected(0.5, sent_at=third, retry_after=30.0)
    assert limiter.held_until == 30.5
    assert limiter.refused == 3


def test_a_late_refusal_of_a_request_sent_before_the_last_cut_is_ignored() -> None:
    limiter = new_limiter()
    late = take(limiter, 0.0)
    refuse(limiter, 0.1)
    now = probe(limiter, accepted=True)
    known = (limiter.slots, limiter.burst)
    limiter.rejected(now + 1.0, sent_at=late)
    assert (limiter.slots, limiter.burst) == known
    assert limiter.next_at(now + 1.0) == now + 1.0


def test_the_pause_between_refused_probes_grows_to_eight_seconds() -> None:
    limiter = new_limiter()
    refuse(limiter, 0.0)
    waits = []
    for _ in range(1100):
        at = probe(limiter, accepted=False)
        waits.append(limiter.held_until - at)
    assert 2.0 <= waits[0] <= 4.0
    assert 4.0 <= waits[1] <= 8.0
    assert waits[2:] == pytest.approx([8.0] * 1098)


@pytest.mark.parametrize("fate", ["lost", "unsent"])
def test_a_lost_or_unsent_probe_is_followed_by_another_probe(fate: str) -> None:
    limiter = new_limiter()
    sent = take(limiter, refuse(limiter, 0.0))
    getattr(limiter, fate)(sent + 1.0, sent_at=sent)
    again = limiter.next_at(sent + 1.0)
    assert again is not None
    assert again == sent + 1.0 if fate == "unsent" else 1.0 <= again - sent - 1.0 <= 2.0
    take(limiter, again)
    assert limiter.next_at(again + 1.0) is None


# Learning


def test_a_probe_that_is_accepted_at_once_shows_a_bucket_and_its_size() -> None:
    limiter = new_limiter()
    now = answer(limiter, 0.0, count=12, latency=0.06)
    refuse(limiter, now)
    probe(limiter, accepted=True)
    assert limiter.slots == 100
    assert limiter.burst in range(8, 12)


@pytest.mark.parametrize("latency", [0.02, 0.3])
@pytest.mark.parametrize("count", [9, 40])
def test_the_learnt_burst_is_one_less_than_the_level_of_the_bucket(count: int, latency: float) -> None:
    limiter, level, before = new_limiter(), 0.0, -1e9
    answer(limiter, 0.0, count=20)
    now = 500.0
    for _ in range(count):
        now = answer(limiter, now, latency=latency)
        level, before = max(0.0, level - (now - before) * 100 / 60) + 1, now
    refuse(limiter, now)
    end = probe(limiter, accepted=True)
    assert limiter.burst == max(1, int(max(0.0, level - (end - before) * 100 / 60) + 1) - 1)


def test_slots_and_burst_are_never_below_one() -> None:
    limiter, now = new_limiter(limit=1), 0.0
    for refused_probes in (0, 0, 3, 3, 0):
        now = max(now, refuse(limiter, now + 100.0))
        for _ in range(refused_probes):
            probe(limiter, accepted=False)
        now = probe(limiter, accepted=True)
        assert (limiter.slots, limiter.burst) == (1, 1)


def test_each_later_refusal_halves_the_burst() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=21, latency=0.02))
    burst, now = limiter.burst, probe(limiter, accepted=True)
    for _ in range(3):
        burst = limiter.burst
        refuse(limiter, answer(limiter, now, count=5))
        now = probe(limiter, accepted=True)
        assert limiter.burst == burst // 2


def test_a_refused_probe_shows_the_size_of_the_window() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=80, latency=0.02))
    for _ in range(5):
        probe(limiter, accepted=False)
    probe(limiter, accepted=True)
    assert (limiter.slots, limiter.burst) == (80, 100)


def test_slots_that_another_client_uses_are_regained_by_half_in_each_window() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=30))
    probe(limiter, accepted=False)
    now = probe(limiter, accepted=True)
    seen = [limiter.slots]
    for _ in range(7):
        now = busy_window(limiter, now)
        seen.append(limiter.slots)
    assert seen == [50, 75, 88, 94, 97, 99, 100, 100]


def test_no_slots_are_regained_while_the_budget_is_not_used() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=30))
    probe(limiter, accepted=False)
    now = probe(limiter, accepted=True)
    for n in range(5):
        answer(limiter, now + 100.0 * n)
    assert limiter.slots == 50


@pytest.mark.parametrize(
    ("accepted", "slots", "later"), [(40, 50, 75), (49, 50, 75), (50, 50, 51), (60, 60, 61)]
)
def test_less_than_half_accepted_means_another_client_and_more_means_a_smaller_window(
    accepted: int, slots: int, later: int
) -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=accepted, latency=0.02))
    probe(limiter, accepted=False)
    now = probe(limiter, accepted=True)
    assert limiter.slots == slots
    busy_window(limiter, now)
    assert limiter.slots == later


def test_requests_accepted_in_the_window_before_a_429_count_after_late_probes() -> None:
    limiter = new_limiter()
    now = answer(limiter, 0.0, count=70, latency=0.02)
    refuse(limiter, now + 50.0)
    for _ in range(5):
        probe(limiter, accepted=False)
    assert probe(limiter, accepted=True) > 70.0
    assert limiter.slots == 70


def test_requests_accepted_before_the_window_of_a_429_do_not_count() -> None:
    limiter = new_limiter()
    answer(limiter, 0.0, count=20, latency=0.02)
    refuse(limiter, answer(limiter, 65.0, count=60, latency=0.02))
    probe(limiter, accepted=False)
    probe(limiter, accepted=True)
    assert limiter.slots == 60


def test_more_slots_are_tried_less_and_less_often_while_another_client_stays() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=30))
    probe(limiter, accepted=False)
    now = busy_window(limiter, probe(limiter, accepted=True))
    assert limiter.slots == 75
    now = max(now, refuse(limiter, now))
    assert limiter.slots == 50
    gaps = []
    for _ in range(3):
        windows = 0
        while limiter.slots == 50:
            now, windows = busy_window(limiter, now), windows + 1
        assert limiter.slots == 51
        gaps.append(windows)
        now = max(now, refuse(limiter, now))
    assert gaps == [2, 4, 8]


def _learnt_80() -> tuple[Limiter, float]:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=80, latency=0.02))
    probe(limiter, accepted=False)
    return limiter, probe(limiter, accepted=True)


def test_the_slots_of_a_learnt_window_are_raised_in_growing_steps_up_to_the_limit() -> None:
    limiter, now = _learnt_80()
    for _ in range(3):  # an unused window changes nothing
        now = answer(limiter, now + 61.0)
    seen = []
    for _ in range(8):
        now = busy_window(limiter, now)
        seen.append(limiter.slots)
    assert seen == [81, 83, 87, 95, 100, 100, 100, 100]


def test_a_failed_trial_is_reverted_without_a_probe_and_repeated_less_often() -> None:
    limiter, now = _learnt_80()
    gaps = []
    for _ in range(6):
        windows = 0
        while limiter.slots == 80:
            now, windows = busy_window(limiter, now), windows + 1
        gaps.append(windows)
        now = max(now, refuse(limiter, now))
        assert limiter.slots == 80
        assert limiter.next_at(now) is not None
        take_two = take(limiter, now), take(limiter, now + 1.0)  # no request waits for a probe
        for sent in take_two:
            limiter.accepted(now + 2.0, sent_at=sent)
    assert gaps == [1, 2, 4, 8, 16, 16]


def test_a_learnt_burst_grows_back_to_the_limit() -> None:
    limiter = new_limiter()
    refuse(limiter, answer(limiter, 0.0, count=12, latency=0.06))
    now = probe(limiter, accepted=True)
    seen = [limiter.burst]
    for _ in range(25):
        now = busy_window(limiter, now)
        seen.append(limiter.burst)
    assert seen == sorted(seen)
    assert seen[1] == seen[0] + 1
    assert seen[-1] == 100
    assert all(isinstance(burst, int) for burst in seen)
    assert all(1 <= late - early <= 12 for early, late in pairwise(seen) if late < 100)


def test_a_changed_limit_resets_what_was_learnt() -> None:
    limiter, now = _learnt_80()
    limiter.resize(200)
    assert (limiter.slots, limiter.burst) == (200, 200)
    now = busy_window(limiter, now)
    assert limiter.slots == 200
    now = max(now, refuse(limiter, now))
    take(limiter, now)
    assert limiter.next_at(now + 1.0) is None  # the refusal starts a probe: there is no trial to revert


# Between processes


def test_the_ages_of_one_process_take_slots_in_the_next_one() -> None:
    limiter = new_limiter(limit=5)
    answer(limiter, 0.0, count=2, latency=10.0)
    take(limiter, 30.0)
    ages = limiter.recent(40.0)
    assert ages == pytest.approx([30.0, 20.0, 0.0])
    successor = new_limiter(limit=3)
    successor.resume(ages, 1000.0)
    assert successor.next_at(1000.0) == pytest.approx(1030.05)
    assert successor.used(1000.0) == 3
    assert successor.recent(1000.0) == pytest.approx([30.0, 20.0, 0.0])


def test_ages_outside_of_the_window_are_clamped() -> None:
    successor = new_limiter(limit=2)
    successor.resume([-50.0, 1e9], 1000.0)
    assert successor.recent(1000.0) == pytest.approx([60.0, 0.0])


# Estimates of waits


def test_the_wait_depends_on_the_place_in_the_queue() -> None:
    limiter = new_limiter(limit=2)
    assert limiter.wait_for(0, 0.0) == 0.0
    answer(limiter, 0.0, count=2, latency=1.0)
    assert [limiter.wait_for(n, 10.0) for n in range(4)] == pytest.approx([51.05, 52.05, 111.05, 112.05])
    assert limiter.wait_for(0, 70.0) == 0.0
    until = refuse(limiter, 62.5)
    assert limiter.wait_for(0, 62.6) == until - 62.6
    assert limiter.wait_for(0, 200.0) == 0.0


def test_the_wait_includes_unanswered_requests() -> None:
    limiter = new_limiter(limit=3)
    assert limiter.wait_for(2, 0.0) == pytest.approx(0.04)
    limiter.accepted(1.0, sent_at=take(limiter, 0.0))
    take(limiter, 1.0)
    take(limiter, 2.0)
    assert [limiter.wait_for(n, 10.0) for n in range(3)] == pytest.approx([51.05] * 3)
    alone = new_limiter(limit=1)
    take(alone, 0.0)
    assert alone.wait_for(0, 10.0) == 60.0
