"""What a budget allows and what a 429 teaches it, by numbers: no loop, no clock."""

from itertools import pairwise
from random import Random

import pytest
from gateload import most_in_a_window
from hypothesis import given
from hypothesis import strategies as st

from asyncmig._core.limiter import Limiter


def limiter(limit: int = 100, window: float = 60.0) -> Limiter:
    return Limiter(limit=limit, window=window, rng=Random(1))


def take(it: Limiter, now: float) -> float:
    """Take the next slot from `now` on, and return when."""
    at = it.next_at(now)
    assert at is not None
    assert it.next_at(at) == at
    it.take(at)
    return at


def answer(it: Limiter, now: float, count: int = 1, latency: float = 0.1) -> float:
    """Make `count` accepted requests, one after the other; return when the last was answered."""
    for _ in range(count):
        sent = take(it, now)
        now = sent + latency
        it.accepted(now, sent_at=sent)
    return now


def refuse(it: Limiter, now: float, **more: float) -> float:
    """Make a request that is refused; return when the hold ends."""
    sent = take(it, now)
    it.rejected(sent + 0.1, sent_at=sent, **more)
    return it.held_until


def probe(it: Limiter, *, accepted: bool) -> float:
    """Send the probe as soon as may be; return when its answer came."""
    sent = take(it, it.held_until)
    assert it.next_at(sent + 0.05) is None
    if accepted:
        it.accepted(sent + 0.1, sent_at=sent)
    else:
        it.rejected(sent + 0.1, sent_at=sent)
    return sent + 0.1


def busy_window(it: Limiter, now: float) -> float:
    """Use every slot, until a window has passed since `now`."""
    end = now + 60.2
    while (at := it.next_at(now)) is not None and at < end:
        now = answer(it, at)
    it.next_at(end)
    return end


# The window


def test_a_slot_is_taken_until_a_window_and_a_margin_after_its_answer() -> None:
    it = limiter(limit=1)
    sent = take(it, 0.0)
    assert it.next_at(100.0) is None
    it.accepted(5.0, sent_at=sent)
    assert it.next_at(6.0) == 65.05
    assert (it.used(65.0), it.used(65.05)) == (1, 0)


def test_a_lost_request_may_have_arrived_until_it_was_given_up() -> None:
    it = limiter(limit=1)
    it.lost(30.0, sent_at=take(it, 0.0))
    assert it.next_at(31.0) == 90.05


def test_what_was_not_sent_takes_no_slot() -> None:
    it = limiter(limit=1)
    it.unsent(0.0, sent_at=take(it, 0.0))
    assert it.next_at(0.0) == 0.02
    assert it.used(0.0) == 0


def test_slots_come_free_one_by_one() -> None:
    it = limiter(limit=2)
    answer(it, 0.0, count=2, latency=1.0)
    assert it.next_at(2.0) == 61.05
    take(it, 61.05)
    assert it.next_at(61.06) == 62.05


@pytest.mark.parametrize(("limit", "apart"), [(10, 0.02), (100, 0.02), (1000, 0.002)])
def test_sends_are_spread_over_a_thirtieth_of_the_window_at_most(limit: int, apart: float) -> None:
    it = limiter(limit)
    take(it, 0.0)
    assert it.next_at(0.0) == pytest.approx(apart)
    it.resize(2000)
    assert it.next_at(0.0) == pytest.approx(0.001)


def test_until_a_burst_was_accepted_only_half_of_that_may_be_unanswered() -> None:
    it = limiter()
    open_ = [take(it, 0.1 * n) for n in range(4)]
    assert it.next_at(1.0) is None
    it.accepted(1.0, sent_at=open_[0])
    now = answer(it, 1.0, count=20)
    for n in range(7):
        take(it, now + n)
    assert it.next_at(now + 8.0) is None
    it.lost(now + 8.0, sent_at=open_[1])
    assert it.next_at(now + 8.0) == now + 8.0


def test_after_a_burst_all_slots_may_be_unanswered() -> None:
    it = limiter()
    now = answer(it, 0.0, count=90) + 61.0
    for _ in range(100):
        now = take(it, now)
    assert it.next_at(now) is None


