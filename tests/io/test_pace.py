"""Bytes a second, for everybody together."""

import asyncio

import pytest

from asyncmig import InvalidInput
from asyncmig.transfers.content import ByteThrottle

pytestmark = pytest.mark.looptime


async def send(pace: ByteThrottle, amount: int, done: list[float] | None = None) -> None:
    while amount:
        part = min(pace.slice, amount)
        await pace.take(part)
        amount -= part
    if done is not None:
        done.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("rate", [3.0, 1_000.0, 1_048_576.0])
async def test_the_rate_is_kept_and_used(rate: float) -> None:
    pace = ByteThrottle(rate)
    await send(pace, int(rate * 20))
    took = asyncio.get_running_loop().time()
    assert 19.0 <= took <= 20.5  # half a second's worth may go at once


async def test_who_sends_at_the_same_time_shares_it_alike() -> None:
    pace, done = ByteThrottle(8_000.0), list[float]()
    await asyncio.gather(*(send(pace, 16_000, done) for _ in range(4)))
    assert done[-1] == pytest.approx(8.0, abs=0.6)
    assert done[-1] - done[0] < 2.1  # the first one had the burst; otherwise they take turns


async def test_who_is_cancelled_keeps_nobody_waiting() -> None:
    pace = ByteThrottle(1_000.0)
    first, second = (asyncio.create_task(send(pace, 10_000)) for _ in range(2))
    await asyncio.sleep(1.0)
    first.cancel()
    await second
    assert asyncio.get_running_loop().time() == pytest.approx(10.7, abs=0.3)


@pytest.mark.parametrize("rate", [0.0, -5.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InvalidInput, match="upload_bytes_per_second"):
        ByteThrottle(rate)
