"""The Lua script in a real Redis, compared with the local limiter, an independent counter and simulated servers."""

import asyncio
import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from statistics import mean

import pytest
from gateload import Load, most_in_a_window, run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mortal import Life
from sharedstore import Store
from windowscript import Script, ScriptedWindow, empty, together

from asyncmig import Gate
from asyncmig._core.limiter import Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket

EXAMPLES = int(os.environ.get("WINDOW_EXAMPLES", "25"))
LOSS_SEEDS = int(os.environ.get("LOSS_SEEDS", "16"))
WINDOW = 60.0


class Fixed(Random):
    """Returns `value` for every random number."""

    value = 0.5

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("limit", [1, 3, 12, 100])
@pytest.mark.parametrize("seed", range(4))
def test_the_script_treats_one_client_like_the_local_limiter(
    redis_url: str, prefix: str, limit: int, seed: int
) -> None:
    rng, draws = Random(f"{limit} {seed}"), Fixed()
    script, limiter = Script(redis_url, prefix, limit=limit), Limiter(limit=limit, window=WINDOW, rng=draws)
    now, names, open_ = 1000.0, count(), dict[str, float]()
    refusal = rng.choice([0.0, 0.02, 0.3])
    for _ in range(350):
        draws.value = rng.random()
        asked = rng.random() < 0.6
        if asked:
            name, at = str(next(names)), limiter.next_at(now)
            turn = script(now, want=name, random=draws.value)
            may = at is not None and at <= now
            bucket = limiter.burst < limiter.slots
            assert turn.granted == may or (may and bucket)
            if turn.granted:
                limiter.take(now)
                open_[name] = now
        elif open_:
            name = rng.choice(list(open_))
            what = rng.choices(["accepted", "rejected", "lost", "unsent"], [1.0, refusal, 0.05, 0.05])[0]
            seconds = rng.choice([0.0, 0.0, 7.0])
            turn = script(now, (name, what, seconds), random=draws.value)
            more = {"retry_after": seconds} if what == "rejected" else {}
            getattr(limiter, what)(now, sent_at=open_.pop(name), **more)
        else:
            turn = script(now)
        assert (turn.used, turn.slots, turn.burst) == (limiter.used(now), limiter.slots, limiter.burst)
        assert turn.held == pytest.approx(max(0.0, limiter.held_until - now), abs=1e-6)
        now += rng.choice([0.01, 0.05, 0.3, 1.0, 1.0 if open_ else 30.0])
        overdue = [name for name, sent_at in open_.items() if now - sent_at > 8.0]
        for name in overdue:  # before its time-out in the script
            limiter.accepted(now, sent_at=open_.pop(name))
            script(now, (name, "accepted", 0.0), random=draws.value)


@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_script_treats_a_long_window_like_the_local_limiter(
    redis_url: str, prefix: str, limit: int, seed: int
) -> None:
    rng, window, now, names = Random(f"{limit} {seed}"), 3600.0, 1000.0, count()
    script, limiter = (
        Script(redis_url, prefix, limit=limit, window=window),
        Limiter(limit=limit, window=window, rng=Fixed()),
    )
    open_: dict[str, float] = {}
    for _ in range(200):
        if not open_:
            name, at = str(next(names)), limiter.next_at(now)
            turn = script(now, want=name)
            assert turn.granted == (at is not None and at <= now)
            assert turn.wait == pytest.approx(max(0.0, (at or now) - now), abs=1e-6)
            if turn.granted:
                limiter.take(now)
                open_[name] = now
        else:
            assert not script(now, want="another").granted  # the script allows one unanswered request
            name, sent_at = open_.popitem()
            what = rng.choices(["accepted", "rejected", "lost", "unsent"], [1.0, 0.3, 0.1, 0.1])[0]
            seconds = rng.choice([0.0, 0.0, 7.0, 1e6])
            turn = script(now, (name, what, seconds))
            more = {"retry_after": seconds or None} if what == "rejected" else {}
            getattr(limiter, what)(now, sent_at=sent_at, **more)
            if rng.random() < 0.5:
                headers = rng.choice([None, 0, 1, limit, 100]), rng.choice([None, 0, 1, 100])
                reset = rng.choice([0.0, 60.0, 1e9])
                text = "/".join("" if each is None else str(each) for each in headers)
                turn = script(now, (text, "headers", reset))
                limiter.apply_headers(
                    RateHeaders(limit=headers[0], remaining=headers[1], reset=reset or None), now
                )
        assert (turn.used, turn.slots) == (limiter.used(now), limiter.slots)
        assert turn.held == pytest.approx(max(0.0, limiter.held_until - now), abs=1e-6)
        now += rng.choice([0.5, 5.0, 60.0, 900.0, 3700.0])
        overdue = [name for name, sent_at in open_.items() if now - sent_at >= 60.0]
        for name in overdue:
            limiter.lost(now, sent_at=open_.pop(name))
            script(now, (name, "lost", 0.0))