def test_the_first_refill_goes_slower() -> None:
    it = limiter(limit=3)
    now = answer(it, 0.0, count=3)
    assert it.next_at(now) is not None
    first = take(it, 70.0)
    assert it.next_at(70.0) == pytest.approx(first + 0.04)


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 30.0), st.booleans()), max_size=60),
    st.integers(1, 5),
)
def test_no_window_can_hold_more_arrivals_than_slots(
    calls: list[tuple[float, float, bool]], limit: int
) -> None:
    it, now = limiter(limit, window=10.0), 0.0
    spans: list[tuple[float, float]] = []
    open_: list[tuple[float, float, bool]] = []

    def land(until: float) -> float:
        for end, sent, lost in sorted(each for each in open_ if each[0] <= until):
            (it.lost if lost else it.accepted)(end, sent_at=sent)
            spans.append((sent, end))
            open_.remove((end, sent, lost))
        return until

    for pause, latency, lost in calls:
        now = land(now + pause)
        while (at := it.next_at(now)) is None or at > now:
            now = land(at if at is not None else min(open_)[0])
        it.take(now)
        open_.append((now + latency, now, lost))
    land(float("inf"))
    assert most_in_a_window(spans, 10.0) <= limit


# Holds and probes


def test_a_429_holds_everybody_for_a_second_or_two_and_then_one_probe_goes() -> None:
    it = limiter()
    until = refuse(it, 10.0)
    assert 11.1 <= until <= 12.1
    assert it.next_at(10.2) == until
    take(it, until)
    assert it.next_at(until + 5.0) is None


@pytest.mark.parametrize(("asked", "seconds"), [(20.0, 20.0), (999.0, 60.0), (-5.0, None), (0.0, None)])
def test_retry_after_is_obeyed_for_a_minute_at_most(asked: float, seconds: float | None) -> None:
    held = refuse(limiter(), 10.0, retry_after=asked) - 10.1
    assert held == pytest.approx(seconds) if seconds else 1.0 <= held <= 2.0


def test_refusals_of_what_was_sent_before_are_old_news_but_for_what_they_ask() -> None:
    it = limiter()
    first, second, third = take(it, 0.0), take(it, 0.1), take(it, 0.2)
    it.rejected(0.3, sent_at=first)
    until = it.held_until
    it.rejected(0.4, sent_at=second)
    assert it.held_until == until
    it.rejected(0.5, sent_at=third, retry_after=30.0)
    assert it.held_until == 30.5
    assert it.refused == 3


def test_a_refusal_from_before_the_last_cut_changes_nothing_later() -> None:
    it = limiter()
    late = take(it, 0.0)
    refuse(it, 0.1)
    now = probe(it, accepted=True)
    known = (it.slots, it.burst)
    it.rejected(now + 1.0, sent_at=late)
    assert (it.slots, it.burst) == known
    assert it.next_at(now + 1.0) == now + 1.0


def test_probes_that_are_refused_come_further_and_further_apart_up_to_eight_seconds() -> None:
    it = limiter()
    refuse(it, 0.0)
    waits = []
    for _ in range(1100):
        at = probe(it, accepted=False)
        waits.append(it.held_until - at)
    assert 2.0 <= waits[0] <= 4.0
    assert 4.0 <= waits[1] <= 8.0
    assert waits[2:] == pytest.approx([8.0] * 1098)


@pytest.mark.parametrize("fate", ["lost", "unsent"])
def test_a_probe_that_told_nothing_is_followed_by_another(fate: str) -> None:
    it = limiter()
    sent = take(it, refuse(it, 0.0))
    getattr(it, fate)(sent + 1.0, sent_at=sent)
    again = it.next_at(sent + 1.0)
    assert again is not None
    assert again == sent + 1.0 if fate == "unsent" else 1.0 <= again - sent - 1.0 <= 2.0
    take(it, again)
    assert it.next_at(again + 1.0) is None


# Learning


def test_a_probe_that_is_accepted_at_once_tells_of_a_bucket_and_its_size() -> None:
    it = limiter()
    now = answer(it, 0.0, count=12, latency=0.06)
    refuse(it, now)
    probe(it, accepted=True)
    assert it.slots == 100
    assert it.burst in range(8, 12)


