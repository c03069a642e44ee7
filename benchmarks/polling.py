"""The delay until the ends of runs are noticed with 100 polls a minute: asyncmig, other clients, and lower bounds.

    python benchmarks/polling.py [--sizes N ...] [--cost]

This is a discrete-event simulation of the poll schedule alone, without a loop or a network, and with immediate
answers. The server counts polls in a sliding window and answers 429 above 100 polls a minute. A 429 contains no
information, and a client with a loop for each run polls that run again after its usual pause. Durations are cut at
two hours. Runs start all at once, or by a Poisson process with n runs in progress on average. Of the latter, only
runs after a warm-up are measured.

Peers have their default settings, but no total time-out, because it would abandon runs in progress. google-api-core
polls after U(0, d), where d grows from 1 s to 20 s by a factor of 1.5; azure-core polls every 30 s; the waiters of
boto3 poll every 15 s.

`polling_bound.py` derives two bounds: that of all policies, and that of policies with the rules of asyncmig, which
are the floor, and fairness if the limit allows it. The goals compare asyncmig, with and without the fairness rule,
with the first bound. With `two classes`, the fairness rule alone costs a tenth of the bound, because it requires
polls in the half hour in which no run can end. The goal is reached without the rule and missed with it.

A client is stopped after 300,000 429s ("never ends"), because its polls only cause more refusals. Peers are measured
with fewer fleets than asyncmig.

`--sizes`: only fleets of these sizes. `--cost`: only the cost of the schedule itself. Needs the extra `[bench]`.
"""

import argparse
import heapq
import itertools
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pool
from random import Random

from polling_bound import DISTRIBUTIONS, Distribution, Known, Rules, bound_at_once, bound_in_the_long_run
from polling_cost import cost

from asyncmig._core.age_buckets import PolledRun
from asyncmig._core.lifecycle import Phase
from asyncmig._core.polls import FAIR, PollSchedule
from asyncmig.companies.routes import IMPORT

LIMIT, WINDOW = 100, 60.0
PACE = 60.05 / LIMIT
"""Seconds between two polls: the pace of the gate if answers take no time."""
GOALS = {"log-normal": 1.05, "exponential": 1.05, "two classes": 1.25, "±10 %": 1.5}
FLEETS = {10: (3, 1), 100: (2, 1), 300: (6, 1), 1000: (2, 1)}
"""The number of measured fleets of each size: for asyncmig, and for other clients."""
STARTS = ("at once", "Poisson")
MORE_AT_ONCE = 5
"""The factor for the number of fleets whose runs start at once, because these end early."""
HOPELESS = 300_000
"""The number of 429s after which a client is stopped."""
TITLES = ("mean", "/ bound", "/ ruled", "p50", "p95", "max", "polls/run", "429s")


@dataclass
class Fleet:
    """The start and end times of runs, and the range of the measured runs."""

    starts: list[float]
    ends: list[float]
    measured: range


