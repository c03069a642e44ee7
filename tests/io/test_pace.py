"""The limit of bytes per second that all uploads share."""

import asyncio

import pytest

from asyncmig import InvalidInput
from asyncmig.transfers.content import ByteThrottle

pytestmark = pytest.mark.looptime


async def send(throttle: ByteThrottle, amount: int, done: list[float] | None = None) -> None:
    while amount:
        part = min(throttle.slice, amount)
        await throttle.take(part)
        amount -= part
    if done is not None:
        done.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("rate", [3.0, 1_000.0, 1_048_576.0])
async def test_an_upload_keeps_and_uses_the_rate(rate: float) -> None:
    throttle = ByteThrottle(rate)
    await send(throttle, int(rate * 20))
    took = asyncio.get_running_loop().time()
    assert 19.0 <= took <= 20.5  # the bytes of half a second may be sent at once


async def test_concurrent_uploads_share_the_rate_equally() -> None:
    throttle, done = ByteThrottle(8_000.0), list[float]()
    await asyncio.gather(*(send(throttle, 16_000, done) for _ in range(4)))
    assert done[-1] == pytest.approx(8.0, abs=0.6)
    assert done[-1] - done[0] < 2.1  # only the first upload used the burst


async def test_a_cancelled_upload_does_not_delay_another_one() -> None:
    throttle = ByteThrottle(1_000.0)
    first, second = (asyncio.create_task(send(throttle, 10_000)) for _ in range(2))
    await asyncio.sleep(1.0)
    first.cancel()
    await second
    assert asyncio.get_running_loop().time() == pytest.approx(10.7, abs=0.3)


@pytest.mark.parametrize("rate", [0.0, -5.0, float("nan"), float("inf")])
def test_an_invalid_rate_is_refused(rate: float) -> None:
    with pytest.raises(InvalidInput, match="upload_bytes_per_second"):
        ByteThrottle(rate)