@pytest.mark.parametrize("latency", [0.02, 0.3])
@pytest.mark.parametrize("count", [9, 40])
def test_the_bucket_is_what_was_accepted_above_the_refill_less_one(count: int, latency: float) -> None:
    it, level, before = limiter(), 0.0, -1e9
    answer(it, 0.0, count=20)
    now = 500.0
    for _ in range(count):
        now = answer(it, now, latency=latency)
        level, before = max(0.0, level - (now - before) * 100 / 60) + 1, now
    refuse(it, now)
    end = probe(it, accepted=True)
    assert it.burst == max(1, int(max(0.0, level - (end - before) * 100 / 60) + 1) - 1)


def test_there_is_always_one_slot_and_a_burst_of_one() -> None:
    it, now = limiter(limit=1), 0.0
    for refused_probes in (0, 0, 3, 3, 0):
        now = max(now, refuse(it, now + 100.0))
        for _ in range(refused_probes):
            probe(it, accepted=False)
        now = probe(it, accepted=True)
        assert (it.slots, it.burst) == (1, 1)


def test_a_second_time_the_bucket_is_halved() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=21, latency=0.02))
    burst, now = it.burst, probe(it, accepted=True)
    for _ in range(3):
        burst = it.burst
        refuse(it, answer(it, now, count=5))
        now = probe(it, accepted=True)
        assert it.burst == burst // 2


def test_a_probe_that_is_refused_tells_how_large_the_window_is() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=80, latency=0.02))
    for _ in range(5):
        probe(it, accepted=False)
    probe(it, accepted=True)
    assert (it.slots, it.burst) == (80, 100)


def test_much_less_than_expected_tells_of_somebody_else_and_is_won_back_half_by_half() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=30))
    probe(it, accepted=False)
    now = probe(it, accepted=True)
    seen = [it.slots]
    for _ in range(7):
        now = busy_window(it, now)
        seen.append(it.slots)
    assert seen == [50, 75, 88, 94, 97, 99, 100, 100]


def test_nothing_is_won_back_while_the_budget_is_not_used() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=30))
    probe(it, accepted=False)
    now = probe(it, accepted=True)
    for n in range(5):
        answer(it, now + 100.0 * n)
    assert it.slots == 50


@pytest.mark.parametrize(
    ("accepted", "slots", "later"), [(40, 50, 75), (49, 50, 75), (50, 50, 51), (60, 60, 61)]
)
def test_less_than_half_is_somebody_else_and_more_is_the_window(
    accepted: int, slots: int, later: int
) -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=accepted, latency=0.02))
    probe(it, accepted=False)
    now = probe(it, accepted=True)
    assert it.slots == slots
    busy_window(it, now)
    assert it.slots == later


def test_what_was_accepted_in_the_window_before_the_429_counts_however_long_the_probes_take() -> None:
    it = limiter()
    now = answer(it, 0.0, count=70, latency=0.02)
    refuse(it, now + 50.0)
    for _ in range(5):
        probe(it, accepted=False)
    assert probe(it, accepted=True) > 70.0
    assert it.slots == 70


def test_what_was_accepted_before_that_window_does_not_count() -> None:
    it = limiter()
    answer(it, 0.0, count=20, latency=0.02)
    refuse(it, answer(it, 65.0, count=60, latency=0.02))
    probe(it, accepted=False)
    probe(it, accepted=True)
    assert it.slots == 60


def test_a_neighbour_that_stays_is_met_less_and_less_often() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=30))
    probe(it, accepted=False)
    now = busy_window(it, probe(it, accepted=True))
    assert it.slots == 75
    now = max(now, refuse(it, now))
    assert it.slots == 50
    gaps = []
    for _ in range(3):
        windows = 0
        while it.slots == 50:
            now, windows = busy_window(it, now), windows + 1
        assert it.slots == 51
        gaps.append(windows)
        now = max(now, refuse(it, now))
    assert gaps == [2, 4, 8]


