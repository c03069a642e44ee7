"""Waiting for runs on a virtual loop, with a real gate and simulated reads."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import pytest
from run_server import LIFE, OpenWatch, Server, no_answer, now, other_tasks, reading, refusal, settle

from asyncmig._core.endpoint import Lane
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.poller import Poller, Reading, Watch
from asyncmig.errors import (
    AuthError,
    BadRequest,
    NotFound,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)
from asyncmig.events import Event, Events, RunStalled

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    async with aclosing(Poller()) as opened:
        yield opened


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def watch(poller: Poller, gate: Gate) -> OpenWatch:
    def open_watch(server: Server, run: str = "run", **options: object) -> Watch[str]:
        chosen = {"gate": gate, "lifecycle": LIFE, "started": server.started, **options}
        return poller.watch(run, read=server, **chosen)  # type: ignore[arg-type]

    return open_watch


# Ends


async def test_the_end_of_a_run_is_noticed_within_the_floor(watch: OpenWatch) -> None:
    done = await watch(Server((0, "running"), (100, "completed"))).wait()
    assert done.status == "completed"
    assert 100 < now() < 103


async def test_reads_keep_the_floor_after_the_last_answer(watch: OpenWatch) -> None:
    server = Server((0, "running"), (4000, "failed"), latency=5.0)
    await watch(server).wait()
    assert server.sent[0] >= 2.0
    for answer, next_read in zip(server.answered, server.sent[1:], strict=False):
        assert next_read >= answer + LIFE.floor(answer) - 1e-6
    assert server.sent[-1] - server.answered[-2] < 30.5  # a single run is read at little more than the floor


async def test_a_final_status_is_read_once_and_kept(watch: OpenWatch) -> None:
    server = Server((0, "completed"))
    one = watch(server)
    first = await one.wait()
    assert await one.wait(through_parks=True) is first
    assert await one.refresh() is first
    await asyncio.sleep(1000)
    assert len(server.sent) == 1
    assert other_tasks() == set()


async def test_later_readings_do_not_replace_a_final_status(watch: OpenWatch) -> None:
    server = Server((0, "completed"))
    one = watch(server)
    await one.wait()
    one.observe(reading("completed:again"))
    one.observe(reading("running"))
    assert one.latest == reading("completed")
    assert [update.status async for update in one.updates()] == ["completed"]


async def test_a_run_has_one_watch_while_it_is_referenced(watch: OpenWatch) -> None:
    server = Server((0, "completed"))
    one = watch(server)
    assert watch(server) is one
    assert watch(server, "another") is not one
    del one
    gc.collect()
    await watch(server).wait()
    assert len(server.sent) == 1


async def test_concurrent_waits_share_the_polls(watch: OpenWatch) -> None:
    server = Server((0, "running"), (300, "completed"))
    one = watch(server)
    alone = Server((0, "running"), (300, "completed"))
    both = await asyncio.gather(*(one.wait() for _ in range(50)), watch(alone, "alone").wait())
    assert {each.status for each in both} == {"completed"}
    assert len(server.sent) <= len(alone.sent) + 2


async def test_a_run_is_not_polled_while_no_caller_waits(watch: OpenWatch) -> None:
    server = Server((0, "running"))
    one = watch(server)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await one.wait()
    polled = len(server.sent)
    assert polled >= 3
    await asyncio.sleep(1000)
    assert len(server.sent) == polled
    assert other_tasks() == set()


async def test_the_cancellation_of_one_waiter_does_not_affect_the_others(watch: OpenWatch) -> None:
    server = Server((0, "running"), (60, "completed"))
    one = watch(server)
    waiters = [asyncio.create_task(one.wait()) for _ in range(5)]
    await asyncio.sleep(30)
    waiters[2].cancel()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [getattr(result, "status", type(result).__name__) for result in results] == [
        "completed",
        "completed",
        "CancelledError",
        "completed",
        "completed",
    ]


@pytest.mark.parametrize("at", [0.0, 1.999999, 2.0, 2.05, 2.1, 2.100001])
async def test_a_cancellation_at_any_point_does_not_delay_other_runs(watch: OpenWatch, at: float) -> None:
    server, other = Server((0, "running")), Server((0, "running"), (50, "completed"))
    waiter = asyncio.create_task(watch(server).wait())
    kept = asyncio.create_task(watch(other, "other").wait())
    asyncio.get_running_loop().call_later(at, waiter.cancel)
    await kept
    assert 50 < now() < 54
    assert waiter.cancelled()
    assert len(server.sent) <= 1
    assert other_tasks() == set()


async def test_several_slow_polls_are_in_flight_at_once(watch: OpenWatch) -> None:
    servers = [Server((0, "completed"), latency=25.0) for _ in range(20)]
    await asyncio.gather(*(watch(server, f"run {number}").wait() for number, server in enumerate(servers)))
    assert now() < 2 + 5 * 26  # not 20 times 25 s: a new gate allows four unanswered polls
    assert all(len(server.sent) == 1 for server in servers)


async def test_polls_keep_and_use_the_rate_of_the_limit(watch: OpenWatch, gate: Gate) -> None:
    servers = [Server((0, "running"), (1000, "completed")) for _ in range(100)]
    waits = asyncio.gather(*(watch(server, f"run {n}").wait() for n, server in enumerate(servers)))
    await asyncio.sleep(400)
    sent = sorted(at for server in servers for at in server.sent)
    assert all(later - earlier >= 0.6005 - 1e-6 for earlier, later in pairwise(sent))
    assert len(sent) >= 0.99 * (400 - 2) / 0.6005  # the whole rate is used
    gate.limit = 10
    changed = now()
    await asyncio.sleep(200)
    slower = sorted(at for server in servers for at in server.sent if at > changed + 7)
    assert all(later - earlier >= 6.005 - 1e-6 for earlier, later in pairwise(slower))
    waits.cancel()


async def test_work_goes_before_polls(poller: Poller, watch: OpenWatch) -> None:
    gate = Gate(limit=20)
    servers = [Server((0, "running")) for _ in range(30)]
    polls = asyncio.gather(*(watch(server, f"run {n}", gate=gate).wait() for n, server in enumerate(servers)))

    async def work() -> float:
        async with gate.slot(lane=Lane.WORK) as slot:
            slot.answered(201)
            return now()

    await asyncio.sleep(100)
    started = now()
    done = await asyncio.gather(*(work() for _ in range(60)))
    assert max(done) - started < 4 * 60.5
    polled = sum(started <= at <= max(done) for server in servers for at in server.sent)
    assert polled <= 60 / 19 + 20  # every 20th grant, and polls that were sent before
    polls.cancel()


# Errors


@pytest.mark.parametrize(
    "error",
    [
        refusal(RateLimited, 429),
        refusal(ServerError, 503),
        refusal(UnexpectedReply, 302),
        no_answer(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failed_poll_is_repeated(watch: OpenWatch, error: Exception) -> None:
    server = Server((0, "running"), (30, "completed"))
    server.troubles = [error] * 2
    assert (await watch(server).wait()).status == "completed"
    assert 30 < now() < 40
    assert all(later >= earlier + 2 - 1e-6 for earlier, later in pairwise(server.sent))


async def test_runs_that_cannot_be_read_do_not_delay_other_runs(watch: OpenWatch) -> None:
    broken = [Server((0, "running")) for _ in range(20)]
    for server in broken:
        server.troubles = [refusal(ServerError, 500)] * 10_000
    good = [Server((0, "running"), (600, "completed")) for _ in range(20)]
    stuck = asyncio.gather(*(watch(server, f"broken {n}").wait() for n, server in enumerate(broken)))
    await asyncio.gather(*(watch(server, f"good {n}").wait() for n, server in enumerate(good)))
    assert now() < 640
    assert max(len(server.sent) for server in broken) < 25
    stuck.cancel()


async def test_404s_right_after_the_start_of_a_run_do_not_end_the_wait(watch: OpenWatch) -> None:
    server = Server((0, "running"), (40, "completed"))
    server.troubles = [refusal(NotFound, 404)] * 3
    assert (await watch(server).wait()).status == "completed"


async def test_a_run_that_stays_missing_ends_the_wait(watch: OpenWatch) -> None:
    server = Server((0, "running"))
    server.troubles = [refusal(NotFound, 404)] * 100
    with pytest.raises(NotFound):
        await watch(server).wait()
    assert 30 < now() < 70
    assert other_tasks() == set()


async def test_a_run_that_disappears_ends_the_wait_only_if_it_stays_missing(watch: OpenWatch) -> None:
    server = Server((0, "running"), (50, "running:more"), (90, "running:most"))
    one = watch(server)
    changes = one.updates()
    await anext(changes)
    await anext(changes)
    server.troubles = [refusal(NotFound, 404)] * 3  # as from a replica that is behind
    await anext(changes)
    gone = now()
    server.troubles = [refusal(NotFound, 404)] * 100
    with pytest.raises(NotFound):
        await anext(changes)
    assert 30 < now() - gone < 70
    assert other_tasks() == set()


async def test_only_consecutive_404s_mean_that_a_run_is_missing(watch: OpenWatch) -> None:
    server = Server((0, "running"), (300, "completed"))
    server.troubles = [refusal(NotFound, 404), *[no_answer()] * 5, refusal(NotFound, 404)]
    assert (await watch(server).wait()).status == "completed"


async def test_404s_of_separate_waits_are_not_added(watch: OpenWatch) -> None:
    server = Server((0, "running"), (1200, "completed"))
    server.troubles = [refusal(NotFound, 404)]
    one = watch(server)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await one.wait()
    await asyncio.sleep(600)
    server.troubles = [refusal(NotFound, 404)]
    assert (await one.wait()).status == "completed"


async def test_a_run_that_cannot_be_read_is_logged_once(
    watch: OpenWatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server((0, "running"), (4000, "completed"))
    server.troubles = [*[refusal(UnexpectedReply, 403)] * 10, *[refusal(RateLimited, 429)] * 5]
    await watch(server).wait()
    assert [record.message for record in caplog.records if "cannot be read" in record.message] == [
        "run run cannot be read; polling continues: GET /runs/{run_id} answered 403: the server's text"
    ]


@pytest.mark.parametrize("error", [ValueError("a bug"), refusal(BadRequest, 400)], ids=["bug", "400"])
async def test_another_error_is_raised_only_to_callers_that_wait_for_that_run(
    watch: OpenWatch, error: Exception
) -> None:
    server, other = Server((0, "running"), (60, "completed")), Server((0, "running"), (60, "completed"))
    server.troubles = [error]
    one = watch(server)
    first, second, third = await asyncio.gather(
        one.wait(), one.refresh(), watch(other, "other").wait(), return_exceptions=True
    )
    assert isinstance(first, type(error))
    assert isinstance(second, type(error))
    assert getattr(third, "status", third) == "completed"
    assert (await one.wait()).status == "completed"  # the next wait reads the run again


async def test_a_refused_key_ends_every_wait_at_once(poller: Poller, watch: OpenWatch) -> None:
    server, other = Server((0, "running")), Server((0, "running"))
    elsewhere = watch(other, "other", gate=Gate(), started=-3000.0)
    waits = [asyncio.create_task(each.wait()) for each in (watch(server), watch(server), elsewhere)]
    await asyncio.sleep(1)
    server.troubles = [refusal(AuthError, 401)]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [AuthError] * 3
    assert len({id(result) for result in results}) == 3  # each has its own traceback
    assert now() < 2.5
    with pytest.raises(AuthError):
        await elsewhere.wait()
    with pytest.raises(AuthError):
        await watch(Server((0, "running")), "new").wait()


async def test_a_closed_gate_ends_the_waits(watch: OpenWatch, gate: Gate) -> None:
    one = watch(Server((0, "running")))
    waits = [asyncio.create_task(one.wait()) for _ in range(2)]
    await asyncio.sleep(1)
    gate.close()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [SessionClosed] * 2
    with pytest.raises(SessionClosed):
        await one.wait()


@pytest.mark.parametrize("at", [1.0, 2.0, 2.05, 2.5])
async def test_closing_the_poller_ends_the_waits_and_the_run_can_be_watched_again(
    gate: Gate, at: float
) -> None:
    server = Server((0, "running"), (100, "completed"))
    async with aclosing(Poller()) as poller:
        one = poller.watch("run", gate=gate, read=server, lifecycle=LIFE, started=now())
        waits = [asyncio.create_task(one.wait()) for _ in range(3)]
        await asyncio.sleep(at)
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [SessionClosed] * 3
    assert now() == pytest.approx(at)
    assert other_tasks() == set()
    with pytest.raises(SessionClosed):
        await one.wait()
    async with aclosing(Poller()) as another:  # the run continues and can be watched again
        found = another.watch("run", gate=gate, read=server, lifecycle=LIFE, started=server.started)
        assert (await found.wait()).status == "completed"


async def test_a_wait_that_begins_when_the_poller_was_closed_ends(poller: Poller, watch: OpenWatch) -> None:
    one = watch(Server((0, "running")))
    first = asyncio.create_task(one.wait())
    await asyncio.sleep(1)
    poller.close()
    with pytest.raises(SessionClosed):
        await one.wait()
    with pytest.raises(SessionClosed):
        await first


@pytest.mark.parametrize("closed", ["poller", "watch"])
async def test_closing_right_after_a_reading_ends_the_wait(
    poller: Poller, watch: OpenWatch, closed: str
) -> None:
    one = watch(Server((0, "running")))
    waiting = asyncio.create_task(one.wait())
    await settle()
    one.observe(reading("running"))  # wakes the task, which finds no result and continues to wait
    (poller if closed == "poller" else one).close()
    with pytest.raises(SessionClosed):
        await asyncio.wait_for(waiting, 1000)


async def test_a_closed_watch_is_not_polled(watch: OpenWatch) -> None:
    server = Server((0, "running"))
    one = watch(server)
    waiter = asyncio.create_task(one.wait())
    await asyncio.sleep(5)
    one.close()
    with pytest.raises(SessionClosed):
        await waiter
    with pytest.raises(SessionClosed):
        await one.wait()
    polled = len(server.sent)
    await asyncio.sleep(100)
    assert len(server.sent) == polled
    again = watch(server)
    assert again is not one
    assert (await again.refresh()).status == "running"


# Changes


async def test_updates_yields_each_change_once(watch: OpenWatch) -> None:
    server = Server(
        (0, "queued"), (20, "running"), (40, "running:half"), (60, "running:most"), (90, "completed")
    )
    seen = [(update.value, now()) async for update in watch(server).updates()]
    assert [value for value, _ in seen] == ["queued", "running", "running:half", "running:most", "completed"]
    assert all(at - since < 3 for (_, at), (since, _) in zip(seen[1:], server.states[1:], strict=True))


async def test_a_slow_reader_misses_no_change(watch: OpenWatch) -> None:
    server = Server((0, "queued"), (20, "running"), (40, "running:half"), (60, "completed"))
    one = watch(server)
    waiter = asyncio.create_task(one.wait())
    seen = []
    async for update in one.updates():
        seen.append(update.value)
        await asyncio.sleep(500)
    assert seen == ["queued", "running", "running:half", "completed"]
    assert await waiter == update


async def test_an_abandoned_iteration_leaves_no_task_and_no_polls(watch: OpenWatch) -> None:
    server = Server((0, "running"))
    async for _ in watch(server).updates():
        break
    await asyncio.sleep(100)
    assert len(server.sent) == 1
    assert other_tasks() == set()


# Parks


async def test_a_park_ends_the_wait_and_a_decision_resumes_it(watch: OpenWatch) -> None:
    server = Server((0, "running"), (30, "needs_attention"))
    one = watch(server)
    assert (await one.wait()).status == "needs_attention"
    assert (await one.wait()).status == "needs_attention"  # no request, because nothing has changed
    polled = len(server.sent)
    await asyncio.sleep(200)
    assert len(server.sent) == polled
    server.states += [(now(), "running"), (now() + 20, "completed")]
    decided = now()
    one.resumed()
    assert (await one.wait()).status == "completed"
    assert now() - decided < 24


async def test_a_reading_from_before_a_decision_is_ignored(watch: OpenWatch) -> None:
    server = Server((0, "needs_attention"), (25, "running"), (60, "completed"), latency=10.0)
    one = watch(server)
    await one.wait()
    waiter = asyncio.create_task(one.wait(through_parks=True))
    await asyncio.sleep(16)
    assert len(server.sent) == 2
    assert len(server.answered) == 1  # the server has read the status, but its answer is in flight
    server.states[1] = (now(), "running")
    one.resumed()
    assert (await one.wait()).status == "completed"
    assert (await waiter).status == "completed"


async def test_a_wait_through_parks_returns_the_end(watch: OpenWatch) -> None:
    server = Server((0, "running"), (30, "needs_attention"), (600, "running"), (700, "completed"))
    assert (await watch(server).wait(through_parks=True)).status == "completed"
    assert 700 < now() < 712
    parked = [at for at in server.sent if 33 < at < 600]
    assert all(later - earlier >= 10 for earlier, later in pairwise(parked))


async def test_refresh_does_not_wait_for_the_floor_of_a_parked_run(
    watch: OpenWatch,
) -> None:
    one = watch(Server((0, "needs_attention")))
    await one.wait()
    begun = now()
    assert (await one.refresh()).status == "needs_attention"
    assert 1.9 < now() - begun < 3.0


async def test_parked_runs_take_at_most_every_tenth_poll(watch: OpenWatch) -> None:
    parked = [Server((0, "needs_attention")) for _ in range(50)]
    busy = [Server((0, "running")) for _ in range(50)]
    waits = asyncio.gather(
        *(watch(server, f"parked {n}").wait(through_parks=True) for n, server in enumerate(parked)),
        *(watch(server, f"busy {n}").wait() for n, server in enumerate(busy)),
    )
    await asyncio.sleep(1000)
    counted = sum(at > 100 for server in parked for at in server.sent)
    assert 900 / 6.005 * 0.9 <= counted <= 900 / 6.005 + 1
    assert all(len(server.sent) > 1 for server in parked)
    waits.cancel()


async def test_the_same_park_is_a_new_change_after_a_decision(watch: OpenWatch) -> None:
    server = Server((0, "needs_attention"), (100, "completed"))
    one = watch(server)
    changes = one.updates()
    assert (await anext(changes)).status == "needs_attention"
    one.resumed()
    assert (await anext(changes)).status == "needs_attention"
    assert (await anext(changes)).status == "completed"


# Readings of other callers, and refresh


async def test_refresh_returns_a_reading_that_began_after_the_call(watch: OpenWatch) -> None:
    server = Server((0, "running:old"), (2.08, "running:new"), latency=0.1)
    one = watch(server)
    waiter = asyncio.create_task(one.wait())
    await asyncio.sleep(2.09)  # the server has read the status, but its answer is in flight
    refreshed = await one.refresh()
    assert refreshed.progress == "new"
    assert server.sent[1] >= server.answered[0] + 2
    assert now() < 4.3
    waiter.cancel()


async def test_refresh_goes_before_other_polls(watch: OpenWatch) -> None:
    servers = [Server((0, "running")) for _ in range(100)]
    watches = [watch(server, f"run {n}") for n, server in enumerate(servers)]
    waits = asyncio.gather(*(one.wait() for one in watches))
    await asyncio.sleep(200.3)
    asked = now()
    await watches[50].refresh()
    assert now() - asked < LIFE.floor(200) + 2
    waits.cancel()


async def test_an_observed_reading_counts_as_a_poll(watch: OpenWatch) -> None:
    server = Server((0, "running"))
    one = watch(server)
    waiter = asyncio.create_task(one.wait())
    for _ in range(30):
        await asyncio.sleep(1.5)
        one.observe(reading("running:elsewhere"))
    assert server.sent == []
    assert one.latest == reading("running:elsewhere")
    one.observe(reading("completed"))
    assert (await waiter).status == "completed"
    assert server.sent == []


async def test_a_reading_that_began_before_an_observed_one_is_ignored(watch: OpenWatch) -> None:
    server = Server((0, "running"), latency=4.0)
    one = watch(server)
    waiter = asyncio.create_task(one.wait(through_parks=True))
    await asyncio.sleep(5)
    one.observe(reading("needs_attention"))
    await asyncio.sleep(2)
    assert len(server.answered) == 1
    assert one.latest == reading("needs_attention")
    waiter.cancel()


async def test_the_first_read_of_a_run_of_an_earlier_process_waits_for_the_floor(watch: OpenWatch) -> None:
    server = Server((-3000, "running"), (3, "completed"))
    one = watch(server, started=now() - 3000)
    await one.wait()
    assert server.sent == [pytest.approx(25.0)]  # 3000 / 120 s: another process may just have read it


# Other cases


async def test_an_unknown_status_counts_as_active_and_is_logged_once(
    watch: OpenWatch, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [Server((0, "running"), (10, "paused"), (100, "completed")) for _ in range(3)]
    with caplog.at_level(logging.WARNING, "asyncmig"):
        await asyncio.gather(*(watch(server, f"run {n}").wait() for n, server in enumerate(servers)))
    assert [record.getMessage() for record in caplog.records] == [
        "unknown status 'paused': it counts as active, and polling continues"
    ]


async def test_a_run_that_does_not_end_causes_one_event_and_polling_continues(gate: Gate) -> None:
    received, events = list[Event](), Events()
    with events.subscribe(received.append, RunStalled):
        async with aclosing(Poller(events=events)) as poller:
            server = Server((0, "running"), (9000, "completed"))
            one = poller.watch(
                "run", gate=gate, read=server, lifecycle=LIFE, started=now(), event_ids=lambda: {"run": "r"}
            )
            assert (await one.wait()).status == "completed"
    (stalled,) = received
    assert isinstance(stalled, RunStalled)
    assert stalled.ids == {"run": "r"}
    assert 4500 <= stalled.seconds < 4540


async def test_a_park_does_not_count_as_a_stall(gate: Gate) -> None:
    received, events = list[Event](), Events()
    with events.subscribe(received.append, RunStalled):
        async with aclosing(Poller(events=events)) as poller:
            server = Server((0, "running"), (100, "needs_attention"), (9000, "running"), (9100, "completed"))
            one = poller.watch("run", gate=gate, read=server, lifecycle=LIFE, started=now())
            await one.wait(through_parks=True)
    assert received == []


async def test_durations_are_learnt_separately_for_each_group_of_runs(watch: OpenWatch) -> None:
    quick = [Server((0, "running"), (30, "completed")) for _ in range(60)]
    slow = [Server((0, "running"), (3000, "completed")) for _ in range(60)]
    waits = asyncio.gather(
        *(watch(server, f"slow {n}", group="slow").wait() for n, server in enumerate(slow))
    )
    await asyncio.sleep(600)
    for server in quick:
        server.started = now()
    begun = now()
    await asyncio.gather(
        *(watch(server, f"quick {n}", group="quick").wait() for n, server in enumerate(quick))
    )
    assert now() - begun < 100
    await waits


async def test_closing_the_poller_ends_a_read_that_never_answers(gate: Gate) -> None:
    async def read(slot: Slot) -> Reading[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async with aclosing(Poller()) as poller:
        one = poller.watch("run", gate=gate, read=read, lifecycle=LIFE, started=now())
        waiter = asyncio.create_task(one.wait())
        await asyncio.sleep(100)
    await settle()
    assert isinstance(waiter.exception(), SessionClosed)
    assert other_tasks() == set()