def test_a_slot_of_several_budgets_is_granted_only_if_all_have_a_free_slot(
    redis_url: str, prefix: str
) -> None:
    minute, hour = (
        Script(redis_url, prefix + "a", limit=2),
        Script(redis_url, prefix + "b", limit=1, window=3600.0),
    )
    assert [turn.granted for turn in together([minute, hour], 1000.0, want="first")] == [True, True]
    for script in (minute, hour):
        script(1001.0, ("first", "accepted", 0.0))
    turns = together([minute, hour], 1002.0, want="second")
    assert [turn.granted for turn in turns] == [False, False]
    assert [turn.used for turn in turns] == [1, 1]
    assert turns[1].wait == pytest.approx(3599.05)
    assert minute(1003.0, want="third").granted
    turns = together([hour, minute], 4700.0, [("", "limit", 1)], want="fourth")
    assert [turn.granted for turn in turns] == [True, True]


def test_a_hold_of_a_budget_set_does_not_apply_to_its_single_budgets(redis_url: str, prefix: str) -> None:
    reads, writes = (Script(redis_url, prefix + name, limit=9) for name in "ab")
    held = together([reads, writes], 1000.0, [("0+1", "held", 40.0)], want="a")
    assert [turn.granted for turn in held] == [False, False]
    assert held[0].wait == pytest.approx(40.0)
    assert reads(1001.0, want="b").granted
    assert writes(1001.0, want="c").granted
    assert not together([reads, writes], 900.0, want="d")[0].granted  # the clock of Redis was set back
    assert all(turn.granted for turn in together([reads, writes], 940.5, want="e"))


@dataclass
class Client:
    """A process that requests slots and may die with requests in flight."""

    name: str
    open_: dict[str, float] = field(default_factory=dict)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=set(Phase) - {Phase.shrink},  # fewer steps rarely cause the same failure
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    limit=st.integers(1, 6),
    clients=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["ask", "ask", "ask", "answer", "lose", "drop", "die", "tell again"]),
            st.sampled_from([0.0, 0.01, 0.3, 2.0, 20.0, 61.0]),
        ),
        min_size=20,
        max_size=80,
    ),
)
def test_no_window_contains_more_requests_than_the_limit_for_any_client_behaviour(
    redis_url: str, prefix: str, limit: int, clients: int, steps: list[tuple[int, str, float]]
) -> None:
    """The test counts requests by the intervals in which they can have arrived."""
    script, now, names = Script(redis_url, prefix, limit=limit), 1000.0, count()
    script.forget()
    fleet = [Client(f"client {n}") for n in range(clients)]
    spans: list[tuple[float, float]] = []
    for index, step, seconds in steps:
        client = fleet[index % clients]
        if step == "ask":
            name = str(next(names))
            if script(now, want=name, client=client.name).granted:
                client.open_[name] = now
        elif step == "die":  # its requests arrive before their time-out
            spans += [(sent, sent + 60.0) for sent in client.open_.values()]
            client.open_ = {}
        elif step == "tell again":
            again = [(name, "sent_before", now - sent) for name, sent in client.open_.items()]
            script(now, *again, client=client.name)
        elif client.open_:
            name, sent = client.open_.popitem()
            what = {"answer": "accepted", "lose": "lost", "drop": "unsent"}[step]
            script(now, (name, what, 0.0), client=client.name)
            if step != "drop":
                spans.append((sent, now))
        now += seconds
        for client in fleet:  # the time-out of an answer is 60 s
            late = [name for name, sent in client.open_.items() if now - sent > 60.0]
            spans += [(sent := client.open_.pop(name), sent + 60.0) for name in late]
    held = [(sent, now) for client in fleet for sent in client.open_.values()]
    assert most_in_a_window(spans + held, WINDOW) <= limit


