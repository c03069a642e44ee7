"""The send log: a file from which the next process learns what was sent in the last window.

It has one line for each request that was sent, one for each that has ended, and one for each hold. The file is not
synced to disk, because data in the kernel's cache survives a SIGKILL.

A line has two times: that of the wall clock, and that of the clock that counts from boot, with the id of the boot.
Within one boot the second one is used, so that setting the wall clock changes nothing. After a reboot the wall clock
is used; a time in the future counts as now.

Several processes may append to one file. Each write holds a shared lock. A compaction copies the entries that are
still needed to a new file, in a thread and without a lock. Then it takes the exclusive lock, copies the lines that
were appended in the meantime, and renames the new file over the old one. Before each write, a process compares its
open file with the file at the path, and opens the latter if they differ. Only a process that has locked the new file
writes and renames it. The kernel releases the locks of a process that dies. A write waits for the end of a
compaction, but only briefly: while a suspended process holds the lock, lines are kept in memory and written together
with a later line.

A log that cannot be used causes a warning and no error, because without it the next process gets a few 429s at worst.
The same is true of a file that someone else has put at the path (a symbolic link, or a file of another user).
"""

import asyncio
import errno
import logging
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, final

from asyncmig._io.shared_file import boot_id, boot_time, is_at, locked, open_own
from asyncmig._io.threads import begin, wait_ended

__all__ = ["EarlierSlot", "Kind", "SendLog"]

Kind = Literal["sent", "done", "unsent", "held"]
_log = logging.getLogger("asyncmig")
_LARGE = 256 * 1024
"""The size in bytes from which a log is compacted while it is written. After a compaction its size may double."""
_LOOK_EVERY = 64 * 1024
"""Bytes that this process writes between two checks of the file's size."""
_MOST_READ = 8 * 1024 * 1024
"""Bytes that are read at the end of the file. The requests of one window need far less."""
_LONGEST_LINE = 4096
_TRIES = 200
"""The most attempts of a write to take the lock, which a compaction holds for a few milliseconds."""
_REST = 64 * 1024
"""The most bytes that a compaction copies while it holds the lock, unless other processes append faster."""
_COPIES, _TRIES_TO_REPLACE = 10, 20
_DONE_WAITS = 0.1
"""Seconds for which the line about an answer may wait, to be written together with others."""
_TO_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT
_MOST_UNWRITTEN = 10_000
"""The most lines that are kept in memory while they cannot be written."""
_LINE = re.compile(
    r"(sent|done|unsent|held) (\d{1,12}(?:\.\d{1,9})?)\+(\d{1,9}) (\S.*?)(?: #([0-9a-f]{32}))?"
    r"(?: @([0-9a-f]{32})/(\d{1,12}\.\d{1,9}))?"
)
"""The kind, the time, the seconds for which the line is needed, the budget, the slot (unless it is a hold), and on a
system that has them the boot and the seconds since boot."""


class EarlierSlot(NamedTuple):
    """A request of an earlier process."""

    name: str
    age: float
    """Seconds of the loop's clock since the answer; since the send if the log has no answer."""
    is_answered: bool

    def answered_for(self, timeout: float) -> float:
        """Return the least seconds since the answer, which arrives at most `timeout` seconds after the send."""
        return self.age if self.is_answered else max(0.0, self.age - timeout)


class _Entry(NamedTuple):
    kind: str
    budget: str
    at: float
    """The time, as `boot_time` returns it."""
    keep: int
    """Seconds for which the entry is needed."""


_Entries = dict[tuple[str, str], _Entry]
"""By slot (empty for a hold) and budget, because a request may take a slot of several budgets, with one name."""


