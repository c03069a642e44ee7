"""Addresses of Redis and PostgreSQL: which forms are accepted, and that no error or repr shows a password."""

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from servers import RedisServer

from asyncmig import AsyncmigError, InvalidInput, Journal, JournalError, MemoryJournal, Session
from asyncmig.cli.queue import queue_url
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.redis import RedisWindow, checked_redis, redis_client
from asyncmig.distributed.saq import MigrationQueue, settings, worker_settings

PW = "hunter2"
"""The password in every address below. No message may contain it."""

GOOD_REDIS = [
    f"redis://:{PW}@host",
    f"redis://user:{PW}@host:6379/0",
    f"rediss://user:{PW}@host:6380/1?ssl_cert_reqs=none",
    f"redis://user:{PW}%40%23%25%2F%3F%5B@host/0",
    f"redis://:{PW}:with:colons@host",
    f"redis://[::1]:6379/0?password={PW}",
    f"redis://host?username=u&password={PW}&db=2",
    f"redis://host?pass%77ord={PW}",
    f"unix:///run/redis.sock?password={PW}&db=1",
    f"unix://user:{PW}@/run/redis.sock",
    f" redis://:{PW}@host\n",
]
BAD_REDIS = [
    f"redis://:{PW}#1@host",
    f"redis://:12#{PW}@host",
    f"redis://:1/{PW}@host",
    f"redis://:1?{PW}@host",
    f"redis://:a{PW}/b@host",
    f"redis://:[{PW}@host",
    f"redis://:{PW}[x]@host",
    f"redis://:{PW}@[::1",
    f"redis://:{PW}@host:port",
    f"redis://:{PW}@host:99999",
    f"redis://:{PW}",
    f"redis://host/{PW}",
    f"redis://:{PW}@host?socket_timeout={PW}",
    f"redis://:a {PW}@host",
    f"redis://:{PW}@host?unknown={PW}",
    f"redis://:{PW}@host?protocol=9",
    f"redis://:{PW}@host?ssl_cert_reqs=none",
    f"rediss://:{PW}@host?ssl_cert_reqs={PW}",
    f"unix:///run/redis.sock?password={PW}&parser_class=x",
    f"unix://{PW}",
    f"unix:///run/{PW}@redis.sock",
]
GOOD_POSTGRES = [
    f"postgresql://user:{PW}@host/db",
    f"postgres://user:{PW}@host:5432/db",
    f"postgresql://user:{PW}#1?[2]@host/db",
    f"postgresql://user:{PW}%25%40%2F@host/db",
    f"postgresql://user:{PW}@h1:5432,h2:5433,[::1]:5434/db",
    f"postgresql://user:{PW}@%2Fvar%2Frun%2Fpostgresql/db",
    f"postgresql:///db?host=/var/run&user=u&password={PW}",
    f"postgresql://host/db?pass%77ord={PW}",
    f"postgresql://host/db?sslpassword={PW}",
    f"host=host dbname=db user=u password={PW}",
    f"host=host password='{PW} with \\' quote and blank'",
    f"password = {PW} host = h1,h2 port = 5432,5433",
    f"host=/var/run password={PW}",
]
BAD_POSTGRES = [
    f"postgresql://user:{PW}%zz@host/db",
    f"postgresql://user:1/x?port={PW}@host/db",
    f"host=host port={PW}",
    f"postgresql://user:{PW}%@host/db",
    f"postgresql://user:a@{PW}@host/db",
    f"postgresql://user:{PW}/b@host/db",
    f"postgresql://user:12/{PW}@host/db",
    f"postgresql://user:12/3?{PW}@host/db",
    f"postgresql://user:a b{PW}@host/db",
    f"postgresql://user:{PW}@host:port/db",
    f"postgresql://user:{PW}@host:99999/db",
    f"postgresql://user:{PW}@host/db?nonsense=1",
    f"postgresql://user:{PW}@[::1/db",
    f"postgresql://user:{PW}@host/db?sslmode=on",
    f"host=host password=a {PW}",
    f"host=host password='{PW}",
    f"host=host password=p nonsense={PW}",
    f"dbname=postgresql://u:{PW}@host/db",
    f"POSTGRESQL://user:{PW}@host/db",
]
OTHERS = [
    f"mysql://user:{PW}@host/db",
    f"http://user:{PW}@host",
    f"user:{PW}@host",
    f"://:{PW}@host",
]


