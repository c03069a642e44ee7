"""`WriteBehind` writes all data in a thread, raises the errors of the thread, and waits for it at the end."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from asyncmig._io.threads import WriteBehind, write_all

BATCH = 2 * 1024 * 1024


class SlowPipe:
    """A pipe whose writes block until `start_reading` is called."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.file: IO[bytes] = os.fdopen(write, "wb", buffering=0)
        self._end: IO[bytes] = os.fdopen(read, "rb")
        self._reader = threading.Thread(target=self._read)
        self.size = 0

    def _read(self) -> None:
        with self._end:
            while chunk := self._end.read1():
                self.size += len(chunk)

    def start_reading(self) -> None:
        self._reader.start()

    def close(self) -> None:
        """Close the pipe, and wait until all data was read."""
        self.file.close()
        self._reader.join(10.0)


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    """A file on a disk without free space."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        yield file


async def test_chunks_are_written_in_their_order(tmp_path: Path) -> None:
    chunks = [bytes([n]) * (100_000 + n) for n in range(50)] + [bytes(3 * BATCH), b"", b"x"]
    with (tmp_path / "file").open("wb", buffering=0) as file:
        async with WriteBehind(file) as behind:
            for chunk in chunks:
                await behind.write(chunk)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)


async def test_the_caller_continues_while_a_batch_is_written() -> None:
    slow = SlowPipe()
    async with WriteBehind(slow.file) as behind:
        await behind.write(bytes(BATCH))
        await behind.write(bytes(BATCH - 1))
        waits = asyncio.ensure_future(behind.write(b"x"))
        await asyncio.sleep(0.01)
        assert not waits.done()  # at most two batches are in memory
        slow.start_reading()
        await waits
    slow.close()
    assert slow.size == 2 * BATCH


async def write(file: IO[bytes], *sizes: int, error: Exception | None = None) -> None:
    async with WriteBehind(file) as behind:
        for size in sizes:
            await behind.write(bytes(size))
        if error is not None:
            raise error


@pytest.mark.parametrize("sizes", [(1,), (BATCH,), (BATCH, BATCH), (BATCH, 1)])
async def test_an_error_of_a_write_is_raised_by_a_later_write_or_at_the_end(
    full: IO[bytes], sizes: tuple[int, ...]
) -> None:
    with pytest.raises(OSError, match="No space"):
        await write(full, *sizes, error=KeyError("not reached") if sizes == (BATCH, BATCH) else None)


async def test_leaving_the_block_waits_for_the_thread_despite_cancellations() -> None:
    slow, left = SlowPipe(), asyncio.Event()

    async def never_done() -> None:
        try:
            async with WriteBehind(slow.file) as behind:
                await behind.write(bytes(BATCH))
                await asyncio.sleep(3600)
        finally:
            left.set()

    task = asyncio.create_task(never_done())
    await asyncio.sleep(0.01)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not left.is_set()
    slow.start_reading()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.close()
    assert slow.size == BATCH


async def test_an_error_of_the_block_is_not_replaced_by_an_error_of_the_disk(full: IO[bytes]) -> None:
    with pytest.raises(KeyError):
        await write(full, BATCH, error=KeyError("mine"))


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 2500])
def test_all_data_is_written_if_the_system_writes_only_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    def writev(descriptor: int, pieces: Sequence[bytes]) -> int:
        assert len(pieces) <= 1024
        return os.write(descriptor, b"".join(pieces)[:taken])

    monkeypatch.setattr(os, "writev", writev)
    chunks = [bytes([n % 251]) * 4 for n in range(2500)] + [b""]
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_all(file, chunks)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)
