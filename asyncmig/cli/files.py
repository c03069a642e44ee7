"""Files that a command writes: whole or not at all, and never through a link that somebody has planted."""

import os
import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a new one beside it, which takes its place. A link at `path` is replaced, not followed.

    Raises `OSError`; the file that was there then stays as it was.
    """
    part = path.with_name(f"{path.name[:50]}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o666)  # less the umask, as for any other file
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
