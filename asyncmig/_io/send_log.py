"""The send log: a file from which the next process learns what was sent in the last window.

It has one line for each request that was sent, one for each that is over, and one for each hold. Nothing is synced to
disk: data in the kernel's cache survives a SIGKILL.

A line has the time of the wall clock, and that of the clock which counts from boot, with the id of the boot. Within
one boot the latter counts, so that setting the wall clock changes nothing. After a reboot the wall clock counts; a
time in the future counts as now.

Several processes may append to one file. Each write holds a shared lock. A compaction takes the exclusive lock,
copies the entries that still matter to a new file and renames that over the old one. Before each write, a process
compares its open file with the path and opens the new one if they differ. The kernel releases the locks of a
process that dies. A write waits briefly for a compaction; while a stopped process holds the lock, lines are kept
in memory and written together with a later line.

The log is an aid: without it the next process may get some 429s. A log that cannot be used is therefore a warning and
not an error, and so is a file that someone else has put there (a symbolic link, or a file of another user).
"""

import errno
import logging
import os
import re
import stat
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, final

__all__ = ["EarlierSlot", "Kind", "SendLog"]

Kind = Literal["sent", "done", "unsent", "held"]
_log = logging.getLogger("asyncmig")
_LARGE = 256 * 1024
"""The size in bytes at which a log is compacted during writing; after that it may double."""
_LOOK_EVERY = 64 * 1024
"""Bytes that this process writes between two checks of the size."""
_MOST_READ = 8 * 1024 * 1024
"""Bytes that are read from the end of the file: far more than any limit allows in a window."""
_LONGEST_LINE = 4096
_TRIES, _PAUSE = 100, 0.002
"""The most attempts to take the lock, and the real seconds between them. A compaction takes a few milliseconds."""
_MOST_UNWRITTEN = 10_000
"""The most lines that are kept in memory while they cannot be written."""
_LINE = re.compile(
    r"(sent|done|unsent|held) (\d{1,12}(?:\.\d{1,9})?)(?:\+(\d{1,9}))? (\S.*?)(?: #([0-9a-f]{32}))?"
    r"(?: @([0-9a-f]{32})/(\d{1,12}\.\d{1,9}))?"
)
"""What happened, when, for how many seconds that matters, the budget, the slot, the boot, seconds since the boot. Old
versions wrote neither the boot nor the seconds that matter.
"""
_NAME = re.compile("[0-9a-f]{32}")
_SAFELY = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))


class EarlierSlot(NamedTuple):
    """A request of an earlier process."""

    name: str
    age: float
    """Seconds of the loop's clock since it was answered; since it was sent if the log has no answer."""
    is_answered: bool

    def answered_for(self, timeout: float) -> float:
        """Return the least seconds since its answer. No answer comes later than `timeout` seconds after the send."""
        return self.age if self.is_answered else max(0.0, self.age - timeout)


class _Entry(NamedTuple):
    kind: str
    budget: str
    at: float
    """On the clock that counts from boot; on the wall clock where there is none."""
    keep: int


_Entries = dict[tuple[str, str], _Entry]
"""By slot and budget: a request may take a slot of several budgets, under one name."""