@final
class SendLog:
    """Writes and reads the send log.

    `timeout`: a request without an answer arrives at most this long after the send, or never, in seconds of the
    loop's clock. That clock runs `speed` times as fast as the wall clock. `clock` returns the loop's time, so that
    times in the log advance even if the wall clock is set back. `threaded`: use the running loop, to compact in a
    thread and to write lines about answers together.
    """

    __slots__ = (
        "_clock",
        "_earlier",
        "_fd",
        "_is_stuck",
        "_large",
        "_path",
        "_speed",
        "_start",
        "_status",
        "_threaded",
        "_timeout",
        "_timer",
        "_unlooked",
        "_unwritten",
        "_warned",
        "_work",
    )

    def __init__(
        self,
        path: Path,
        *,
        speed: float = 1.0,
        timeout: float = 60.0,
        clock: Callable[[], float] | None = None,
        threaded: bool = False,
    ) -> None:
        self._path, self._speed, self._timeout = path, speed, timeout
        self._clock = clock or (lambda: 0.0)
        self._start = boot_time() - self._clock() / speed
        self._earlier: _Entries = {}
        self._fd: int | None = None
        self._status: os.stat_result
        """The status of the open file `_fd` when it was opened."""
        self._large, self._unlooked = _LARGE, 0
        self._is_stuck = self._warned = False
        self._threaded = threaded
        self._work: asyncio.Future[None] | None = None
        """The last compaction that was started in a thread."""
        self._timer: asyncio.TimerHandle | None = None
        """Writes the lines that can wait."""
        self._unwritten: deque[bytes] = deque(maxlen=_MOST_UNWRITTEN)

    def open(self) -> None:
        """Read what earlier processes have sent, and start appending."""
        self._earlier = self._compact()

    def close(self) -> None:
        """Stop appending."""
        self._write()
        self._forget_file()

    async def aclose(self) -> None:
        """Stop appending, and wait until no thread compacts the file."""
        self.close()
        if self._work is not None:
            await wait_ended(self._work)

    def note(self, kind: Kind, budget: str, slot: str, *, window: float = 60.0) -> None:
        """Append that a request was `sent`, is `done`, or was not sent (`unsent`).

        The line is needed for a `window` of the budget after the answer, in seconds of the loop's clock.
        """
        self._append(kind, budget, window + (self._timeout if kind == "sent" else 0.0), slot)

    def hold(self, budget: str, seconds: float) -> None:
        """Append that a budget is held for `seconds` of the loop's clock."""
        self._append("held", budget, seconds, "")

    def held_for(self, budget: str) -> float:
        """Return for how many more seconds of the loop's clock a hold of an earlier process lasts."""
        entry = self._earlier.get(("", budget))
        return 0.0 if entry is None else max(0.0, (entry.at + entry.keep - self._now()) * self._speed)

    def _append(self, kind: Kind, budget: str, seconds: float, slot: str) -> None:
        if not budget.isprintable():
            return  # a line break would corrupt the log
        entry = _Entry(kind, budget, self._now(), int(seconds / self._speed) + 1)
        self._unwritten.append(_line(slot, entry, entry.at))
        if self._threaded and kind == "done":
            # It can wait: without this line, the request would only count as one without an answer.
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_DONE_WAITS, self._write)
        else:
            self._write()

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._flush()
            if (
                self._unlooked > _LOOK_EVERY
                and self._fd is not None
                and (not self._work or self._work.done())
            ):
                self._unlooked = 0
                if os.fstat(self._fd).st_size > self._large:
                    if self._threaded:
                        self._work = begin(self._shrink)
                    else:
                        self._shrink()
        except OSError as error:
            self._warn(error)

    def ages(self) -> dict[str, list[float]]:
        """Return for each budget the least seconds of the loop's clock since the end of each request in the file."""
        try:
            with os.fdopen(open_own(self._path, os.O_RDONLY), "rb") as file:
                now, entries = self._now(), self._read(file, _end_of_lines(file))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._warn(error)
            return {}
        ages: defaultdict[str, list[float]] = defaultdict(list)
        for (name, _), entry in entries.items():
            if entry.kind != "held":
                ages[entry.budget].append(self._slot(name, entry, now).answered_for(self._timeout))
        return dict(ages)

    def earlier(self, budget: str | None = None) -> list[EarlierSlot]:
        """Return the requests of one budget, or of all, that were in the file when it was opened and are needed."""
        now = self._now()
        self._earlier = {slot: entry for slot, entry in self._earlier.items() if now < entry.at + entry.keep}
        return [
            self._slot(name, entry, now)
            for (name, _), entry in self._earlier.items()
            if budget in (None, entry.budget) and entry.kind != "held"
        ]

    def _slot(self, name: str, entry: _Entry, now: float) -> EarlierSlot:
        return EarlierSlot(name, (now - entry.at) * self._speed, entry.kind == "done")

    def _now(self) -> float:
        return max(boot_time(), self._start + self._clock() / self._speed)

    # Reading

    def _read(self, file: IO[bytes], end: int) -> _Entries:
        """Return the entries before `end` that are still needed."""
        now, wall = self._now(), _wall()
        entries: _Entries = {}
        for match in _matches(file, end):
            kind, at, keep, budget, slot, boot, since_boot = match.groups("")
            then = float(since_boot) if boot and boot == _BOOT else now - max(0.0, wall - float(at))
            entry = _Entry(kind, budget, min(then, now), int(keep))
            entries.pop((slot, budget), None)
            if kind != "unsent" and now < entry.at + entry.keep:
                entries[slot, budget] = entry
        return entries

    # Writing

    def _flush(self) -> None:
        """Write the kept lines, unless another process holds the lock."""
        while self._unwritten:
            if self._fd is None:
                self._fd = open_own(self._path, _TO_APPEND)
                self._status = os.fstat(self._fd)
            fd = self._fd
            with locked(fd, exclusively=False, tries=1 if self._is_stuck else _TRIES) as is_locked:
                is_current = is_at(self._status, self._path)
                if is_locked and is_current:
                    data = b"\n" + b"".join(self._unwritten)  # a killed process may have left half a line
                    written = os.write(fd, data)
                    self._unlooked += written
                    if written < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self._unwritten.clear()
            self._is_stuck = is_current and not is_locked
            if self._is_stuck:
                return
            if not is_current:
                self._forget_file()

    def _shrink(self) -> None:
        """Compact the file. Unlike `_compact`, this keeps no entry in memory, also not as the result of a future."""
        self._compact()

    def _compact(self) -> _Entries:
        """Return the entries that are still needed. Remove the others from the file, unless another process does."""
        entries: _Entries = {}
        try:
            with os.fdopen(open_own(self._path, _TO_APPEND), "rb") as old:
                end = _end_of_lines(old)
                entries = self._read(old, end)
                with self._part() as new:
                    if new is not None:
                        for (slot, _), entry in entries.items():
                            new.write(_line(slot, entry, self._now()))
                        old.seek(end)
                        self._replace(old, new)
        except OSError as error:
            self._warn(error)
        return entries

    @contextmanager
    def _part(self) -> Generator[IO[bytes] | None]:
        """Yield an empty file for the compacted log; None while another process writes it."""
        path = self._path.with_name(f"{self._path.name}.part")
        try:
            fd = open_own(path, _TO_APPEND)
        except OSError:
            path.unlink()  # a file of someone else
            fd = open_own(path, _TO_APPEND | os.O_EXCL)
        with os.fdopen(fd, "wb") as file, locked(fd, exclusively=True) as is_locked:
            if not is_locked or not is_at(os.fstat(fd), path):  # another process has just renamed it
                yield None
                return
            try:
                file.truncate(0)  # a killed process may have left it
                yield file
            finally:
                if is_at(os.fstat(fd), path):
                    path.unlink()

    def _replace(self, old: IO[bytes], new: IO[bytes]) -> None:
        """Copy the rest of the old file to the new one, and rename it to the path, unless the old one was
        replaced."""
        for _ in range(_COPIES):
            if _copy(old, new) <= _REST:
                break
        with locked(old.fileno(), exclusively=True, tries=_TRIES_TO_REPLACE) as is_locked:
            if not is_locked or not is_at(os.fstat(old.fileno()), self._path):
                return
            _copy(old, new)
            new.flush()
            self._large = max(_LARGE, 2 * new.tell())
            self._path.with_name(f"{self._path.name}.part").replace(self._path)

    def _forget_file(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _warn(self, error: OSError) -> None:
        """Warn once that the log cannot be used."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: the send log cannot be used (%s); the next process will not know what this one sent",
                self._path,
                error.strerror or error,
            )


_BOOT = boot_id()


def _wall() -> float:
    return time.time()  # noqa: TID251 - it must have the same meaning in the next process


def _line(slot: str, entry: _Entry, now: float) -> bytes:
    name = f" #{slot}" if slot else ""
    boot = f" @{_BOOT}/{entry.at:.3f}" if _BOOT is not None and entry.at >= 0 else ""
    at = max(0.0, _wall() - (now - entry.at))
    return f"{entry.kind} {at:.3f}+{entry.keep} {entry.budget}{name}{boot}\n".encode()


def _end_of_lines(file: IO[bytes]) -> int:
    """Return where the complete lines of a file end; another process may be writing the next one."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _LONGEST_LINE))
    last = file.read(min(size, _LONGEST_LINE))
    return size - len(last) + last.rfind(b"\n") + 1 if b"\n" in last else size


def _matches(file: IO[bytes], end: int) -> Iterator[re.Match[str]]:
    """Yield the valid lines before `end`; of a large file only the last ones."""
    left = min(end, _MOST_READ)
    file.seek(end - left)
    while left > 0 and (line := file.readline(min(_LONGEST_LINE, left))):
        left -= len(line)
        match = _LINE.fullmatch(line.decode("utf-8", "surrogateescape").rstrip("\n"))
        if match is not None and match[4].isprintable() and (match[1] == "held") != (match[5] is not None):
            yield match


def _copy(old: IO[bytes], new: IO[bytes]) -> int:
    """Copy the bytes from the present position to the end; return their number."""
    size = 0
    while chunk := old.read(_REST):
        size += new.write(chunk)
    return size