def chain(error: BaseException) -> Iterator[BaseException]:
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None:
            yield each
            left += [each.__cause__, each.__context__]


def assert_no_password(error: BaseException) -> None:
    for each in chain(error):
        assert PW not in f"{each} {each!r} {each.args}"
        assert PW not in str(vars(each))
    assert PW not in str(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("url", GOOD_REDIS)
def test_every_redis_url_is_accepted_and_its_password_is_in_no_repr(url: str) -> None:
    queue = worker_settings(url, session=Session, journal=MemoryJournal)["queue"]  # type: ignore[arg-type]
    for each in (RedisWindow(url), MigrationQueue(url), queue):
        assert PW not in repr(each)
    assert PW not in repr(queue.redis)  # type: ignore[attr-defined]


def test_the_repr_of_worker_settings_does_not_show_the_password_of_the_journal() -> None:
    journal = partial(PostgresJournal, f"postgresql://user:{PW}@host/db")
    options = worker_settings("redis://host", session=Session, journal=journal)  # type: ignore[arg-type]
    assert PW not in repr(options)


@pytest.mark.parametrize("conninfo", GOOD_POSTGRES)
async def test_every_postgresql_address_is_accepted_and_its_password_is_in_no_repr(conninfo: str) -> None:
    queue = worker_settings(conninfo, session=Session, journal=MemoryJournal)["queue"]  # type: ignore[arg-type]
    for each in (PostgresJournal(conninfo), MigrationQueue(conninfo), queue):
        assert PW not in repr(each)


@pytest.mark.parametrize("url", [*BAD_REDIS, *BAD_POSTGRES, *OTHERS])
async def test_an_invalid_address_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="queue") as caught:
        MigrationQueue(url)
    assert_no_password(caught.value)
    with pytest.raises(InvalidInput, match="url") as caught:
        RedisWindow(url)
    assert_no_password(caught.value)
    with pytest.raises(InvalidInput, match="conninfo") as caught:
        PostgresJournal(url)
    assert_no_password(caught.value)


@pytest.mark.parametrize("conninfo", ["postgresql://host/db?sslmode={}", "host=host sslmode={}"])
def test_an_unknown_sslmode_is_refused_without_connecting(conninfo: str) -> None:
    with pytest.raises(InvalidInput, match=r"conninfo=.* has an sslmode that is none of disable, "):
        PostgresJournal(conninfo.format("on"))
    assert PostgresJournal(conninfo.format("verify-full"))


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=h port=5433 dbname=db",
        "postgresql://user@h:5433/db",
        f"postgresql://user:{PW}@h/db?port=5433",
        f"postgresql://h:1/db?port=5433&password={PW}",
    ],
)
def test_equivalent_addresses_have_the_same_send_log(conninfo: str) -> None:
    same = PostgresJournal("postgresql://h:5433/db").send_log
    assert PostgresJournal(conninfo).send_log == same
    assert PostgresJournal(conninfo.replace("5433", "5432")).send_log != same


def test_an_address_with_the_default_port_has_the_send_log_of_one_without_a_port() -> None:
    assert PostgresJournal("host=a,b port=5432").send_log == PostgresJournal("host=a,b").send_log
    assert PostgresJournal("postgresql://h:5432/db").send_log == PostgresJournal("postgresql://h/db").send_log


def test_a_journal_refuses_a_redis_url_and_a_window_refuses_a_postgresql_url() -> None:
    with pytest.raises(InvalidInput, match="PostgreSQL"):
        PostgresJournal("redis://host")
    with pytest.raises(InvalidInput, match="Redis"):
        RedisWindow("postgresql://host")


