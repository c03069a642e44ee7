"""The learnt durations of runs: their properties, and their accuracy for known distributions."""

import math
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig._core.hazard import Hazard

ages = st.floats(0.0, 9000.0)
observations = st.lists(st.tuples(ages, st.floats(0.0, 3000.0), st.booleans()), max_size=40)


def learnt(observed: list[tuple[float, float, bool]]) -> Hazard:
    hazard = Hazard()
    for low, seconds, has_ended in observed:
        (hazard.ended if has_ended else hazard.lived)(low, low + seconds)
    return hazard


@settings(deadline=None)
@given(observations, ages, st.lists(st.floats(0.0, 5000.0), min_size=2, max_size=8).map(sorted))
def test_waiting_grows_at_most_as_fast_as_the_unpolled_time(
    observed: list[tuple[float, float, bool]], low: float, unpolled: list[float]
) -> None:
    hazard = learnt(observed)
    waited = [hazard.waiting(low, low + seconds) for seconds in unpolled]
    slack = 1e-6 * (low + unpolled[-1] + 1)
    for (sooner, less), (later, more) in pairwise(zip(unpolled, waited, strict=True)):
        assert -slack <= more - less <= later - sooner + slack
    assert -slack <= waited[0] <= unpolled[0] + slack


@settings(deadline=None)
@given(observations, ages)
def test_waiting_has_no_bound(observed: list[tuple[float, float, bool]], low: float) -> None:
    hazard = learnt(observed)
    assert hazard.waiting(low, low + 1e9) > 1e6  # so each run is polled at some time


def follow(hazard: Hazard, draw: Callable[[Random], float], runs: int, *, seed: int = 1) -> None:
    """Observe runs with durations from `draw`. Read each run every U(20, 200) s until it has ended."""
    rng = Random(seed)
    for _ in range(runs):
        end, seen = draw(rng), 0.0
        while (age := seen + rng.uniform(20.0, 200.0)) < end:
            hazard.lived(seen, age)
            seen = age
        hazard.ended(seen, age)


@pytest.mark.parametrize("mean", [300.0, 1500.0])
def test_a_constant_hazard_is_learnt(mean: float) -> None:
    hazard, seconds = Hazard(), mean / 2
    truth = seconds + mean * math.expm1(-seconds / mean)
    errors = []
    for runs in (5, 50, 1500):
        follow(hazard, lambda rng: rng.expovariate(1 / mean), runs)
        waited = [hazard.waiting(mean * part, mean * part + seconds) for part in (0.1, 0.5, 1.0, 1.5)]
        errors.append(max(abs(each / truth - 1) for each in waited))
    assert errors[2] < 0.3
    assert errors[2] < errors[1] < errors[0]


def test_the_rate_is_high_only_at_ages_at_which_runs_end() -> None:
    hazard = Hazard()
    before = hazard.rate(450.0)
    follow(hazard, lambda rng: rng.uniform(600.0, 900.0), 1000)
    assert hazard.rate(450.0) < before / 20
    assert hazard.waiting(600.0, 900.0) == pytest.approx(150.0, rel=0.1)
    assert hazard.rate(850.0) > 1.5 * hazard.rate(650.0)


def test_observations_change_the_estimate() -> None:
    hazard = Hazard()
    before, edition = hazard.waiting(450.0, 550.0), hazard.edition
    follow(hazard, lambda rng: rng.uniform(600.0, 900.0), 200)
    assert hazard.waiting(450.0, 550.0) < before / 5
    assert hazard.edition > edition
