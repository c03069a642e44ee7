"""Files that several processes of a user share: checks that a file is the user's own, and locks it."""

import errno
import os
import stat
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_at", "locked", "open_own"]

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

    @contextmanager
    def locked(fd: int, *, exclusively: bool, tries: int = 1) -> Generator[bool]:
        """Yield True for a shared lock. An exclusive one is not needed, because Windows cannot replace an open
        file."""
        yield not exclusively

else:
    import fcntl

    @contextmanager
    def locked(fd: int, *, exclusively: bool, tries: int = 1) -> Generator[bool]:
        """Yield whether the file is locked, after at most `tries` attempts, one millisecond apart.

        The kernel releases the lock of a process that dies. On a file system without locks, this yields True for a
        shared lock and False for an exclusive one: processes only append there, and never replace the file.
        """
        how = fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)
        for attempt in range(tries):
            try:
                if attempt:
                    time.sleep(_PAUSE)
                fcntl.flock(fd, how)
                break
            except BlockingIOError:
                continue
            except OSError:
                yield not exclusively
                return
        else:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
