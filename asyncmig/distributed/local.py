"""A shared window for the processes of one user on one host, without a server: a file for each budget.

    async with asyncmig.Session(shared="local") as session:
        ...

The files are in the user's runtime folder. A file contains the state of a limiter, and the slots without an answer.
Each exchange locks the files of its budgets in the order of their names, changes the states, and writes them. The
kernel releases the locks of a process that dies. A slot for which its process reports no result is free `timeout`
plus one window after it was taken. While a suspended process holds a lock, the others continue with their share, as
with an unavailable Redis. Times are on the clock that counts from boot, so each boot has its own files.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from random import Random
from typing import cast, final
from uuid import uuid4

from asyncmig._core.limiter import Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig._core.run_table import Reach, RunStore
from asyncmig._io.shared_file import boot_id, boot_time, open_own
from asyncmig.distributed.budget_store import BudgetReply, BudgetStore, SharedBudget, SlotReport, name_of_set

__all__ = ["LocalWindow"]

_RECHECK = 0.25
"""Seconds until another attempt, if the next slot depends on an answer to another process."""
_TRIES, _PAUSE = 100, 0.005
"""The most attempts to take the lock, and the real seconds between them."""
_SILENT = 300.0
"""Seconds without an exchange after which a process is not counted any more."""


def _folder() -> Path:
    """Return the user's folder for files of running processes."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "asyncmig" if runtime else Path(tempfile.gettempdir(), f"asyncmig-{os.getuid()}")


@final
class LocalWindow:
    """Keeps a session's budgets in files of this host.

    `processes`: the number of processes to assume before one is known. `folder`: for the files; by default the user's
    runtime folder.
    """

    __slots__ = ("_boot", "_client", "_folder", "processes")

    def __init__(self, *, processes: int = 4, folder: Path | None = None) -> None:
        self.processes: int = processes
        self._client, self._folder, self._boot = uuid4().hex, folder or _folder(), boot_id() or ""

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> BudgetStore:
        """Return budgets that are charged together; see `asyncmig.distributed.budget_store.SharedWindow`."""
        paths = [
            self._path(f"{account}\0{each.name}\0{speed:g}\0{each.window:g}", "budget") for each in budgets
        ]
        return _LocalBudgets(paths, budgets, self._client, timeout, speed)

    def runs(self, account: str) -> RunStore:
        """Return the run slots of an account; see `asyncmig.distributed.budget_store.SharedWindow`."""
        return _LocalRuns(lambda speed: self._path(f"{account}\0{speed:g}", "runs"))

    def _path(self, name: str, suffix: str) -> Path:
        digest = hashlib.sha256(f"{self._boot}\0{name}".encode()).hexdigest()[:32]
        return self._folder / f"{digest}.{suffix}"

    async def aclose(self) -> None:
        """Do nothing: no file stays open."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class _LocalBudgets:
    """Budgets that are charged together, each in one file."""

    paths: Sequence[Path]
    budgets: Sequence[SharedBudget]
    client: str
    timeout: float
    speed: float

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        """Apply `reports` and ask for a slot. Raises `OSError` if a file cannot be locked, read or written."""
        async with AsyncExitStack() as locked:
            files = {
                path: await locked.enter_async_context(_locked(path, self.speed))
                for path in sorted(self.paths)
            }
            now = _now(self.speed)
            states = [
                _State(budget.limit, budget.window, files[path].readall(), now)
                for path, budget in zip(self.paths, self.budgets, strict=True)
            ]
            for state, each in zip(states, reports, strict=True):
                state.advance(each, self.client, now, timeout=self.timeout)
            held = states[0].holds.get(name_of_set(self.budgets), now)
            free_at = [state.limiter.next_at(now) for state in states]
            times = [None if at is None else max(at, held) for at in free_at]
            granted = want is not None and all(at is not None and at <= now for at in times)
            if granted and want is not None:
                for state in states:
                    state.take(want, now)
            for path, state in zip(self.paths, states, strict=True):
                _replace(files[path], state.dump())
        return [
            BudgetReply(
                granted=granted,
                wait=_RECHECK if at is None else max(0.0, at - now),
                slots=state.limiter.slots,
                burst=state.limiter.burst,
                used=state.limiter.used(now),
                clients=len(state.clients),
                held=max(0.0, state.limiter.held_until - now),
            )
            for state, at in zip(states, times, strict=True)
        ]


@final
@dataclass(frozen=True, slots=True, eq=False)
class _LocalRuns:
    """The run slots of an account in one file."""

    path: Callable[[float], Path]
    """Returns the file for a speed of the event loop."""
    reach: Reach = "host"

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        """Replace the state; see `asyncmig._core.run_table.RunStore`. Raises `OSError`."""
        async with _locked(self.path(speed), speed) as file:
            old = file.readall()
            new = change(old, _now(speed))
            if new != old:
                _replace(file, new)


def _now(speed: float) -> float:
    return boot_time() * speed


@asynccontextmanager
async def _locked(path: Path, speed: float) -> AsyncGenerator[FileIO]:
    """Open and lock a file of this user; create it if it does not exist. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = open_own(path, os.O_RDWR | os.O_CREAT)
    with FileIO(fd, "r+") as file:  # closing it releases the lock
        for _ in range(_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_PAUSE * speed)
        else:
            raise TimeoutError(f"another process holds the lock of {path}")
        yield file


