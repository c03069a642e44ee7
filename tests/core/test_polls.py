"""The poll schedule as a function of the time: it chooses the run that is polled next."""

from collections import defaultdict
from itertools import pairwise
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig._core.age_buckets import PolledRun
from asyncmig._core.hazard import Hazard, bucket_of
from asyncmig._core.lifecycle import Phase
from asyncmig._core.polls import FAIR, PollSchedule
from asyncmig.companies.routes import IMPORT

PACE = 0.6
RunT = TypeVar("RunT")


class EndAt:
    """Known durations: all runs end at the same age."""

    edition = 0

    def __init__(self, age: float) -> None:
        self.age = age

    def waiting(self, low: float, high: float) -> float:
        return max(0.0, high - max(low, self.age))

    def lived(self, low: float, high: float) -> None: ...

    def ended(self, low: float, high: float) -> None: ...


def seen(run: RunT, at: float, *, started: float) -> PolledRun[RunT]:
    """Return a run that started at `started` and was last read as running at `at`."""
    made = PolledRun(run, max(at, started), lifecycle=IMPORT, started=started)
    made.last_seen = made.answered_at
    return made


def poll(schedule: PollSchedule[int], now: float, *, pace: float = PACE) -> int | None:
    """Poll the run that is due, and read it as running."""
    run = schedule.next(now, pace=pace)
    if run is None:
        return None
    schedule.observed(run, now, Phase.ACTIVE, sent=now)
    schedule.reschedule(run, now)
    return run.run


def gaps(schedule: PollSchedule[int], runs: int, *, pace: float, seconds: float) -> list[float]:
    """Poll runs that never end. Return the times between polls of a run, and from its last poll to the end."""
    polled = {run: [0.0] for run in range(runs)}
    for run in polled:
        schedule.add(seen(run, 0.0, started=-4000.0 * run / runs), 0.0)
    now = 0.0
    while now < seconds:
        now += pace
        if (run := poll(schedule, now, pace=pace)) is not None:
            polled[run].append(now)
    return [later - earlier for times in polled.values() for earlier, later in pairwise([*times, now])]


ACTIONS = ["next"] * 6 + ["answer"] * 5 + ["prioritise", "resumed", "remove", "add"]
actions = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=120)


@settings(deadline=None)
@given(actions, st.randoms(use_true_random=False))
def test_no_run_is_polled_before_its_floor_or_twice_at_once(
    steps: list[tuple[str, int]], rng: Random
) -> None:
    schedule, now = PollSchedule[int](), 1000.0
    runs = [seen(n, now, started=now - 700.0 * n) for n in range(6)]
    answered, in_flight = dict.fromkeys(range(6), now), list[tuple[PolledRun[int], float]]()
    parked_for = defaultdict[int, float](float)
    for run in runs:
        schedule.add(run, now)
    for action, number in steps:
        now += rng.choice((0.0, 0.6, 3.0, 40.0))
        run = runs[number]
        if action == "next" and (chosen := schedule.next(now, pace=PACE)) is not None:
            assert chosen.run not in [out.run for out, _ in in_flight]
            since = answered[chosen.run]
            age = since - (1000.0 - 700.0 * chosen.run) - parked_for[chosen.run]
            assert now >= since + IMPORT.floor(age) - 1e-6
            in_flight.append((chosen, now))
        elif action == "answer" and in_flight:
            chosen, sent = in_flight.pop(0)
            outcome = rng.choice((Phase.ACTIVE, Phase.ACTIVE, Phase.PARKED, None))
            if outcome is None:
                schedule.rejected(chosen, now)
            else:
                if chosen.parked:
                    # The test does not follow the age of a parked run: the lowest floor applies.
                    parked_for[chosen.run] = float("inf")
                schedule.observed(chosen, now, outcome, sent=sent)
            answered[chosen.run] = now
            schedule.reschedule(chosen, now)
        elif action == "remove":
            schedule.remove(run)
        elif action == "add":
            schedule.add(run, now)
        elif action == "prioritise":
            schedule.prioritise(run, now)
        elif action == "resumed":
            schedule.resumed(run, now)


