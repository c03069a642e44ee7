"""A shared window for the processes of one user on one host, without a server: a file for each budget.

    async with asyncmig.Session(shared="local") as session:
        ...

The files are in the user's runtime folder. A file has the state of a limiter and the slots that are unanswered. Each
exchange locks its file, changes the state and writes it; the kernel releases the lock of a process that dies. A slot
that its process never answers is free `timeout` plus one window after it was taken. While a stopped process holds a
lock, the others continue with their share, as with an unavailable Redis. Times are on the clock that counts from
boot.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import cast, final
from uuid import uuid4

from asyncmig._core.limiter import Limiter
from asyncmig.distributed.budget_store import BudgetReply, BudgetStore, SlotReport

__all__ = ["LocalWindow"]

_RECHECK = 0.25
"""Seconds until an answer to another process may allow a request."""
_TRIES, _PAUSE = 100, 0.005
"""The most attempts to take the lock, and the real seconds between them."""
_FORGOTTEN = 300.0
"""Seconds after which a process that asks no more does not count as one."""


def _folder() -> Path:
    """Return the user's folder for files of running processes."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "asyncmig" if runtime else Path(tempfile.gettempdir(), f"asyncmig-{os.getuid()}")


@final
class LocalWindow:
    """Keeps a session's budgets in files of this host. `processes`: the number to assume before one is known."""

    __slots__ = ("_client", "_folder", "processes")

    def __init__(self, *, processes: int = 4, folder: Path | None = None) -> None:
        self.processes: int = processes
        self._client, self._folder = uuid4().hex, folder or _folder()

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the store of one budget; see `asyncmig.distributed.budget_store.SharedWindow`."""
        digest = hashlib.sha256(f"{account}\0{name}\0{speed:g}\0{window:g}".encode()).hexdigest()[:32]
        path = self._folder / f"{digest}.budget"
        return _LocalBudget(path, self._client, limit=limit, window=window, timeout=timeout, speed=speed)

    async def aclose(self) -> None:
        """Do nothing: no file stays open."""


@final
class _LocalBudget:
    """One budget in one file."""

    __slots__ = ("_client", "_limit", "_path", "_speed", "_timeout", "_window")

    def __init__(
        self, path: Path, client: str, *, limit: int, window: float, timeout: float, speed: float
    ) -> None:
        self._path, self._client = path, client
        self._limit, self._window, self._timeout, self._speed = limit, window, timeout, speed

    async def exchange(self, reports: Sequence[SlotReport], want: str | None) -> BudgetReply:
        """Apply `reports` and ask for a slot. Raises `OSError` if the file cannot be locked, read or written."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise PermissionError(f"{self._path} belongs to another user")
            await self._lock(fd)
            with os.fdopen(fd, "r+b", closefd=False, buffering=0) as file:
                now = time.clock_gettime(time.CLOCK_BOOTTIME) * self._speed
                state = _State(self._limit, self._window, file.readall(), now)
                reply = self._apply(state, reports, want, now)
                data = state.text()
                file.seek(0)
                file.write(data)
                file.truncate(len(data))
            return reply
        finally:
            os.close(fd)  # releases the lock, too

    async def _lock(self, fd: int) -> None:
        for _ in range(_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await asyncio.sleep(_PAUSE * self._speed)
        raise TimeoutError(f"another process holds the lock of {self._path}")

    def _apply(
        self, state: "_State", reports: Sequence[SlotReport], want: str | None, now: float
    ) -> BudgetReply:
        limiter = state.limiter
        for slot, sent_at in list(state.taken.items()):
            if sent_at + self._timeout <= now:  # its process died, or was stopped
                del state.taken[slot]
                limiter.lost(now, sent_at=sent_at)
        for report in reports:
            state.hear(report, now)
        state.clients[self._client] = now
        state.clients = {each: at for each, at in state.clients.items() if at > now - _FORGOTTEN}
        at = limiter.next_at(now)
        granted = want is not None and at is not None and at <= now
        if granted and want is not None:
            limiter.take(now)
            state.taken[want] = now
        return BudgetReply(
            granted=granted,
            wait=_RECHECK if at is None else max(0.0, at - now),
            slots=limiter.slots,
            burst=limiter.burst,
            used=limiter.used(now),
            clients=len(state.clients),
            held=max(0.0, limiter.held_until - now),
        )


@final
class _State:
    """The contents of a file. A file that a killed process has left incomplete counts as a full window."""

    __slots__ = ("clients", "known", "limiter", "taken")

    def __init__(self, limit: int, window: float, data: bytes, now: float) -> None:
        self.limiter = Limiter(limit=limit, window=window, rng=Random())
        self.taken: dict[str, float] = {}
        """When each unanswered slot was taken."""
        self.known: dict[str, float] = {}
        """Answered slots, which a process may report again."""
        self.clients: dict[str, float] = {}
        if not data:
            return
        try:
            saved = cast("dict[str, dict[str, float]]", json.loads(data))
            self.limiter.load(cast("dict[str, object]", saved["limiter"]))
            self.taken, self.known, self.clients = saved["taken"], saved["known"], saved["clients"]
        except (ValueError, KeyError, TypeError):
            self.limiter.resume([0.0] * limit, now)

    def text(self) -> bytes:
        saved = {
            "limiter": self.limiter.dump(),
            "taken": self.taken,
            "known": self.known,
            "clients": self.clients,
        }
        return json.dumps(saved).encode()

    def hear(self, report: SlotReport, now: float) -> None:
        """Take one report into account."""
        limiter, slot = self.limiter, report.slot
        if report.event == "limited":
            if int(report.seconds) != limiter.limit:
                limiter.resize(int(report.seconds))
            return
        sent_at = self.taken.pop(slot, None)
        if sent_at is None:
            self._hear_again(report, now)
        elif report.event == "sent_before":
            self.taken[slot] = sent_at
        elif report.event == "unsent":
            limiter.unsent(now, sent_at=sent_at)
        else:
            self._note(slot, now)
            if report.event == "rejected":
                limiter.rejected(now, sent_at=sent_at, retry_after=report.seconds or None)
            elif report.event == "lost":
                limiter.lost(now, sent_at=sent_at)
            else:
                limiter.accepted(now, sent_at=sent_at)

    def _hear_again(self, report: SlotReport, now: float) -> None:
        if report.event == "answered_before" and report.slot not in self.known:
            self._note(report.slot, now)
            self.limiter.resume([report.seconds], now)
        elif report.event == "sent_before":
            self.limiter.take(now)
            self.taken[report.slot] = now

    def _note(self, slot: str, now: float) -> None:
        self.known[slot] = now
        oldest = now - self.limiter.window - 60.0
        self.known = {each: at for each, at in self.known.items() if at > oldest}
