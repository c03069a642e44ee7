"""How late ends of runs are noticed under a limit of 100 polls a minute: ours, others, and what nobody can beat.

    python benchmarks/polling.py [--quick] [--cost]

A discrete-event simulation of the poll schedule alone: no loop, no network, answers come at once. The server counts
in a sliding window and answers 429 above 100 polls a minute; a 429 tells nothing, and the client goes on in its own
rhythm. Durations are cut at two hours. Runs start at once, or by a Poisson process with n of them alive on average
(measured are those of the middle, after a warm-up).

Peers, each with its own defaults and without its total time-out, which would abandon runs alive: google-api-core
polls after U(0, d), d from 1 s by 1.5 to 20 s; azure-core every 30 s; boto3's waiters every 15 s.
The bound is derived in `polling_bound.py`. `--quick`: n = 300 only. `--cost`: only what the schedule itself costs.
"""

import argparse
import asyncio
import heapq
import itertools
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

from polling_bound import DISTRIBUTIONS, Distribution, Known, bound_at_once, bound_in_the_long_run

from asyncmig._core.lifecycle import Lifecycle, Phase
from asyncmig._core.polls import FAIR, Polled, PollSchedule
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.poller import Poller, Reading

LIMIT, WINDOW = 100, 60.0
PACE = 61.0 / LIMIT
GOALS = {"log-normal": 1.05, "exponential": 1.05, "two classes": 1.25, "±10 %": 1.5}


@dataclass
class Fleet:
    """Runs that start and end; the measured ones are those between two numbers."""

    starts: list[float]
    ends: list[float]
    measured: range