def test_a_run_with_an_announced_end_is_polled_first_for_a_limited_time() -> None:
    schedule, done = PollSchedule[int](), PolledRun(99, 0.0, lifecycle=IMPORT, started=0.0)
    for number in range(20):
        schedule.add(seen(number, -50.0, started=-100.0), 0.0)
    schedule.add(done, 0.0)
    schedule.prioritise(done, 0.0, until=30.0)
    assert poll(schedule, 2.0) == 99  # the read shows it running: it is older than the announcement
    assert poll(schedule, 3.0) != 99  # below its floor
    assert poll(schedule, 4.0) == 99
    assert poll(schedule, 31.0) == 99
    assert poll(schedule, 33.0) != 99  # the priority has ended


@pytest.mark.parametrize("runs", [1, 40, 200])
def test_each_run_is_polled_every_quarter_of_an_hour_if_the_pace_allows_it(runs: int) -> None:
    pace = 800.0 / runs if runs > 1 else PACE
    assert (
        max(gaps(PollSchedule(durations=lambda: EndAt(1e9)), runs, pace=pace, seconds=5000.0)) <= FAIR + pace
    )


def test_each_run_is_polled_repeatedly_for_any_budget_and_any_learnt_durations() -> None:
    schedule = PollSchedule[int]()
    for _ in range(300):  # all runs ended at a low age: no later end is expected
        schedule.durations().ended(10.0, 20.0)
        schedule.durations().lived(2000.0, 3000.0)
    unpolled = gaps(schedule, 300, pace=5.0, seconds=20_000.0)
    assert FAIR < max(unpolled) < 5 * 300 * 5.0


def test_the_run_that_is_expected_to_have_ended_is_polled_first() -> None:
    schedule = PollSchedule[str]()
    for _ in range(100):
        schedule.durations().lived(0.0, 550.0)
        schedule.durations().ended(550.0, 700.0)
    for name, age in (("young", 100.0), ("ripe", 560.0), ("middling", 300.0)):
        schedule.add(seen(name, 0.0, started=-age), 0.0)
    chosen = schedule.next(60.0, pace=PACE)
    assert chosen is not None
    assert chosen.run == "ripe"


def test_the_new_head_of_a_bucket_is_evaluated_again() -> None:
    schedule: PollSchedule[str] = PollSchedule(durations=lambda: EndAt(1500.0), fair=1e9)
    ages = {
        "head": (985.0, 1500.0),
        "next": (1040.0, 1554.0),
        "ten late": (300.0, 1510.0),
        "five late": (200.0, 1505.0),
    }
    runs = {name: seen(name, last_seen - age, started=-age) for name, (last_seen, age) in ages.items()}
    for run in runs.values():
        schedule.add(run, 0.0)
    assert schedule.next(0.0, pace=PACE) is runs["ten late"]
    schedule.remove(runs["head"])
    assert schedule.next(0.0, pace=PACE) is runs["next"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_no_head_of_a_bucket_has_a_higher_value_than_the_chosen_run(seed: int) -> None:
    rng, hazard, now = Random(seed), Hazard(), 0.0
    schedule: PollSchedule[int] = PollSchedule(durations=lambda: hazard, fair=float("inf"))
    runs = [seen(n, -rng.uniform(0, 600), started=-rng.uniform(0, 3000)) for n in range(40)]
    for run in runs:
        schedule.add(run, 0.0)
    for _ in range(60):
        now += rng.choice((0.6, 0.6, 30.0))
        best = highest_value_of_heads(runs, hazard, now)
        run = schedule.next(now, pace=PACE)
        if run is None:
            assert best is None
            continue
        assert best is not None
        assert value(run, hazard, now) == pytest.approx(best)
        over = rng.random() < 0.2
        schedule.observed(run, now, Phase.TERMINAL if over else Phase.ACTIVE, sent=now)
        schedule.reschedule(run, now)


def value(run: PolledRun[int], hazard: Hazard, now: float) -> float:
    return hazard.waiting(run.last_seen - run.started, now - run.started)


def highest_value_of_heads(runs: list[PolledRun[int]], hazard: Hazard, now: float) -> float | None:
    """Return the highest value of a poll of a head. The head of a bucket is its run with the earliest last poll."""
    heads: dict[int, PolledRun[int]] = {}
    for run in runs:
        if run.is_polled and run.ready_at <= now:
            bucket = bucket_of(run.last_seen - run.started)
            heads[bucket] = min(heads.get(bucket, run), run, key=lambda each: each.last_seen)
    return max((value(run, hazard, now) for run in heads.values()), default=None)
