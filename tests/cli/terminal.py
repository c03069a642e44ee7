"""The real program in a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

_BECOME_ITS_OWN = """import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the pseudo-terminal the process's controlling one, so that a typed Ctrl-C is a signal."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`asyncmig` with a terminal of its own: type, and read what is drawn."""

    def __init__(
        self, args: Sequence[object], folder: Path, *, columns: int = 140, **environment: str
    ) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "asyncmig", *map(str, args)]
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BECOME_ITS_OWN, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**inherited, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = ""
        self._passed = 0
        """The place in `text` up to which it was waited for."""

    @property
    def text(self) -> str:
        """All that was printed, without colours and movements."""
        return _ESCAPE.sub("", self.raw).replace("\r", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Read until `text` was printed after what was waited for last."""
        deadline = time.perf_counter() + seconds
        while (found := self.text.find(text, self._passed)) < 0:
            assert time.perf_counter() < deadline, f"no {text!r} in {self.text[self._passed :]!r}"
            assert self._read(), f"ended without {text!r}: {self.text[self._passed :]!r}"
        self._passed = found + len(text)

    def interrupt(self) -> int:
        """Type Ctrl-C at a prompt, and return the exit code. One that comes before `input` reads waits for a line."""
        for _ in range(10):
            self.type("\x03")
            until = time.perf_counter() + 2.0
            while time.perf_counter() < until:
                if not self._read():
                    return self._process.wait(60.0)
        raise AssertionError(f"goes on after {self.text[-2000:]!r}")

    def end(self, seconds: float = 60.0) -> int:
        """Read to the end and return the exit code."""
        deadline = time.perf_counter() + seconds
        while self._read():
            assert time.perf_counter() < deadline, f"goes on after {self.text[-2000:]!r}"
        return self._process.wait(seconds)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], 0.1)
        if not ready:
            return True
        try:
            chunk = os.read(self._fd, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.raw += chunk.decode()
        return bool(chunk)
