"""Leases: which process holds a customer, and whether that process is still alive.

A lease ends when its holder releases it, when its holder is dead, or when it was not renewed in time.

Whether a holder is dead can be determined only in the same boot and the same process namespace. There, a holder is
dead if its pid does not exist or belongs to a process with another start time. Any other holder, also one of the same
host before a reboot, keeps its claims until its lease expires.

Expiry alone does not protect the data, because a suspended process does not notice that its lease expired. The
fencing token in the store protects it. See Kleppmann, "How to do distributed locking", 2016.
"""

import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, final

__all__ = ["DURATION", "Holder", "Lease", "Moment", "mark_closed", "mark_open"]

DURATION = 30.0
"""The default duration of a lease, in real seconds."""

_open: set[str] = set()
"""The open journals of this process, by `Holder.instance`."""


def mark_open(holder: "Holder") -> None:
    """Record that `holder` is an open journal of this process."""
    _open.add(holder.instance)


def mark_closed(holder: "Holder") -> None:
    """Record that `holder` is closed. Other journals may take over its claims."""
    _open.discard(holder.instance)


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, on two clocks, in seconds.

    The wall clock can be set. The time since boot cannot, but it is comparable only within one boot of one host.
    """

    wall: float
    uptime: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks."""
        return cls(datetime.now(UTC).timestamp(), _uptime())

    def since(self, earlier: Self, *, boot: str) -> float:
        """Return the seconds since a moment that was read in the boot `boot`."""
        return self.uptime - earlier.uptime if boot == _boot() else self.wall - earlier.wall

    def iso(self) -> str:
        """Return the wall-clock time as ISO 8601, in UTC, with milliseconds."""
        text = datetime.fromtimestamp(self.wall, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")


@final
@dataclass(frozen=True, slots=True)
class Holder:
    """One open journal of one process. The journal stores these fields."""

    instance: str
    label: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    """The start time of the process as the kernel reports it; empty if the system does not report it."""

    @classmethod
    def here(cls, label: str) -> Self:
        """Return a new holder for this process."""
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
        """Return whether this holder is certainly dead."""
        if (self.boot, self.namespace) != (_boot(), _namespace()):
            return False
        started = _started(self.pid)
        if started is None or (self.started and started and started != self.started):
            return True
        return self.pid == os.getpid() and self.instance not in _open

    def __str__(self) -> str:
        process = f"process {self.pid} on {self.host}"
        return f"{self.label} ({process})" if self.label else process


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """A holder and the age of its last heartbeat, as a database has them."""

    holder: Holder
    seconds: float
    """The duration of the lease, in real seconds."""
    age: float
    """Seconds since the heartbeat.

    Negative if the wall clock was set back, or if it differs from that of another host.
    """

    @property
    def is_over(self) -> bool:
        """Whether other processes may take over the holder's claims."""
        return self.holder.is_dead() or not -self.seconds <= self.age < self.seconds

    def __str__(self) -> str:
        return f"{self.holder}, last seen {max(0.0, self.age):.0f} s ago"


def _uptime() -> float:
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # includes the time that the machine was suspended
    return time.monotonic()  # noqa: TID251 - a lease is in real seconds, independent of the event loop's clock


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # A machine without a network address returns a random number, which equals no other.
        return f"node-{uuid.getnode():012x}"


def _namespace() -> str:
    """Return the name of the process namespace. The same pid in another container is another process."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return the start time of a process, "" if the system does not report it, None if the process does not exist."""
    if sys.platform == "win32":
        return ""  # on Windows, os.kill(pid, 0) would end the process
    try:
        os.kill(pid, 0)  # first, because /proc may hide the processes of other users
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else fields[18]  # a zombie is dead; starttime is field 22 of proc(5)