@final
class SendLog:
    """Writes and reads the send log.

    A request matters for one window after its answer; `window` is that of budgets that name none. A request without
    an answer has arrived at most `timeout` seconds after it was sent, or never. Both are seconds on the loop's clock,
    which runs `speed` times as fast as the
    wall clock. `clock` returns the loop's time, so that times in the log advance even if the wall clock is set back.
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
        "_timeout",
        "_unlooked",
        "_unwritten",
        "_warned",
        "_window",
    )

    def __init__(
        self,
        path: Path,
        *,
        speed: float = 1.0,
        window: float = 60.0,
        timeout: float = 60.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._path, self._speed, self._window, self._timeout = path, speed, window, timeout
        self._clock = clock or (lambda: 0.0)
        self._start = _boot_time() - self._clock() / speed
        self._earlier: _Entries = {}
        self._fd: int | None = None
        self._large, self._unlooked = _LARGE, 0
        self._is_stuck = self._warned = False
        self._unwritten: deque[bytes] = deque(maxlen=_MOST_UNWRITTEN)

    def open(self) -> None:
        """Read what earlier processes have sent, and start appending."""
        with self._trouble():
            self._earlier = self._compact(self._current())

    def close(self) -> None:
        """Stop appending."""
        with self._trouble():
            self._flush()
        self._forget_file()

    def note(self, kind: Kind, budget: str, slot: str = "", *, window: float | None = None) -> None:
        """Append that a request was `sent`, is `done`, or was `unsent` after all. `window`: that of the budget."""
        if not budget.isprintable():
            return  # a line break would corrupt the log
        self._append(_Entry(kind, budget, self._now(), self._keep(kind, window or self._window)), slot)

    def hold(self, budget: str, seconds: float) -> None:
        """Append that a budget is held for so many seconds of the loop's clock."""
        if budget.isprintable():
            self._append(_Entry("held", budget, self._now(), int(seconds / self._speed) + 1), "")

    def held_for(self, budget: str) -> float:
        """Return for how many seconds of the loop's clock a hold of an earlier process goes on."""
        entry = self._earlier.get(("", budget))
        return 0.0 if entry is None else max(0.0, (entry.at + entry.keep - self._now()) * self._speed)

    def _append(self, entry: _Entry, slot: str) -> None:
        self._unwritten.append(_line(slot, entry, self._now()))
        with self._trouble():
            self._flush()
            if self._unlooked > _LOOK_EVERY:
                self._unlooked = 0
                if os.fstat(fd := self._current()).st_size > self._large:
                    self._compact(fd)

    def ages(self) -> dict[str, list[float]]:
        """Return, by budget, the least seconds on the loop's clock since each request in the file was over."""
        ages: defaultdict[str, list[float]] = defaultdict(list)
        with self._trouble(), suppress(FileNotFoundError):
            fd = _opened(self._path, os.O_RDONLY)
            try:
                now, entries = self._now(), self._read(fd)
            finally:
                os.close(fd)
            for (name, _), entry in entries.items():
                if entry.kind == "held":
                    continue
                ages[entry.budget].append(self._slot(name, entry, now).answered_for(self._timeout))
        return dict(ages)

    def earlier(self, budget: str | None = None) -> list[EarlierSlot]:
        """Return the requests that were in the file when it was opened and still matter, of one budget or of all."""
        now = self._now()
        self._earlier = {slot: entry for slot, entry in self._earlier.items() if now < entry.at + entry.keep}
        return [
            self._slot(name, entry, now)
            for (name, _), entry in self._earlier.items()
            if budget in (None, entry.budget) and entry.kind != "held"
        ]

    def _slot(self, name: str, entry: _Entry, now: float) -> EarlierSlot:
        return EarlierSlot(name, (now - entry.at) * self._speed, entry.kind == "done")

    def _keep(self, kind: str, window: float) -> int:
        """Return for how many seconds of the wall clock a line matters."""
        return int((window + (self._timeout if kind == "sent" else 0.0)) / self._speed) + 1

    def _now(self) -> float:
        return max(_boot_time(), self._start + self._clock() / self._speed)

    # Reading

    def _read(self, fd: int) -> _Entries:
        """Return the entries that still matter."""
        now, wall = self._now(), _wall()
        entries: _Entries = {}
        nameless: defaultdict[str, deque[tuple[float, str]]] = defaultdict(deque)
        for number, match in enumerate(_matches(fd)):
            kind, at, keep, budget, slot, boot, since_boot = match.groups()
            keep = int(keep or self._keep(kind, self._window))
            then = float(since_boot) if boot == _BOOT else now - max(0.0, wall - float(at))
            entry = _Entry(kind, budget, min(then, now), keep)
            if kind == "held":
                slot = ""
            elif slot is None:
                slot, others = f"{number} {at} {budget}", nameless[budget]
                if kind == "sent":
                    others.append((entry.at, slot))
                elif others and others[0][0] <= entry.at:
                    slot = others.popleft()[1]
            entries.pop((slot, budget), None)
            if kind != "unsent" and now < entry.at + entry.keep:
                entries[slot, budget] = entry
        return entries

    # Writing

    def _flush(self) -> None:
        """Write the kept lines, unless another process holds the lock."""
        while self._unwritten:
            fd = self._current()
            with _locked(fd, exclusively=False, tries=1 if self._is_stuck else _TRIES) as locked:
                self._is_stuck = not locked
                if not locked:
                    return
                if not self._is_current(fd):
                    continue
                data = b"\n" + b"".join(self._unwritten)  # a killed process may have left half a line
                written = os.write(fd, data)
                self._unlooked += written
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._unwritten.clear()

    def _compact(self, fd: int) -> _Entries:
        """Return the entries that still matter; remove the others from the file unless another process is writing."""
        with _locked(fd, exclusively=True) as locked:
            entries = self._read(fd)
            new = self._rewritten(entries) if locked and self._is_current(fd) else None
        if new is not None:
            self._forget_file()
            self._fd = new
        return entries

    def _rewritten(self, entries: _Entries) -> int:
        """Replace the file by one with `entries`, and return it open."""
        part = self._path.with_name(f"{self._path.name}.part")
        with suppress(FileNotFoundError):
            part.unlink()  # left by a killed process; only the holder of the lock writes it
        new = _opened(part, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(new, "wb", closefd=False) as file:
                for (slot, _), entry in entries.items():
                    file.write(_line(slot, entry, self._now()))
                self._large = max(_LARGE, 2 * file.tell())
            part.replace(self._path)
        except BaseException:
            os.close(new)
            raise
        return new

    def _current(self) -> int:
        """Return the open file, after a compaction the new one."""
        if self._fd is not None and not self._is_current(self._fd):
            self._forget_file()
        if self._fd is None:
            self._fd = _opened(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        return self._fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _forget_file(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    @contextmanager
    def _trouble(self) -> Generator[None]:
        """Warn once that the log cannot be used."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "%s: the send log cannot be used (%s); the next process will not know what this one sent",
                    self._path,
                    error.strerror or error,
                )


def _wall() -> float:
    return time.time()  # noqa: TID251 - it must mean the same to the next process


def _boot_id() -> str | None:
    """Return the id of this boot; None on a system without one, or without a clock that counts from boot."""
    try:
        time.clock_gettime(time.CLOCK_BOOTTIME)
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    except (AttributeError, OSError, ValueError):
        return None


_BOOT = _boot_id()


def _boot_time() -> float:
    """Return the seconds since boot, time asleep included; the wall clock where there is no such clock."""
    return _wall() if _BOOT is None else time.clock_gettime(time.CLOCK_BOOTTIME)


def _line(slot: str, entry: _Entry, now: float) -> bytes:
    name = f" #{slot}" if _NAME.fullmatch(slot) else ""
    boot = f" @{_BOOT}/{entry.at:.3f}" if _BOOT is not None and entry.at >= 0 else ""
    at = max(0.0, _wall() - (now - entry.at))
    return f"{entry.kind} {at:.3f}+{entry.keep} {entry.budget}{name}{boot}\n".encode()


def _matches(fd: int) -> Iterator[re.Match[str]]:
    """Yield the complete lines, of a large file only those at its end; skip everything else."""
    with os.fdopen(fd, "rb", closefd=False) as file:
        file.seek(max(0, os.fstat(fd).st_size - _MOST_READ))
        while line := file.readline(_LONGEST_LINE):
            match = _LINE.fullmatch(line.decode("utf-8", "surrogateescape").rstrip("\n"))
            if match is not None and match[4].isprintable():
                yield match


def _opened(path: Path, flags: int) -> int:
    """Open a regular file that only we own; raise `OSError` for anything else at this path."""
    fd = os.open(path, flags | _SAFELY, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EINVAL, "it is not a file of its own")
        if sys.platform != "win32":
            if found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it belongs to another user")
            if found.st_mode & 0o077:
                os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


if sys.platform == "win32":

    @contextmanager
    def _locked(fd: int, *, exclusively: bool, tries: int = 1) -> Generator[bool]:
        yield not exclusively  # on such a system an open file cannot be replaced

else:
    import fcntl

    @contextmanager
    def _locked(fd: int, *, exclusively: bool, tries: int = 1) -> Generator[bool]:
        """Yield whether the file is locked."""
        how = fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)
        for _ in range(tries):
            try:
                fcntl.flock(fd, how)
                break
            except BlockingIOError:
                time.sleep(_PAUSE * (tries > 1))
            except OSError:  # no locks on this file system: processes append and never compact
                yield not exclusively
                return
        else:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