Server = Callable[[Random], RateLimit]


def drive(
    script: Script, server: RateLimit, rng: Random, *, clients: int, each: int, dies: float = 0.0
) -> tuple[float, int]:
    """Let each client make `each` calls from its own queue. Return the seconds and the number of 429s.

    An answer is lost with the probability `dies`.
    """
    order, names, began, refused, last = count(), count(), 1000.0, 0, 0.0
    left = [each] * clients
    asking = set(range(clients))
    events = [(began, next(order), n, "ask", "") for n in range(clients)]

    def later(at: float, client: int, what: str, name: str = "") -> None:
        heapq.heappush(events, (at, next(order), client, what, name))

    while events:
        now, _, client, what, name = heapq.heappop(events)
        if what == "ask":
            if not left[client]:
                asking.discard(client)
                continue
            name = f"{client} {next(names)}"
            turn = script(now, want=name, client=str(client), random=rng.random())
            if turn.granted:
                left[client] -= 1
                later(now + rng.uniform(0.01, 0.2), client, "arrive", name)
            later(now + (0.001 if turn.granted else min(turn.wait, 5.0) + 0.001), client, "ask")
        elif what == "arrive":
            answer = "accepted" if server.allow(now) else "rejected"
            if rng.random() >= dies:
                later(now + rng.uniform(0.01, 0.2), client, answer, name)
        else:
            script(now, (name, what, 0.0), client=str(client), random=rng.random())
            last = now
            if what == "rejected":
                refused += 1
                left[client] += 1
                if client not in asking:
                    asking.add(client)
                    later(now, client, "ask")
    assert not any(left)
    # A call grants a slot, reports an answer, or asks for a slot in vain.
    assert script.calls <= 9 * (clients * each + refused)
    return last - began, refused


@pytest.mark.parametrize(
    ("make", "most_refused", "most_seconds"),
    [
        (lambda rng: FixedWindow(100, phase=rng.uniform(0, 60), count_rejects=True), 0, 125.0),
        (lambda _: SlidingLog(100, count_rejects=True), 0, 125.0),
        (lambda _: TokenBucket(100, burst=100), 0, 125.0),
        (lambda _: TokenBucket(100, burst=10), 4, 190.0),
        (lambda _: SlidingLog(80), 25, 210.0),
        (lambda _: SlidingCounter(100), 10, 190.0),
    ],
    ids=["fixed", "sliding", "bucket of 100", "bucket of 10", "true limit 80", "counter"],
)
def test_four_processes_are_as_fast_as_one_and_cause_as_few_refusals(
    redis_url: str, prefix: str, make: Server, most_refused: float, most_seconds: float
) -> None:
    took, refused = [], []
    for seed in range(2):
        script, rng = Script(redis_url, f"{prefix}{seed}"), Random(seed)
        seconds, refusals = drive(script, make(rng), rng, clients=4, each=70)
        took.append(seconds)
        refused.append(refusals)
    assert mean(refused) <= most_refused
    assert mean(took) <= most_seconds


def test_an_unanswered_slot_is_free_after_its_time_out_and_a_window(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix, limit=1, timeout=20.0)
    assert script(1000.0, want="a").granted
    assert script(1019.0, want="b").wait == pytest.approx(60.05)  # if it is answered now
    assert script(1030.0, want="b").wait == pytest.approx(50.05)
    assert not script(1080.04, want="b").granted
    assert script(1080.06, want="b").granted


def test_an_unanswered_probe_is_sent_again_by_another_client(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix)
    script(1000.0, want="a", client="one")
    script(1000.1, ("a", "rejected", 0.0), client="one")
    assert script(1001.7, want="probe", client="one").granted
    assert not script(1002.0, want="b", client="two").granted
    assert script(1011.8, want="b", client="two").granted
    assert not script(1011.9, want="c", client="two").granted
    script(1012.0, ("b", "accepted", 0.0), client="two")
    assert script(1012.0, want="c", client="two").wait == pytest.approx(0.6)  # the learnt burst is one
    assert script(1012.7, want="c", client="two").granted


def test_a_hold_applies_to_all_clients_for_the_time_that_the_server_asks(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix)
    script(1000.0, want="a", client="one")
    script(1000.1, ("a", "rejected", 30.0), client="one")
    turn = script(1000.2, want="b", client="two")
    assert (turn.granted, turn.held) == (False, pytest.approx(29.9))
    assert turn.wait == turn.held


