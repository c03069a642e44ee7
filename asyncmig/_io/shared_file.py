"""Files that several processes of a user share: checks that a file is the user's own, locks it, and tells the time.

Within one boot, the clock that counts from boot is the same for all processes, and setting the wall clock does not
change it.
"""

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import final

__all__ = ["boot_id", "boot_time", "is_at", "locked", "open_own"]

_SAFELY = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
_PAUSE = 0.001
"""Real seconds between two attempts to take a lock."""


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user, with one link and without access for others; create it with mode 0600.

    Raises `OSError` for anything else at this path, such as a symbolic link or a file of another user.
    """
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


def is_at(fd: int, path: Path) -> bool:
    """Return whether the open file is the one at `path`: it was neither replaced nor removed."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    @final
    class locked:
        """`as` gives True for a shared lock. An exclusive one is not needed, because Windows cannot replace an open
        file."""

        __slots__ = ("_is_shared",)

        def __init__(self, fd: int, *, exclusively: bool, tries: int = 1) -> None:
            self._is_shared = not exclusively

        def __enter__(self) -> bool:
            return self._is_shared

        def __exit__(self, *exc_info: object) -> None: ...

else:
    import fcntl

    @final
    class locked:
        """Locks a file inside of a `with` block, after at most `tries` attempts, one millisecond apart.

        `as` gives whether the file is locked. The kernel releases the lock of a process that dies. On a file system
        without locks, it gives True for a shared lock and False for an exclusive one: processes only append there,
        and never replace the file.
        """

        __slots__ = ("_fd", "_how", "_is_locked", "_tries")

        def __init__(self, fd: int, *, exclusively: bool, tries: int = 1) -> None:
            self._fd, self._tries, self._is_locked = fd, tries, False
            self._how = fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)

        def __enter__(self) -> bool:
            for attempt in range(self._tries):
                try:
                    if attempt:
                        time.sleep(_PAUSE)
                    fcntl.flock(self._fd, self._how)
                except BlockingIOError:
                    continue
                except OSError:
                    return bool(self._how & fcntl.LOCK_SH)
                self._is_locked = True
                return True
            return False

        def __exit__(self, *exc_info: object) -> None:
            if self._is_locked:
                fcntl.flock(self._fd, fcntl.LOCK_UN)


def boot_id() -> str | None:
    """Return the id of this boot, 32 hexadecimal digits; None on a system without one, or without such a clock."""
    try:
        time.clock_gettime(time.CLOCK_BOOTTIME)
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    except (AttributeError, OSError, ValueError):
        return None


_HAS_BOOT_CLOCK = boot_id() is not None


def boot_time() -> float:
    """Return the seconds since boot, including suspended time; on a system without `boot_id`, the wall clock."""
    if _HAS_BOOT_CLOCK:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()  # noqa: TID251 - it must have the same meaning in the next process