@dataclass
class Outcome:
    """What one policy made of a fleet."""

    delays: list[float] = field(default_factory=list)
    polls: int = 0
    refused: int = 0
    longest_unpolled: float = 0.0
    used: float = 0.0
    """The share of the limit that was used while runs stood in line."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.delays)


def at_once(distribution: Distribution, n: int, seed: int) -> Fleet:
    rng = Random(seed)
    return Fleet([0.0] * n, [distribution.draw(rng) for _ in range(n)], range(n))


def poisson(distribution: Distribution, n: int, seed: int) -> Fleet:
    """`n` runs are alive on average: so many start in one mean duration. Four of them warm up, four are measured."""
    rng, now, fleet = Random(seed), 0.0, Fleet([], [], range(4 * n, 8 * n))
    for _ in range(10 * n):
        now += rng.expovariate(n / distribution.mean)
        fleet.starts.append(now)
        fleet.ends.append(now + distribution.draw(rng))
    return fleet


# Ours, and whatever chooses one run at a time


def scheduled(fleet: Fleet, schedule: PollSchedule[int], *, second: bool = False) -> Outcome:
    """Let a schedule poll the fleet at its pace; with `second`, through a second channel, too."""
    outcome, runs = Outcome(), [Polled(n, at, started=at) for n, at in enumerate(fleet.starts)]
    last, left, now = list(fleet.starts), len(runs), 0.0
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
            schedule.gone(run, now)
        else:
            schedule.observed(run, now, Phase.TERMINAL if ended else Phase.ACTIVE, sent=now, lookup=lookup)
            if ended:
                delays[run.run] = now - fleet.ends[run.run]
                left -= 1
        schedule.landed(run, now)
    outcome.delays = [delays[run] for run in fleet.measured]
    outcome.used = polled_in_line / in_line * WINDOW / LIMIT if in_line else 0.0
    return outcome


def round_robin(fleet: Fleet) -> Outcome:
    """Poll the run that was polled longest ago, at the same pace; no sooner than 2 s after its last poll."""
    outcome, order, now, left = Outcome(), deque[tuple[float, int]](), 0.0, len(fleet.starts)
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
            left -= 1
        else:
            order.append((now, run))
        now += PACE
    outcome.delays = [delays[run] for run in fleet.measured]
    return outcome


# Others: a loop for each run


def looped(fleet: Fleet, pauses: Callable[[Random], Iterator[float]], *, limiter: bool = False) -> Outcome:
    """Let each run have a loop of its own, with these pauses; behind one shared aiolimiter, if asked."""
    outcome, rng = Outcome(), Random(0)
    rhythm = [pauses(rng) for _ in fleet.starts]
    last = list(fleet.starts)
    events = [(at + next(rhythm[run]), run) for run, at in enumerate(fleet.starts)]
    heapq.heapify(events)
    accepted: deque[float] = deque()
    empty_at, delays = 0.0, dict[int, float]()
    while events:
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
                continue
        heapq.heappush(events, (now + next(rhythm[run]), run))
    outcome.delays = [delays[run] for run in fleet.measured]
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
        whole.delays += each.delays
        whole.polls += each.polls
        whole.refused += each.refused
        whole.longest_unpolled = max(whole.longest_unpolled, each.longest_unpolled)
        whole.used += each.used / len(fleets)
    return whole


def table(distribution: Distribution, n: int, *, starts: str, seeds: int) -> dict[str, float]:
    """Print the table of one fleet; return the means, and the bound."""
    make = at_once if starts == "at once" else poisson
    bounded = bound_at_once if starts == "at once" else bound_in_the_long_run
    fleets = [make(distribution, n, seed) for seed in range(seeds)]
    bound = bounded(distribution, n, WINDOW / LIMIT)
    print(f"\n{distribution.name}, n = {n}, starts {starts}: bound {bound:.1f} s")
    print(f"  {'':26}{'mean':>8}{'/ bound':>8}{'p50':>8}{'p95':>8}{'max':>8}{'polls/run':>11}{'429s':>9}")
    means = {"bound": bound}
    for name, policy in policies(distribution).items():
        done = measure(policy, fleets)
        means[name] = done.mean
        cuts = statistics.quantiles(done.delays, n=20, method="inclusive")
        print(
            f"  {name:26}{done.mean:8.1f}{done.mean / bound:8.2f}{cuts[9]:8.1f}{cuts[18]:8.1f}"
            f"{max(done.delays):8.1f}{done.polls / len(done.delays):11.1f}{done.refused // seeds:9}",
            flush=True,
        )
        if name.startswith("ours"):
            means[f"{name}: 429s"], means[f"{name}: used"] = done.refused, done.used
    return means


def fairness() -> None:
    """Print what it costs that no run goes unpolled for a quarter of an hour, where the limit allows that."""
    print(
        f"\nfairness: the longest that a run went unpolled; with the rule (at most {FAIR:.0f} s), and without"
    )
    for n, (starts, make) in itertools.product(
        (300, 1000, 1400), (("at once", at_once), ("Poisson", poisson))
    ):
        for distribution in DISTRIBUTIONS:
            fleet = make(distribution, n, 1)
            fair = scheduled(fleet, PollSchedule())
            free = scheduled(fleet, PollSchedule(fair=float("inf")))
            print(
                f"  n = {n:4}, {starts:8} {distribution.name:12}"
                f" {fair.longest_unpolled:6.0f} s, mean delay {fair.mean:6.1f} s;"
                f" without {free.longest_unpolled:6.0f} s, {free.mean:6.1f} s: {fair.mean / free.mean - 1:+.1%}",
                flush=True,
            )


# What it costs


def decision_time(n: int = 10_000) -> float:
    """Return the mean seconds of `next`, with all of its bookkeeping, among `n` runs of all ages."""
    rng, schedule = Random(1), PollSchedule[int]()
    for run in range(n):
        schedule.add(Polled(run, 0.0, started=-rng.uniform(0, 7000), last_read=-rng.uniform(30, 900)), 0.0)
    now, spent, calls = 60.0, 0.0, 3000
    for _ in range(calls):
        begun = time.perf_counter()
        run = schedule.next(now, pace=PACE)
        spent += time.perf_counter() - begun
        assert run is not None
        phase = Phase.TERMINAL if rng.getrandbits(4) == 0 else Phase.ACTIVE
        schedule.observed(run, now, phase, sent=now)
        schedule.landed(run, now)
        now += PACE
    return spent / calls


async def alive(n: int = 10_000, *, seconds: float = 3.0) -> tuple[float, float, float]:
    """Return the bytes of one waiting run, with its task and without, and the longest lag of the loop."""
    life = Lifecycle(known=frozenset({"running"}), parked=frozenset(), terminal=frozenset({"completed"}))

    async def read(slot: Slot) -> Reading[None]:
        await asyncio.sleep(0.1)
        slot.answered(200)
        return Reading(status="running", progress=None, value=None)

    def watch(poller: Poller, gate: Gate, run: int) -> asyncio.Task[object]:
        started = asyncio.get_running_loop().time() - 60.0
        one = poller.watch(run, gate=gate, read=read, lifecycle=life, started=started, last_read=started + 30)
        return asyncio.create_task(one.wait())

    loop, longest = asyncio.get_running_loop(), 0.0
    async with Poller() as poller:
        gate = Gate(limit=6000)  # as at a speed of 60
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        idle = [asyncio.create_task(asyncio.Event().wait()) for _ in range(n)]
        await asyncio.sleep(0.5)
        bare = (tracemalloc.get_traced_memory()[0] - before) / n
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)
        del idle, task
        before = tracemalloc.get_traced_memory()[0]
        waiting = [watch(poller, gate, run) for run in range(n)]
        await asyncio.sleep(0.5)
        size = (tracemalloc.get_traced_memory()[0] - before) / n
        tracemalloc.stop()
        await asyncio.sleep(1.0)
        stop = loop.time() + seconds
        while (begun := loop.time()) < stop:
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - begun - 0.005)
    await asyncio.gather(*waiting, return_exceptions=True)
    return size, size - bare, longest


def cost() -> list[tuple[str, bool]]:
    decision = min(decision_time() for _ in range(3))
    size, added, lag = asyncio.run(alive())
    print(f"\ncost at 10,000 runs: a decision {decision * 1e6:.0f} us;")
    print(
        f"  a waiting run {size / 1000:.1f} kB with its task, {added / 1000:.1f} kB without; lag {lag * 1e3:.1f} ms"
    )
    return [
        (f"a decision among 10,000 runs takes {decision * 1e6:.0f} us, at most 50", decision <= 50e-6),
        (f"a waiting run takes {size / 1000:.1f} kB, at most 4", size <= 4000),
        (f"the loop lags {lag * 1e3:.0f} ms, less than 50", lag < 0.05),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="How late ends of runs are noticed.")
    parser.add_argument("--quick", action="store_true", help="n = 300 only")
    parser.add_argument("--cost", action="store_true", help="only what the schedule costs")
    options = parser.parse_args()
    checks: list[tuple[str, bool]] = []
    for n in () if options.cost else (300,) if options.quick else (10, 100, 300, 1000):
        for starts, distribution in itertools.product(("at once", "Poisson"), DISTRIBUTIONS):
            means = table(distribution, n, starts=starts, seeds=3 if options.quick else 5)
            if n == 300:
                checks += goals(distribution, starts, means)
    if not options.cost:
        fairness()
    checks += cost()
    print("\ngoals")
    for text, reached in checks:
        print(f"  {'reached' if reached else 'MISSED '}  {text}")


def goals(distribution: Distribution, starts: str, means: dict[str, float]) -> list[tuple[str, bool]]:
    where, goal = f"n = 300, {starts}, {distribution.name}", GOALS[distribution.name]
    ratio = means["ours (learning)"] / means["bound"]
    second = means["ours, second channel"] / means["bound"]
    used = means["ours (learning): used"]
    return [
        (f"{where}: {ratio:.2f} x bound, at most {goal}", ratio <= goal),
        (f"{where}: second channel {second:.2f} x the bound of one, less than 1", second < 1),
        (f"{where}: {used:.1%} of the limit used while runs stand in line, at least 96 %", used >= 0.96),
        (f"{where}: {means['ours (learning): 429s']:.0f} 429s", means["ours (learning): 429s"] == 0),
    ]


if __name__ == "__main__":
    main()
