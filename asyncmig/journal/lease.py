"""Who holds a company, and whether that one still lives.

A lease ends when its holder gives it up, when its holder is dead, or when it was not renewed in time. Death can
only be told of a process of the same boot and the same process namespace: there a pid that is gone, or that
began at another moment, is another process. Anything else, also the same host before a reboot, has to expire.
Expiry alone would be no protection (a paused process does not know that it slept): the token in the store is.
See Kleppmann, "How to do distributed locking", 2016.
"""

import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, final

__all__ = ["Holder", "Moment", "Renewal", "enter", "leave"]

_open: set[str] = set()
"""The journals that are open in this process, by `Holder.instance`."""


def enter(holder: "Holder") -> None:
    """Note that `holder` is a journal of this process that is open."""
    _open.add(holder.instance)


def leave(holder: "Holder") -> None:
    """Note that `holder` is no more: what it still holds is free."""
    _open.discard(holder.instance)


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on the wall-clock (which may be set) and since boot (which cannot, but means nothing elsewhere)."""

    wall: float
    uptime: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks, in real seconds."""
        return cls(datetime.now(UTC).timestamp(), _uptime())

    def iso(self) -> str:
        """Return the wall-clock as ISO 8601, in UTC, to the millisecond."""
        text = datetime.fromtimestamp(self.wall, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")


@final
@dataclass(frozen=True, slots=True)
class Holder:
    """One open journal of one process. The fields are what the file keeps."""

    instance: str
    label: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    """When the process began, in the kernel's words; empty where it does not say."""

    @classmethod
    def here(cls, label: str) -> Self:
        """Return a new one of this process."""
        return cls(
            instance=uuid.uuid4().hex,
            label=label,
            host=socket.gethostname(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
        )

    def is_dead(self) -> bool:
        """Return whether it is certain that this holder is no more."""
        if (self.boot, self.namespace) != (_boot(), _namespace()):
            return False
        started = _started(self.pid)
        if started is None or (self.started and started and started != self.started):
            return True
        return self.pid == os.getpid() and self.instance not in _open

    def __str__(self) -> str:
        who = f"process {self.pid} on {self.host}"
        return f"{self.label} ({who})" if self.label else who


@final
@dataclass(frozen=True, slots=True)
class Renewal:
    """A holder, and when it last said that it lives; the lease is in real seconds."""

    holder: Holder
    lease: float
    at: Moment = field(default_factory=Moment.now)

    def is_over(self, now: Moment) -> bool:
        """Return whether what it holds is free for others."""
        return self.holder.is_dead() or not -self.lease <= self.age(now) < self.lease

    def age(self, now: Moment) -> float:
        """Return the seconds since the renewal; negative if a clock was set back, or is not ours."""
        if self.holder.boot == _boot():
            return now.uptime - self.at.uptime
        return now.wall - self.at.wall

    def describe(self, now: Moment) -> str:
        """Return who it is, for an error."""
        return f"{self.holder}, last seen {max(0.0, self.age(now)):.0f} s ago"


def _uptime() -> float:
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps
    return time.monotonic()  # noqa: TID251 - a lease is in real seconds, whatever the loop's clock does


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"node-{uuid.getnode():012x}"  # random, hence never the same, where a machine has no address


def _namespace() -> str:
    """Name the process namespace: in another container the same pid is another process."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process began, empty if that cannot be told, None if there is no such process."""
    if sys.platform == "win32":
        return ""  # os.kill would not ask, but send
    try:
        os.kill(pid, 0)  # asked first: /proc may hide the processes of others
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else fields[18]  # a zombie is dead; proc(5): starttime is the 22nd
