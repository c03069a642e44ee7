"""What is written behind the caller's back is written, or said, and never outlives its block."""

import asyncio
import io
import threading
from pathlib import Path

import pytest

from asyncmig._io.threads import WriteBehind

MIB = 1024 * 1024


class Slow(io.BytesIO):
    """Writes when it is allowed to."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.go, self.error = threading.Event(), error

    def writelines(self, lines: object, /) -> None:
        assert self.go.wait(10.0)
        if self.error:
            raise self.error
        super().writelines(lines)  # type: ignore[arg-type]


async def test_chunks_are_written_in_their_order(tmp_path: Path) -> None:
    chunks = [bytes([n]) * (100_000 + n) for n in range(50)]
    with (tmp_path / "file").open("wb") as file:
        async with WriteBehind(file) as behind:
            for chunk in chunks:
                await behind.write(chunk)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)


async def test_the_caller_goes_on_while_a_batch_is_written() -> None:
    file = Slow()
    async with WriteBehind(file) as behind:
        await behind.write(bytes(MIB))
        await behind.write(bytes(MIB - 1))
        waits = asyncio.ensure_future(behind.write(b"x"))
        await asyncio.sleep(0.01)
        assert not waits.done()  # no more than that is kept in memory
        file.go.set()
        await waits
    assert len(file.getvalue()) == 2 * MIB


async def write(file: Slow, *sizes: int, error: Exception | None = None) -> None:
    async with WriteBehind(file) as behind:
        for size in sizes:
            await behind.write(bytes(size))
        if error is not None:
            raise error


@pytest.mark.parametrize("sizes", [(1,), (MIB,), (MIB, MIB), (MIB, 1)])
async def test_what_goes_wrong_is_raised_by_a_later_write_or_at_the_end(sizes: tuple[int, ...]) -> None:
    file = Slow(OSError(28, "No space left on device"))
    file.go.set()
    with pytest.raises(OSError, match="No space"):
        await write(
            file, *sizes, error=KeyError("not reached") if len(sizes) == 2 and sizes[1] == MIB else None
        )


async def test_leaving_waits_for_the_thread_whoever_cancels() -> None:
    file, left = Slow(), []

    async def never_done() -> None:
        try:
            async with WriteBehind(file) as behind:
                await behind.write(bytes(MIB))
                await asyncio.sleep(3600)
        finally:
            left.append(len(file.getvalue()))

    task = asyncio.create_task(never_done())
    await asyncio.sleep(0.01)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not left
    file.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == [MIB]


async def test_an_error_of_the_block_is_not_hidden_by_one_of_the_disk() -> None:
    file = Slow(OSError(28, "No space left on device"))
    file.go.set()
    with pytest.raises(KeyError):
        await write(file, MIB, error=KeyError("mine"))