def test_after_the_clock_is_set_back_slots_stay_taken_for_one_window(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix, limit=2)
    script(5000.0, want="a")
    script(5000.0, ("a", "accepted", 0.0))
    script(5001.0, want="b")
    script(5002.0, ("b", "accepted", 0.0))
    assert script(1400.0, want="c").wait == pytest.approx(58.05)  # the same wait as at 5002
    assert not script(1458.0, want="c").granted
    assert script(1458.1, want="c").granted


def test_clients_report_their_requests_again_before_a_lost_window_is_used(
    redis_url: str, prefix: str
) -> None:
    script = Script(redis_url, prefix, limit=3)
    script.forget()
    script(1000.0, ("a", "answered_before", 10.0), ("b", "sent_before", 1.0), client="one")
    assert script(1000.5, want="x", client="one").wait == pytest.approx(6.5)  # other clients may report more
    script(1001.0, ("c", "answered_before", 20.0), client="two")
    assert script(1007.0, want="x", client="one").wait == pytest.approx(34.05)
    script(1008.0, ("b", "unsent", 0.0), client="one")
    assert script(1008.0, want="x", client="one").granted


def test_a_changed_limit_applies_to_all_clients(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix, limit=1)
    assert script(1000.0, want="a").granted
    assert not script(1000.1, want="b").granted
    assert script(1000.1, ("", "limit", 2), want="b").granted
    assert script(1000.2).slots == 2


def test_only_processes_with_a_recent_call_are_counted(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix)
    assert [script(1000.0, client=name).clients for name in ("one", "two", "two", "three")] == [1, 2, 2, 3]
    assert script(1301.0, client="one").clients == 1


def test_the_script_uses_the_clock_of_redis_and_its_keys_expire(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix, limit=1, window=0.2, timeout=0.2, speed=1.0)
    assert script(None, want="a").granted
    turn = script(None, ("a", "accepted", 0.0), want="b")
    assert 0.2 < turn.wait <= 0.25
    expiries = {script.redis.pttl(key) for key in script.redis.keys(f"{prefix}*")}
    assert all(0 < milliseconds <= 12_000 for milliseconds in expiries)
    faster = Script(redis_url, f"{prefix}fast", limit=1, speed=60.0)
    seconds, micro = faster.redis.time()
    faster(None, want="a")
    assert faster.state("last_send") == pytest.approx((seconds + micro / 1e6) * 60.0, abs=60.0)


@pytest.mark.parametrize(
    "lost", [(), (0,), (1,), (0, 1), (1, 2)], ids=["all", "state", "slots", "both", "sets"]
)
def test_each_client_notices_a_loss_of_data_and_no_request_counts_twice(
    redis_url: str, prefix: str, lost: tuple[int, ...]
) -> None:
    script = Script(redis_url, prefix, limit=4)
    known: dict[str, tuple[str, str, float]] = {}
    for now, client, slot in ((1000.0, "one", "a"), (1001.0, "one", "b"), (1002.0, "two", "c")):
        turn = script(now, known.get(client, ("", "last_seen", 0)), want=slot, client=client)
        assert (turn.granted, turn.lost) == (True, False)
        known[client] = (turn.epoch, "last_seen", turn.turn)
    script(1002.5, ("a", "accepted", 0.0), ("b", "accepted", 0.0), client="one")
    script.forget(*lost)
    reports = [("a", "answered_before", 7.5), ("b", "answered_before", 7.5)]
    turn = script(1010.0, known["one"], want="x", client="one")
    assert (turn.granted, turn.lost) == (False, True)
    last_seen = (turn.epoch, "last_seen", turn.turn)
    turn = script(1010.0, last_seen, *reports, want="x", client="one")
    # Other clients may report more.
    assert (turn.granted, turn.lost, turn.wait) == (False, False, pytest.approx(7.0))
    turn = script(1011.0, known["two"], want="y", client="two")
    assert (turn.granted, turn.lost) == (False, True)
    script(1011.0, (turn.epoch, "last_seen", turn.turn), ("c", "sent_before", 9.0), *reports, client="two")
    assert script(1017.1, want="x", client="one").granted
    turn = script(1017.2, want="y", client="two")
    assert (turn.granted, turn.used) == (False, 4)
    assert turn.wait == pytest.approx(1062.55 - 1017.2, abs=0.1)


