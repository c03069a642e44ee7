"""The counting methods of the simulated rate limits."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket


def allowed(server: RateLimit, times: Iterable[float]) -> list[bool]:
    return [server.allow(at) for at in times]


def test_a_fixed_window_resets_at_its_end() -> None:
    assert allowed(FixedWindow(2, 10.0), [0, 1, 2, 9.9, 10, 11, 12]) == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_fixed_window_begins_at_its_phase() -> None:
    assert allowed(FixedWindow(1, 10.0, phase=3.0), [0, 2.9, 3.0, 12.9, 13.0]) == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_a_sliding_log_removes_each_call_after_one_window() -> None:
    assert allowed(SlidingLog(2, 10.0), [0, 9, 9.5, 10, 18.9, 19]) == [True, True, False, True, False, True]


def test_a_sliding_counter_counts_a_weighted_part_of_the_previous_window() -> None:
    server = SlidingCounter(4, 10.0)
    assert allowed(server, [0, 1, 2, 3, 4]) == [True] * 4 + [False]
    assert allowed(server, [10.0, 12.4, 12.6, 15.1, 15.2]) == [False, True, True, True, False]
    assert allowed(server, [40.0] * 5) == [True] * 4 + [False]


def test_a_bucket_refills_to_its_size_and_not_above() -> None:
    server = TokenBucket(60, 60.0, burst=3)
    assert allowed(server, [0.0] * 4) == [True] * 3 + [False]
    assert allowed(server, [0.5, 1.0, 1.5]) == [False, True, False]
    assert allowed(server, [100.0] * 4) == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("patient", "strict"),
    [
        (FixedWindow(1, 10.0), FixedWindow(1, 10.0, count_rejects=True)),
        (SlidingLog(1, 10.0), SlidingLog(1, 10.0, count_rejects=True)),
        (SlidingCounter(1, 10.0), SlidingCounter(1, 10.0, count_rejects=True)),
        (TokenBucket(6, 60.0, burst=1), TokenBucket(6, 60.0, burst=1, count_rejects=True)),
    ],
    ids=["fixed", "log", "counter", "bucket"],
)
def test_frequent_calls_stay_refused_if_refused_calls_count(patient: RateLimit, strict: RateLimit) -> None:
    calls = [n * 0.7 for n in range(200)]
    assert sum(allowed(strict, calls)) <= sum(allowed(patient, calls))
    if not isinstance(strict, FixedWindow):
        assert not any(allowed(strict, [140.0 + n * 0.7 for n in range(200)]))


@given(st.lists(st.floats(0.0, 100.0)).map(sorted), st.integers(1, 5))
def test_no_window_of_a_log_contains_more_calls_than_the_limit(calls: list[float], limit: int) -> None:
    server = SlidingLog(limit, 10.0)
    passed = [at for at in calls if server.allow(at)]
    assert all(late - early >= 10.0 - 1e-9 for early, late in zip(passed, passed[limit:], strict=False))