@pytest.mark.parametrize("url", [*GOOD_REDIS, *GOOD_POSTGRES])
def test_a_password_on_the_command_line_is_refused_in_every_form(url: str) -> None:
    with pytest.raises(InvalidInput, match="give that name") as caught:
        queue_url(url)
    assert_no_password(caught.value)


@pytest.mark.parametrize("url", [*BAD_REDIS, *BAD_POSTGRES])
def test_an_invalid_address_is_refused_on_the_command_line_and_in_a_variable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput) as caught:
        MigrationQueue(queue_url(url))
    assert_no_password(caught.value)
    monkeypatch.setenv("MY_QUEUE", url)
    with pytest.raises(InvalidInput) as caught:
        MigrationQueue(queue_url("MY_QUEUE"))
    assert_no_password(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user@host:6379/0",
        "redis://:@host",
        "rediss://host",
        "unix:///run/redis.sock",
        "postgresql://user@host/db",
        "postgresql://user:@host/db",
        "postgresql:///db?passfile=/home/me/.pgpass",
        "host=h dbname=db user=u",
    ],
)
def test_an_address_without_a_password_is_accepted_on_the_command_line(url: str) -> None:
    assert queue_url(url) == url


def test_an_address_in_a_variable_may_contain_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_QUEUE", GOOD_REDIS[0])
    assert queue_url("MY_QUEUE") == GOOD_REDIS[0]
    with pytest.raises(InvalidInput, match="NO_QUEUE"):
        queue_url("NO_QUEUE")


@pytest.mark.parametrize("variable", ["ASYNCMIG_QUEUE", "ASYNCMIG_DATABASE", "ASYNCMIG_WINDOW"])
def test_a_worker_names_the_variable_with_the_invalid_address(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("ASYNCMIG_QUEUE", "redis://host")
    monkeypatch.setenv("ASYNCMIG_DATABASE", "postgresql://host/db")
    monkeypatch.setenv(
        variable, f"{'postgresql' if variable == 'ASYNCMIG_DATABASE' else 'redis'}://u:{PW}@[host"
    )
    with pytest.raises(InvalidInput, match=variable) as caught:
        settings()
    assert_no_password(caught.value)


@pytest.mark.parametrize("address", [GOOD_REDIS[0], GOOD_POSTGRES[0], GOOD_POSTGRES[-1], OTHERS[0]])
def test_a_file_journal_refuses_the_address_of_a_server(address: str) -> None:
    for path in (address, Path(address)):
        with pytest.raises(InvalidInput, match="open_journal") as caught:
            Journal(path)
        assert_no_password(caught.value)


@pytest.mark.parametrize("url", ["postgresql://user:{}@127.0.0.1:1/db", "host=127.0.0.1 port=1 password={}"])
async def test_an_error_of_the_database_shows_no_password(url: str) -> None:
    with pytest.raises(JournalError, match=r"127\.0\.0\.1") as caught:
        async with PostgresJournal(url.format(PW), patience=0.0):
            pass
    assert_no_password(caught.value)


async def test_a_redis_password_is_used_from_each_form_of_the_url(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password=PW)
    server.start()
    try:
        host = server.url.rpartition("@")[2]
        for url in (server.url, f"redis://{host}?password={PW}", f"redis://default:{PW}@{host}"):
            async with redis_client(checked_redis("url", url)) as client:
                assert await client.ping()
                assert PW not in repr(client)
        async with redis_client(checked_redis("url", server.url.replace(PW, f"{PW}!"))) as client:
            with pytest.raises(redis.AuthenticationError) as caught:
                await client.ping()
        for each in chain(caught.value):
            assert PW not in str(each)
    finally:
        server.stop()


@pytest.mark.parametrize("url", [f"redis://:{PW}@127.0.0.1:1", f"redis://127.0.0.1:1?password={PW}"])
async def test_the_error_of_an_unreachable_queue_shows_no_password(url: str) -> None:
    with pytest.raises((OSError, redis.RedisError, AsyncmigError)) as caught:
        async with MigrationQueue(url):
            pass
    for each in chain(caught.value):
        assert PW not in f"{each} {each!r} {vars(each)}"