def test_slots_of_a_client_that_stays_silent_after_a_loss_still_count(redis_url: str, prefix: str) -> None:
    script = Script(redis_url, prefix, limit=4)
    for slot in "abc":
        script(1000.0 + ord(slot) - 97, want=slot, client="silent")
        script(1000.1 + ord(slot) - 97, (slot, "accepted", 0.0), client="silent")
    turn = script(1005.0, ("", "last_seen", 0), client="one")
    assert turn.used == 3
    script.forget()
    # This client knows nothing of the loss.
    assert script(1006.0, ("", "last_seen", 0), want="new", client="new").granted
    lost = script(1006.5, (turn.epoch, "last_seen", turn.turn), want="x", client="one")
    assert lost.lost
    script(1006.5, (lost.epoch, "last_seen", lost.turn), ("3", "used_before", 1.5), client="one")
    turn = script(1014.0, want="x", client="one")
    assert (turn.granted, turn.used) == (False, 4)
    assert not script(1066.5, want="x", client="one").granted  # answers may have arrived until the loss
    assert script(1066.6, want="x", client="one").granted


def test_clients_report_to_an_outdated_replica_the_requests_that_it_lacks(
    redis_url: str, prefix: str
) -> None:
    script = Script(redis_url, prefix, limit=2)
    behind = script(1000.0, ("", "last_seen", 0), want="a", client="one")
    copies = script.copies()
    turn = script(1001.0, (behind.epoch, "last_seen", behind.turn), want="b", client="one")
    script.restore(copies)
    turn = script(1002.0, (turn.epoch, "last_seen", turn.turn), want="c", client="one")
    assert turn.lost
    assert turn.epoch != behind.epoch
    reports = [("a", "sent_before", 2.0), ("b", "sent_before", 1.0)]
    script(1002.0, (turn.epoch, "last_seen", turn.turn), *reports, client="one")
    turn = script(1005.0, want="c", client="one")
    assert (turn.granted, turn.used) == (False, 2)


@pytest.mark.parametrize("seed", range(LOSS_SEEDS))
def test_no_window_exceeds_the_limit_when_redis_is_emptied_repeatedly(
    redis_url: str, prefix: str, seed: int
) -> None:
    async def main() -> None:
        rng, load = Random(seed), Load(SlidingLog(20, count_rejects=True), Random(seed))
        windows = [
            ScriptedWindow(redis_url, prefix, Store().run_slots, Life(), latency=rng.choice([0.01, 0.3]))
            for _ in range(3)
        ]
        gates = [
            Gate(limit=20, name="GET /x", rng=rng, dispatcher=partial(SharedDispatcher, shared=shared))
            for shared in (SharedBudgets(window=each, account="x", timeout=60.0) for each in windows)
        ]
        calls = asyncio.gather(*(load.call(gate) for gate in gates for _ in range(27)))
        await asyncio.sleep(1.0)  # a process that has not called yet cannot notice the loss
        for _ in range(7):
            await asyncio.sleep(rng.choice([0.3, 1.0, 3.0, 8.0, 25.0]) * rng.random())
            if not all(sum(gate.statistics().waiting.values()) for gate in gates):
                break  # an idle gate does not report its requests to Redis again
            empty(redis_url, prefix)
        await calls
        await asyncio.gather(*(each.aclose() for each in (*gates, *windows)))
        assert load.refused == 0
        assert most_in_a_window(load.spans, 60.0) <= 20

    run(main())


def test_three_losses_in_two_seconds_hold_all_clients_for_less_than_ten_seconds(
    redis_url: str, prefix: str
) -> None:
    script = Script(redis_url, prefix, limit=4)
    turn = script(1000.0, ("", "last_seen", 0), want="a")
    for number in range(3):
        script.forget()
        turn = script(1001.0 + number, (turn.epoch, "last_seen", turn.turn), want="b")
        assert turn.lost
        script(1001.0 + number, (turn.epoch, "last_seen", turn.turn), ("a", "sent_before", 1.0 + number))
    assert not script(1009.9, (turn.epoch, "last_seen", turn.turn), want="b").granted
    assert script(1010.1, (turn.epoch, "last_seen", turn.turn), want="b").granted
