"""Runs the program in a pseudo-terminal."""

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

_SET_CONTROLLING_TERMINAL = """import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the pseudo-terminal the controlling terminal of the process, so that a typed Ctrl-C sends SIGINT."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs `asyncmig` in its own pseudo-terminal, types into it and reads its output."""

    def __init__(
        self, args: Sequence[object], folder: Path, *, columns: int = 140, **environment: str
    ) -> None:
        self._fd, program_fd = pty.openpty()
        fcntl.ioctl(program_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "asyncmig", *map(str, args)]
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SET_CONTROLLING_TERMINAL, *command],
            stdin=program_fd,
            stdout=program_fd,
            stderr=program_fd,
            cwd=folder,
            env={**inherited, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(program_fd)
        self.raw = ""
        self._passed = 0
        """The position in `text` after the last match of `wait_for`."""

    @property
    def text(self) -> str:
        """The whole output without escape sequences."""
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
        """Read until `text` appears after the last match of this method."""
        deadline = time.perf_counter() + seconds
        while (found := self.text.find(text, self._passed)) < 0:
            assert time.perf_counter() < deadline, (
                f"{text!r} did not appear in time in {self.text[self._passed :]!r}"
            )
            assert self._read(), f"the program ended before {text!r} appeared: {self.text[self._passed :]!r}"
        self._passed = found + len(text)

    def interrupt(self) -> int:
        """Type Ctrl-C at a prompt, and return the exit code.

        The key is repeated: one that arrives before `input` reads has no effect until a line is entered.
        """
        for _ in range(10):
            self.type("\x03")
            until = time.perf_counter() + 2.0
            while time.perf_counter() < until:
                if not self._read():
                    return self._process.wait(60.0)
        raise AssertionError(f"the program did not end; its output is {self.text[-2000:]!r}")

    def end(self, seconds: float = 60.0) -> int:
        """Read to the end and return the exit code."""
        deadline = time.perf_counter() + seconds
        while self._read():
            assert time.perf_counter() < deadline, (
                f"the program did not end; its output is {self.text[-2000:]!r}"
            )
        return self._process.wait(seconds)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], 0.1)
        if not ready:
            return True
        try:
            chunk = os.read(self._fd, 65536)
        except OSError:  # Linux raises it when the program has closed its end
            return False
        self.raw += chunk.decode()
        return bool(chunk)
