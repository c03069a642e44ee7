"""Files that several processes of a user share: checks that a file is the user's own, locks it, and tells the time.

Within one boot, the clock that counts from boot is the same for all processes, and setting the wall clock does not
change it.
"""

import errno
import os
import stat
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

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


def is_at(opened: os.stat_result, path: Path) -> bool:
    """Return whether the open file with this status is the one at `path`: it was neither replaced nor removed."""
    try:
        return os.path.samestat(opened, os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def locked(fd: int, *, exclusively: bool, tries: int = 1) -> Generator[bool]:
    """Lock a file inside of a `with` block, after at most `tries` attempts, one millisecond apart.

    Yields whether the file is locked. The kernel releases the lock of a process that dies. On a file system without
    locks, and on Windows, which cannot replace an open file, this yields True for a shared lock and False for an
    exclusive one: processes only append there, and never replace the file.
    """
    if sys.platform == "win32":
        yield not exclusively
        return
    how = fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)
    is_locked = has_no_locks = False
    for attempt in range(tries):
        if attempt:
            time.sleep(_PAUSE)
        try:
            fcntl.flock(fd, how)
            is_locked = True
        except BlockingIOError:
            continue
        except OSError:
            has_no_locks = True
        break
    try:
        yield is_locked or (has_no_locks and not exclusively)
    finally:
        if is_locked:
            fcntl.flock(fd, fcntl.LOCK_UN)


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