def _learnt_80() -> tuple[Limiter, float]:
    it = limiter()
    refuse(it, answer(it, 0.0, count=80, latency=0.02))
    probe(it, accepted=False)
    return it, probe(it, accepted=True)


def test_a_learnt_window_is_tried_higher_in_growing_steps_up_to_the_limit() -> None:
    it, now = _learnt_80()
    for _ in range(3):  # unused windows tell nothing
        now = answer(it, now + 61.0)
    seen = []
    for _ in range(8):
        now = busy_window(it, now)
        seen.append(it.slots)
    assert seen == [81, 83, 87, 95, 100, 100, 100, 100]


def test_a_trial_that_fails_is_undone_without_a_probe_and_made_less_often() -> None:
    it, now = _learnt_80()
    gaps = []
    for _ in range(6):
        windows = 0
        while it.slots == 80:
            now, windows = busy_window(it, now), windows + 1
        gaps.append(windows)
        now = max(now, refuse(it, now))
        assert it.slots == 80
        assert it.next_at(now) is not None
        take_two = take(it, now), take(it, now + 1.0)  # nobody waits for a probe
        for sent in take_two:
            it.accepted(now + 2.0, sent_at=sent)
    assert gaps == [1, 2, 4, 8, 16, 16]


def test_a_bucket_recovers_too() -> None:
    it = limiter()
    refuse(it, answer(it, 0.0, count=12, latency=0.06))
    now = probe(it, accepted=True)
    seen = [it.burst]
    for _ in range(25):
        now = busy_window(it, now)
        seen.append(it.burst)
    assert seen == sorted(seen)
    assert seen[1] == seen[0] + 1
    assert seen[-1] == 100
    assert all(isinstance(burst, int) for burst in seen)
    assert all(1 <= late - early <= 12 for early, late in pairwise(seen) if late < 100)


def test_another_limit_forgets_what_was_learnt() -> None:
    it, now = _learnt_80()
    it.resize(200)
    assert (it.slots, it.burst) == (200, 200)
    now = busy_window(it, now)
    assert it.slots == 200
    now = max(now, refuse(it, now))
    take(it, now)
    assert it.next_at(now + 1.0) is None  # news to be probed, no trial to be undone


# Between processes


def test_the_ages_of_one_process_are_the_slots_of_the_next() -> None:
    it = limiter(limit=5)
    answer(it, 0.0, count=2, latency=10.0)
    take(it, 30.0)
    ages = it.recent(40.0)
    assert ages == pytest.approx([30.0, 20.0, 0.0])
    heir = limiter(limit=3)
    heir.resume(ages, 1000.0)
    assert heir.next_at(1000.0) == pytest.approx(1030.05)
    assert heir.used(1000.0) == 3
    assert heir.recent(1000.0) == pytest.approx([30.0, 20.0, 0.0])


def test_ages_that_cannot_be_are_clamped() -> None:
    heir = limiter(limit=2)
    heir.resume([-50.0, 1e9], 1000.0)
    assert heir.recent(1000.0) == pytest.approx([60.0, 0.0])


# How long it will take


def test_the_wait_of_a_place_in_line() -> None:
    it = limiter(limit=2)
    assert it.wait_for(0, 0.0) == 0.0
    answer(it, 0.0, count=2, latency=1.0)
    assert [it.wait_for(n, 10.0) for n in range(4)] == pytest.approx([51.05, 52.05, 111.05, 112.05])
    assert it.wait_for(0, 70.0) == 0.0
    until = refuse(it, 62.5)
    assert it.wait_for(0, 62.6) == until - 62.6
    assert it.wait_for(0, 200.0) == 0.0


def test_the_wait_where_answers_are_still_out() -> None:
    it = limiter(limit=3)
    assert it.wait_for(2, 0.0) == pytest.approx(0.04)
    it.accepted(1.0, sent_at=take(it, 0.0))
    take(it, 1.0)
    take(it, 2.0)
    assert [it.wait_for(n, 10.0) for n in range(3)] == pytest.approx([51.05] * 3)
    alone = limiter(limit=1)
    take(alone, 0.0)
    assert alone.wait_for(0, 10.0) == 60.0
