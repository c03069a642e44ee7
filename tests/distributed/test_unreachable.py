"""The error of a queue that cannot be used names its kind and host, and never shows another part of its URL."""

import asyncio
import logging
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from farm import customers
from servers import PostgresServer, RedisServer, free_port

from asyncmig import MemoryJournal, QueueUnavailable
from asyncmig.distributed._open_queue import open_queue
from asyncmig.distributed.saq import MigrationQueue

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def short_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncmig.distributed._resilient_queue.ResilientQueue.connect_within", 2.0)


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """Accept connections and send `answer` to the first data. If it is None, send nothing and keep them open."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.recv(1024)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("guarded"), password="right")
    server.start()
    yield server
    server.stop()


def refusal(url: str) -> QueueUnavailable:
    async def main() -> None:
        async with MigrationQueue(url):
            raise AssertionError("the queue was opened")

    with pytest.raises(QueueUnavailable) as caught:
        asyncio.run(main())
    error = caught.value
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr((error.__cause__, error.__context__))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error


KINDS = [("redis", "Redis"), ("postgresql", "PostgreSQL")]


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_a_server_that_refuses_connections_is_reported(scheme: str, kind: str) -> None:
    port = free_port()
    error = refusal(f"{scheme}://user:{SECRET}@127.0.0.1:{port}/0")
    assert str(error) == f"the queue ({kind} at 127.0.0.1:{port}) cannot be used: it refuses connections"


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_an_unknown_host_is_reported(scheme: str, kind: str) -> None:
    error = refusal(f"{scheme}://user:{SECRET}@no-such-host.invalid/0")
    assert (error.place, error.reason) == (f"{kind} at no-such-host.invalid", "its host is unknown")


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_a_server_that_never_answers_is_reported(scheme: str, kind: str) -> None:
    with listening(None) as port:
        error = refusal(f"{scheme}://user:{SECRET}@127.0.0.1:{port}/0")
    assert error.reason == "it does not answer"


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\0\x02\x02\x46", b""],
)
def test_a_server_with_another_protocol_is_reported(scheme: str, kind: str, answer: bytes) -> None:
    with listening(answer) as port:
        error = refusal(f"{scheme}://user:{SECRET}@127.0.0.1:{port}/0")
    assert f"does not speak the protocol of {kind}" in error.reason or "closes connections" in error.reason


def test_a_refused_password_is_reported(guarded: RedisServer) -> None:
    for login in (f":{SECRET}@", f"user:{SECRET}@", ""):
        error = refusal(guarded.url.replace(":right@", login))
        assert error.reason == "it refuses the user or the password"


def test_an_unknown_user_or_database_is_reported(database_url: str) -> None:
    error = refusal(database_url.replace("postgres@", f"stranger:{SECRET}@"))
    assert error.reason == "it refuses the user or the password"
    error = refusal(database_url.removesuffix("/postgres") + "/nothing")
    assert error.reason == "it has no such database"


def test_a_server_without_tls_is_reported(guarded: RedisServer, database_url: str) -> None:
    assert (
        refusal(guarded.url.replace("redis://", "rediss://")).reason == "it does not answer, or not with TLS"
    )
    assert refusal(f"{database_url}?sslmode=require").reason == "the TLS handshake with it fails"


def test_missing_files_and_invalid_options_of_an_address_are_reported(
    guarded: RedisServer, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    tls = guarded.url.replace("redis://", "rediss://")
    assert refusal(f"{tls}?ssl_ca_certs={missing}").reason == "a file that its address names does not exist"
    assert refusal(f"unix://:{SECRET}@{missing}").reason == "its socket does not exist"
    assert refusal(f"postgresql:///x?host={missing}").reason == "its socket does not exist"
    assert refusal("service=missing").reason == "its address names a service that is not defined"
    assert (
        refusal("host=127.0.0.1 target_session_attrs=x").reason
        == "its address has an option that is not valid"
    )
    assert refusal(f"{guarded.url}?client_name=a%20b").reason == "its address has an option that is not valid"


def test_a_worker_waits_for_its_queue_and_logs_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig.distributed._resilient_queue._PAUSE", 0.02)
    server = RedisServer(tmp_path)

    async def main() -> None:
        queue = open_queue(server.url, "waits")
        connecting = asyncio.create_task(queue.connect())
        for _ in range(10):
            await asyncio.sleep(0.02)
        assert not connecting.done()
        await asyncio.get_running_loop().run_in_executor(None, server.start)
        try:
            await connecting
            assert await queue.count("queued") == 0
            await queue.disconnect()
        finally:
            server.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "it refuses connections; waiting for it" in line


@pytest.fixture
def stoppable(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, RedisServer | PostgresServer]]:
    """A server with a password in its URL, for a test that stops it."""
    if request.param == "redis":
        redis = RedisServer(tmp_path, password=SECRET)
        redis.start()
        yield redis.url, redis
        redis.stop()
        return
    postgres = PostgresServer()
    postgres.start()
    yield postgres.url.replace("postgres@", f"postgres:{SECRET}@"), postgres
    postgres.remove()


@pytest.mark.parametrize("stoppable", ["redis", "postgres"], indirect=True)
def test_a_server_that_stops_after_the_queue_was_opened_is_reported(
    stoppable: tuple[str, RedisServer | PostgresServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("asyncmig.distributed._resilient_queue.ResilientQueue.patience", 0.5)
    url, server = stoppable
    (spec,) = customers(tmp_path, 1)

    async def main() -> None:
        async with MigrationQueue(url, journal=MemoryJournal()) as queue:
            assert await queue.submit(spec)
            await asyncio.to_thread(server.stop)
            for call in (
                lambda: queue.submit(spec),
                lambda: queue.retry(spec.external_id),
                lambda: queue.abort(spec.external_id),
            ):
                for _ in range(2):  # first the connection breaks, then no connection is possible
                    with pytest.raises(QueueUnavailable) as caught:
                        await call()
                    assert SECRET not in "".join(traceback.format_exception(caught.value))
                    assert SECRET not in repr((caught.value.__cause__, caught.value.__context__))
            await asyncio.to_thread(server.start)
            while True:  # the pool of connections tries again after a pause
                try:
                    await queue.abort(spec.external_id)
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.1)
            assert await queue.submit(spec)

    asyncio.run(main())
    assert SECRET not in caplog.text


def test_a_server_that_stops_answering_after_the_queue_was_opened_is_reported(
    guarded: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig.distributed._resilient_queue.ResilientQueue.patience", 1.0)
    (spec,) = customers(tmp_path, 1)

    async def main() -> None:
        async with MigrationQueue(guarded.url, name="silent") as queue:
            assert await queue.submit(spec)
            guarded.send(signal.SIGSTOP)
            try:
                for call in (lambda: queue.submit(spec), lambda: queue.abort(spec.external_id)):
                    with pytest.raises(QueueUnavailable, match="does not answer"):
                        await call()
            finally:
                guarded.send(signal.SIGCONT)

    asyncio.run(main())