def _replace(file: FileIO, data: bytes) -> None:
    """Replace the contents of a locked file. If the process is killed meanwhile, the file is incomplete."""
    file.seek(0)
    file.write(data)
    file.truncate(len(data))


@final
class _State:
    """The contents of a file. If a killed process has left the file incomplete, all slots count as taken."""

    __slots__ = ("clients", "holds", "known", "limiter", "taken")

    def __init__(self, limit: int, window: float, data: bytes, now: float) -> None:
        self.limiter = Limiter(limit=limit, window=window, rng=Random())
        self.taken: dict[str, float] = {}
        """When each slot without an answer was taken."""
        self.known: dict[str, float] = {}
        """When each slot of the last window was answered. A process may report them again."""
        self.clients: dict[str, float] = {}
        """When each process made its last exchange."""
        self.holds: dict[str, float] = {}
        """Until when the requests are held that charge a set of budgets, of which this one is the first."""
        if not data:
            return
        try:
            saved = cast("dict[str, dict[str, float]]", json.loads(data))
            self.limiter.load(cast("dict[str, object]", saved["limiter"]))
            self.taken, self.known, self.clients = saved["taken"], saved["known"], saved["clients"]
            self.holds = saved.get("holds", {})  # an older version wrote none
        except (ValueError, KeyError, TypeError):
            self.limiter.resume([0.0] * limit, now)

    def dump(self) -> bytes:
        """Return the state as JSON."""
        saved = {
            "limiter": self.limiter.dump(),
            "taken": self.taken,
            "known": self.known,
            "clients": self.clients,
            "holds": self.holds,
        }
        return json.dumps(saved).encode()

    def advance(self, reports: Sequence[SlotReport], client: str, now: float, *, timeout: float) -> None:
        """Free the slots whose time is over, and apply reports."""
        for slot, sent_at in list(self.taken.items()):
            if sent_at + timeout <= now:
                del self.taken[slot]
                self.limiter.lost(now, sent_at=sent_at)
        for report in reports:
            self._apply(report, now)
        self.clients[client] = now
        self.clients = {each: at for each, at in self.clients.items() if at > now - _SILENT}
        self.holds = {each: until for each, until in self.holds.items() if until > now}

    def take(self, slot: str, now: float) -> None:
        """Take a slot, at a time that the limiter allows."""
        self.limiter.take(now)
        self.taken[slot] = now

    def _apply(self, report: SlotReport, now: float) -> None:
        limiter, slot = self.limiter, report.slot
        if report.event == "limit":
            if int(report.seconds) != limiter.limit:
                limiter.resize(int(report.seconds))
            return
        if report.event == "headers":
            limiter.apply_headers(_headers(report), now)
            return
        if report.event == "held":
            self.holds[slot] = max(now + report.seconds, self.holds.get(slot, now))
            return
        sent_at = self.taken.pop(slot, None)
        if sent_at is None:
            self._apply_repeated(report, now)
        elif report.event == "sent_before":
            self.taken[slot] = sent_at
        elif report.event == "unsent":
            limiter.unsent(now, sent_at=sent_at)
        else:
            self._note_answered(slot, now)
            if report.event == "rejected":
                limiter.rejected(now, sent_at=sent_at, retry_after=report.seconds or None)
            elif report.event == "lost":
                limiter.lost(now, sent_at=sent_at)
            else:
                limiter.accepted(now, sent_at=sent_at)

    def _apply_repeated(self, report: SlotReport, now: float) -> None:
        """Apply a report about a slot that is not taken: it was answered before, or a killed process lost the
        file."""
        if report.event == "answered_before" and report.slot not in self.known:
            self._note_answered(report.slot, now)
            self.limiter.resume([report.seconds], now)
        elif report.event == "sent_before":
            self.limiter.take(now)
            self.taken[report.slot] = now

    def _note_answered(self, slot: str, now: float) -> None:
        self.known[slot] = now
        oldest = now - self.limiter.window - 60.0
        self.known = {each: at for each, at in self.known.items() if at > oldest}


def _headers(report: SlotReport) -> RateHeaders:
    limit, _, remaining = report.slot.partition("/")
    return RateHeaders(
        limit=int(limit) if limit else None,
        remaining=int(remaining) if remaining else None,
        reset=report.seconds or None,
    )