@dataclass
class Outcome:
    """The results of one policy for one or several fleets."""

    means: list[float] = field(default_factory=list)
    """The mean delay of each fleet."""
    delays: list[float] = field(default_factory=list)
    polls: int = 0
    refused: int = 0
    longest_unpolled: float = 0.0
    used: float = 0.0
    """The share of the limit that was used while runs waited for a poll."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.delays)

    @property
    def error(self) -> float:
        """The standard error of the mean, over fleets."""
        return statistics.stdev(self.means) / math.sqrt(len(self.means)) if len(self.means) > 1 else 0.0


def at_once(distribution: Distribution, n: int, seed: int) -> Fleet:
    rng = Random(seed)
    return Fleet([0.0] * n, [distribution.draw(rng) for _ in range(n)], range(n))


def poisson(distribution: Distribution, n: int, seed: int) -> Fleet:
    """Return a fleet with `n` runs in progress on average: `n` runs start in each mean duration.

    The runs of the first four mean durations are a warm-up. Those of the next four are measured.
    """
    rng, now, fleet = Random(seed), 0.0, Fleet([], [], range(4 * n, 8 * n))
    for _ in range(10 * n):
        now += rng.expovariate(n / distribution.mean)
        fleet.starts.append(now)
        fleet.ends.append(now + distribution.draw(rng))
    return fleet


# asyncmig, and other policies that choose one run at a time


def scheduled(fleet: Fleet, schedule: PollSchedule[int], *, second: bool = False) -> Outcome:
    """Poll the fleet with a schedule at its pace. With `second`, also poll through a second channel."""
    outcome, runs = (
        Outcome(),
        [PolledRun(n, at, lifecycle=IMPORT, started=at) for n, at in enumerate(fleet.starts)],
    )
    last, left, now = list(fleet.starts), len(fleet.measured), 0.0
    arrivals = deque(runs)
    free = [(0.0, False), (0.0, True)] if second else [(0.0, False)]
    in_line = polled_in_line = 0.0
    delays: dict[int, float] = {}
    while left:
        at, lookup = heapq.heappop(free)
        now = max(now, at)
        while arrivals and arrivals[0].started <= now:
            schedule.add(arrivals.popleft(), now)
        run = schedule.next(now, pace=PACE, lookup=lookup)
        if run is None:
            due = schedule.next_at(now)
            soon = [
                each
                for each in (due, arrivals[0].started if arrivals else None)
                if each is not None and each > now
            ]
            heapq.heappush(free, (min(soon, default=now + PACE) if not lookup else now + PACE, lookup))
            continue
        heapq.heappush(free, (now + PACE, lookup))
        outcome.polls += run.run in fleet.measured
        if schedule.ready:
            in_line += PACE
            polled_in_line += 1
        outcome.longest_unpolled = max(outcome.longest_unpolled, now - last[run.run])
        last[run.run] = now
        ended = fleet.ends[run.run] <= now
        if ended and lookup:
            schedule.presume_ended(run, now)
        else:
            schedule.observed(run, now, Phase.TERMINAL if ended else Phase.ACTIVE, sent=now, lookup=lookup)
            if ended:
                delays[run.run] = now - fleet.ends[run.run]
                left -= run.run in fleet.measured
        schedule.reschedule(run, now)
    outcome.delays = [delays[run] for run in fleet.measured]
    outcome.used = polled_in_line / in_line * WINDOW / LIMIT if in_line else 0.0
    return outcome


def round_robin(fleet: Fleet) -> Outcome:
    """Poll the run with the earliest last poll, at the same pace, and at least 2 s after that poll."""
    outcome, order, now, left = Outcome(), deque[tuple[float, int]](), 0.0, len(fleet.measured)
    arrivals = deque((at, run) for run, at in enumerate(fleet.starts))
    delays: dict[int, float] = {}
    while left:
        while arrivals and (not order or arrivals[0][0] <= now):
            order.append(arrivals.popleft())
        polled_at, run = order.popleft()
        now = max(now, polled_at + 2.0)
        outcome.polls += run in fleet.measured
        outcome.longest_unpolled = max(outcome.longest_unpolled, now - polled_at)
        if fleet.ends[run] <= now:
            delays[run] = now - fleet.ends[run]
            left -= run in fleet.measured
        else:
            order.append((now, run))
        now += PACE
    outcome.delays = [delays[run] for run in fleet.measured]
    return outcome


# Other clients: a loop for each run


def looped(fleet: Fleet, pauses: Callable[[Random], Iterator[float]], *, limiter: bool = False) -> Outcome:
    """Poll each run in its own loop with these pauses. With `limiter`, all loops share one aiolimiter."""
    outcome, rng = Outcome(), Random(0)
    rhythm = [pauses(rng) for _ in fleet.starts]
    last = list(fleet.starts)
    events = [(at + next(rhythm[run]), run) for run, at in enumerate(fleet.starts)]
    heapq.heapify(events)
    accepted: deque[float] = deque()
    empty_at, delays, left = 0.0, dict[int, float](), len(fleet.measured)
    while left and outcome.refused < HOPELESS:
        now, run = heapq.heappop(events)
        if limiter:  # AsyncLimiter(100, 60): a bucket of 100 that leaks 100 a minute, first come first served
            empty_at = max(empty_at, now) + WINDOW / LIMIT
            now = max(now, empty_at - WINDOW)
        while accepted and accepted[0] <= now - WINDOW:
            accepted.popleft()
        outcome.polls += run in fleet.measured
        if len(accepted) >= LIMIT:
            outcome.refused += 1
        else:
            accepted.append(now)
            outcome.longest_unpolled = max(outcome.longest_unpolled, now - last[run])
            last[run] = now
            if fleet.ends[run] <= now:
                delays[run] = now - fleet.ends[run]
                left -= run in fleet.measured
                continue
        heapq.heappush(events, (now + next(rhythm[run]), run))
    outcome.delays = [delays.get(run, math.inf) for run in fleet.measured]
    return outcome


def every(seconds: float, _: Random) -> Iterator[float]:
    return itertools.repeat(seconds)


def doubling(_: Random) -> Iterator[float]:
    return itertools.chain((2.0, 4.0, 8.0, 16.0), itertools.repeat(30.0))


def google(rng: Random) -> Iterator[float]:
    longest = 1.0
    while True:
        yield rng.uniform(0.0, longest)
        longest = min(longest * 1.5, 20.0)


def policies(distribution: Distribution) -> dict[str, Callable[[Fleet], Outcome]]:
    return {
        "ours (learning)": lambda fleet: scheduled(fleet, PollSchedule()),
        "ours, second channel": lambda fleet: scheduled(fleet, PollSchedule(), second=True),
        "ours, no fairness rule": lambda fleet: scheduled(fleet, PollSchedule(fair=math.inf)),
        "ours, distribution known": lambda fleet: scheduled(
            fleet, PollSchedule(durations=partial(Known, distribution))
        ),
        "round robin": round_robin,
        "sleep(2)": lambda fleet: looped(fleet, partial(every, 2.0)),
        "sleep(2), aiolimiter": lambda fleet: looped(fleet, partial(every, 2.0), limiter=True),
        "exponential 2 to 30 s": lambda fleet: looped(fleet, doubling),
        "google-api-core": lambda fleet: looped(fleet, google),
        "azure-core": lambda fleet: looped(fleet, partial(every, 30.0)),
        "boto3": lambda fleet: looped(fleet, partial(every, 15.0)),
    }


# Tables


def measure(policy: Callable[[Fleet], Outcome], fleets: list[Fleet]) -> Outcome:
    whole = Outcome()
    for fleet in fleets:
        each = policy(fleet)
        whole.means.append(each.mean)
        whole.delays += each.delays
        whole.polls += each.polls
        whole.refused += each.refused
        whole.longest_unpolled = max(whole.longest_unpolled, each.longest_unpolled)
        whole.used += each.used / len(fleets)
    return whole


@dataclass
class Table:
    """The results for one kind of fleet: text, and which goals were reached."""

    text: str
    goals: list[tuple[str, bool]]


def table(n: int, starts: str, number: int) -> Table:
    """Measure all policies with fleets of `n` runs whose durations have the distribution with this number."""
    distribution, (many, few) = DISTRIBUTIONS[number], FLEETS[n]
    make, bounded, more = poisson, bound_in_the_long_run, 1
    if starts == "at once":
        make, bounded, more = at_once, bound_at_once, MORE_AT_ONCE
    fleets = [make(distribution, n, seed) for seed in range(more * many)]
    rules = Rules(IMPORT.floor, FAIR + 30.0 if n * PACE <= FAIR else math.inf)
    bound, ruled = (bounded(distribution, n, WINDOW / LIMIT, rules=each) for each in (Rules(), rules))
    lines = [
        f"\n{distribution.name}, n = {n}, starts {starts}: bound {bound:.1f} s; with our rules {ruled:.1f} s",
        " " * 28 + "".join(f"{title:>11}" for title in TITLES),
    ]
    outcomes: dict[str, Outcome] = {}
    for name, policy in policies(distribution).items():
        done = measure(policy, fleets if name.startswith("ours") else fleets[: few * more])
        outcomes[name] = done
        if math.inf in done.delays:
            lines.append(f"  {name:26}{'never ends':>11}")
            continue
        cuts = statistics.quantiles(done.delays, n=20, method="inclusive")
        lines.append(
            f"  {name:26}{done.mean:11.1f}{done.mean / bound:11.2f}{done.mean / ruled:11.2f}{cuts[9]:11.1f}"
            f"{cuts[18]:11.1f}{max(done.delays):11.1f}{done.polls / len(done.delays):11.1f}"
            f"{done.refused // len(done.means):11}"
        )
    reached = goals(distribution, starts, bound, outcomes) if n == 300 else []
    return Table("\n".join(lines), reached)


def goals(
    distribution: Distribution, starts: str, bound: float, outcomes: dict[str, Outcome]
) -> list[tuple[str, bool]]:
    where, goal = f"n = 300, {starts}, {distribution.name}", GOALS[distribution.name]
    ours, second = outcomes["ours (learning)"], outcomes["ours, second channel"]
    free = outcomes["ours, no fairness rule"]
    return [
        *(
            (
                f"{where}{words}: {each.mean / bound:.2f} (+- {each.error / bound:.2f}) x bound, at most {goal}",
                each.mean / bound <= goal,
            )
            for words, each in (("", ours), (", no fairness rule", free))
        ),
        (f"{where}: second channel {second.mean / bound:.2f} x the bound of one", second.mean < bound),
        (f"{where}: {ours.used:.1%} of the limit used while runs wait, at least 96 %", ours.used >= 0.96),
        (f"{where}: {ours.refused} 429s", ours.refused == 0),
    ]


def fairness(n: int, starts: str, number: int) -> str:
    """Return a line about the cost of the fairness rule.

    The rule: each run is polled every quarter of an hour, if the limit allows it.
    """
    distribution = DISTRIBUTIONS[number]
    fleet = (at_once if starts == "at once" else poisson)(distribution, n, 1)
    fair = scheduled(fleet, PollSchedule())
    free = scheduled(fleet, PollSchedule(fair=float("inf")))
    return (
        f"  n = {n:4}, {starts:8} {distribution.name:12}"
        f" {fair.longest_unpolled:6.0f} s, mean delay {fair.mean:6.1f} s;"
        f" without {free.longest_unpolled:6.0f} s, {free.mean:6.1f} s: {fair.mean / free.mean - 1:+.1%}"
    )


def show(sizes: list[int]) -> list[tuple[str, bool]]:
    """Print all tables. Return the goals."""
    each = range(len(DISTRIBUTIONS))
    checks: list[tuple[str, bool]] = []
    with Pool(os.cpu_count()) as pool:
        tables = [pool.apply_async(table, kind) for kind in itertools.product(sizes, STARTS, each)]
        fair = [
            pool.apply_async(fairness, kind)
            for kind in itertools.product([n for n in sizes if n >= 300], STARTS, each)
        ]
        for waiting in tables:
            done = waiting.get()
            print(done.text, flush=True)
            checks += done.goals
        print(f"\nfairness: the longest that a run went unpolled; with the rule ({FAIR:.0f} s), and without")
        for line in fair:
            print(line.get(), flush=True)
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description="How late ends of runs are noticed.")
    parser.add_argument("--sizes", type=int, nargs="+", choices=FLEETS, default=list(FLEETS), metavar="N")
    parser.add_argument("--cost", action="store_true", help="only what the schedule costs")
    options = parser.parse_args()
    checks = [] if options.cost else show(options.sizes)
    checks += cost()
    print("\ngoals")
    for text, reached in checks:
        print(f"  {'reached' if reached else 'MISSED '}  {text}")


if __name__ == "__main__":
    main()
