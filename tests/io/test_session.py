"""What all calls of one session share: budgets, retries, errors, and the log for the next process."""

import asyncio
import json
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, Fault, InProcess

import asyncmig
from asyncmig import (
    AuthError,
    BadRequest,
    Conflict,
    InvalidInput,
    NoAnswer,
    ServerError,
    Session,
    SessionClosed,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig._io.call import Secret
from asyncmig.simulator import SCHEMAS, SOURCES, Reply, World
from asyncmig.simulator.server.limits import SlidingLog

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))


@pytest.fixture
def transport() -> InProcess:
    return InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))


def world_without_limit() -> World:
    """Return a world with a limit that no test reaches."""
    return World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1, limit=lambda: SlidingLog(10**6))


def session(transport: InProcess, **options: object) -> Session:
    return Session(KEY, BASE_URL, transport=transport, rng=Random(2), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two\nlines"}, "api_key"),
        ({"base_url": "http://example.com/api/v1"}, "base_url"),
        ({"base_url": "app.example.com/api"}, "base_url"),
        ({"base_url": "https://user:secret@example.com/api"}, "base_url"),
        ({"limit": 0}, "limit"),
        ({"window": 0.0}, "window"),
        ({"scope": "account"}, "scope"),
    ],
)
async def test_an_invalid_setting_is_refused_by_name(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Session(**{"api_key": KEY, "base_url": BASE_URL, **options})  # type: ignore[arg-type]
    assert refused.value.field == field
    assert "secret" not in str(refused.value)


async def test_the_key_and_the_base_url_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, transport: InProcess
) -> None:
    monkeypatch.setenv("VERN_API_KEY", KEY)
    monkeypatch.setenv("VERN_BASE_URL", BASE_URL + "/")
    async with Session(transport=transport) as opened:
        assert len(await opened.companies.sources()) == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": " "}, "name"),
        ({"source": ""}, "source"),
        ({"external_id": "a b"}, "external_id"),
        ({"external_id": "x" * 256}, "external_id"),
        ({"template_ids": []}, "template_ids"),
        ({"template_ids": "abc"}, "template_ids"),
    ],
)
async def test_invalid_arguments_are_refused_without_a_request(
    transport: InProcess, options: dict[str, object], field: str
) -> None:
    async with session(transport) as opened:
        with pytest.raises(InvalidInput) as refused:
            await opened.companies.create(**{"name": "A", "source": SOURCE, **options})  # type: ignore[arg-type]
    assert refused.value.field == field
    assert not transport.sent


async def test_invalid_arguments_of_imports_and_downloads_are_refused_without_a_request(
    transport: InProcess, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.csv"
    empty.touch()
    async with session(transport) as opened:
        company = opened.companies.open("some-id")
        for options in (
            {},
            {"files": [empty], "rows": [{"a": 1}]},
            {"files": [empty]},
            {"files": [tmp_path / "no"]},
        ):
            with pytest.raises(InvalidInput):
                await company.imports.start(**options)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="filter"):
            await company.download(to=tmp_path, filter="some")  # type: ignore[arg-type]
    assert not transport.sent


@pytest.mark.parametrize("scope", ["endpoint", "key"])
async def test_a_budget_is_kept_by_endpoint_or_by_key(transport: InProcess, scope: str) -> None:
    async with session(transport, scope=scope, limit=5) as opened:
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(opened.companies.sources() for _ in range(4)), *(opened.companies.templates() for _ in range(4))
        )
        assert (loop.time() > 60.0) is (scope == "key")
        assert len(opened.stats()) == (1 if scope == "key" else 2)
        assert opened.gate("get", "/sources").statistics().granted == (8 if scope == "key" else 4)


async def test_the_next_process_continues_the_window_of_the_previous_one(
    transport: InProcess, tmp_path: Path
) -> None:
    recent = tmp_path / "fleet.db.recent"
    async with session(transport, recent=recent, limit=5) as opened:
        for _ in range(5):
            await opened.companies.sources()
    async with session(transport, recent=recent, limit=5) as opened:
        assert opened.gate("GET", "/sources").wait_estimate() > 50.0
        assert opened.gate("GET", "/templates").wait_estimate() == 0.0
    with recent.open("a", encoding="utf-8") as file:
        file.write("sent 12")  # a process that was killed in the middle of a line
    async with session(transport, recent=recent, limit=5) as opened:
        assert len(opened.gate("GET", "/sources").recent()) == 5


async def test_an_unanswered_request_in_the_log_counts_as_sent_now(
    transport: InProcess, tmp_path: Path
) -> None:
    recent = tmp_path / "recent"
    recent.write_text(f"sent {time.time():.3f}+121 GET /sources #{1:032x}\n", encoding="utf-8")  # noqa: TID251 - the clock of the log
    async with session(transport, recent=recent, limit=1) as opened:
        assert opened.gate("GET", "/sources").wait_estimate() == pytest.approx(60.0, abs=0.1)


async def test_an_old_unanswered_request_in_the_log_does_not_count(
    transport: InProcess, tmp_path: Path
) -> None:
    recent = tmp_path / "recent"
    recent.write_text(
        f"sent 5.0+121 GET /sources #{1:032x}\nsent 1600000000.123+121 GET /sources #{2:032x}\n",
        encoding="utf-8",
    )
    async with session(transport, recent=recent, limit=1) as opened:
        assert opened.gate("GET", "/sources").wait_estimate() == 0.0


async def test_only_requests_in_flight_are_sent_with_a_refused_key_and_the_others_fail(
    transport: InProcess,
) -> None:
    transport.world.key = "another"
    async with session(transport) as opened:
        results = await asyncio.gather(
            *(opened.companies.sources() for _ in range(200)), return_exceptions=True
        )
        assert all(isinstance(result, AuthError) for result in results)
        assert len(transport.sent) < 10
        with pytest.raises(AuthError):
            await opened.companies.templates()


async def test_a_closed_session_sends_nothing(transport: InProcess) -> None:
    async with session(transport) as opened:
        pass
    with pytest.raises(SessionClosed):
        await opened.companies.sources()
    assert transport.closed
    assert not transport.sent


@pytest.mark.parametrize(
    "instead",
    [
        Reply(status=500, body=b'{"error": "oops"}'),
        Reply(status=502, body=b"<html>Bad gateway</html>", content_type="text/html"),
        Reply(status=503, body=b""),
        Reply(status=200, body=b'{"sources": [{"id"'),
        Reply(status=302, body=b""),
    ],
    ids=lambda reply: f"{reply.status}",
)
async def test_a_read_is_retried_until_it_succeeds_or_raises_the_last_error(
    transport: InProcess, instead: Reply
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(instead=instead) if number <= 3 or number > 4 else None
    )
    async with session(transport) as opened:
        assert len(await opened.companies.sources()) == 3
        with pytest.raises(asyncmig.ApiError) as refused:
            await opened.companies.sources()
    assert refused.value.status == instead.status
    assert refused.value.endpoint == "/sources"
    assert len(transport.sent) == 4 + 8


async def test_a_request_without_an_answer_raises_no_answer(transport: InProcess) -> None:
    transport.fault = lambda method, path, number: Fault(lost_before=True)
    async with session(transport) as opened:
        with pytest.raises(NoAnswer, match="GET /sources"):
            await opened.companies.sources()


async def test_a_company_without_an_external_id_is_never_created_twice(transport: InProcess) -> None:
    transport.fault = lambda method, path, number: Fault(lost_after=True)
    async with session(transport) as opened:
        with pytest.raises(UnknownOutcome) as unknown:
            await opened.companies.create(
                name="A",
                source=SOURCE,
                connections={"destination": {"base_url": "https://d.invalid", "auth": {"token": "s3cret"}}},
            )
    assert len(transport.sent) == 1
    assert "s3cret" not in str(unknown.value) + unknown.value.sent


async def test_a_creation_that_cannot_have_arrived_is_retried(transport: InProcess) -> None:
    transport.fault = lambda method, path, number: Fault(refused=True) if number < 3 else None
    async with session(transport) as opened:
        assert (await opened.companies.create(name="A", source=SOURCE)).id


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        ("9999", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1.0),
        ("soon", 1.0),
        ("\u00b2", 1.0),
        ("0000000007", 7.0),
        ("7.5", 7.5),
        ("9" * 5000, 60.0),
        ("-7", 1.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 1.0),
        ("Mon, 01 Jan 2001 00:00:00 +99999999999999", 1.0),
    ],
)
async def test_retry_after_is_followed_up_to_a_limit(
    transport: InProcess, asked: str, seconds: float
) -> None:
    busy = Fault(instead=Reply(status=503, body=b""), headers={"Retry-After": asked})
    transport.fault = lambda method, path, number: busy if number == 1 else None
    async with session(transport) as opened:
        await opened.companies.sources()
    first, second = (at for at, _, _ in transport.sent)
    assert seconds <= second - first < seconds + 2.5


@pytest.mark.parametrize(
    ("asked", "date", "speed", "seconds"),
    [
        ("Mon, 01 Jan 2001 00:00:07 GMT", "Mon, 01 Jan 2001 00:00:00 GMT", 1.0, 7.0),
        ("Monday, 01-Jan-01 00:00:07 GMT", "Mon Jan  1 00:00:00 2001", 1.0, 7.0),
        ("Mon, 01 Jan 2001 01:00:07 +0100", "Mon, 01 Jan 2001 00:00:00 -0000", 1.0, 7.0),
        ("Mon, 01 Jan 2001 00:00:07 GMT", "Mon, 01 Jan 2001 00:00:00 GMT", 5.0, 35.0),
        ("Mon, 01 Jan 2001 00:00:50 GMT", "Mon, 01 Jan 2001 00:00:00 GMT", 5.0, 60.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 2001 00:00:00 GMT", 1.0, 1.0),
        ("Mon, 01 Jan 2001 00:00:50 GMT", "yesterday", 1.0, 1.0),
        ("Mon, 01 Jan 2180 00:00:50 GMT", "", 1.0, 60.0),
    ],
)
async def test_a_date_in_retry_after_is_compared_with_the_clock_of_the_server(
    transport: InProcess, monkeypatch: pytest.MonkeyPatch, asked: str, date: str, speed: float, seconds: float
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "speed", speed, raising=False)
    busy = Fault(instead=Reply(status=503, body=b""), headers={"Retry-After": asked, "Date": date})
    transport.fault = lambda method, path, number: busy if number == 1 else None
    async with session(transport) as opened:
        await opened.companies.sources()
    first, second = (at for at, _, _ in transport.sent)
    assert seconds <= second - first < seconds + 2.5


@pytest.mark.parametrize("key", ["secret7", "a-key-of-some-length"])
async def test_an_echoed_key_is_in_no_error_and_data_that_contains_it_is_unchanged(
    transport: InProcess, key: str
) -> None:
    echo = f'{{"sources": [{{"id": "1", "name": "my secret7", "logo_url": null}}], "key": "{key}"}}'
    transport.fault = lambda method, path, number: Fault(instead=Reply(status=200, body=echo.encode()))
    async with Session(key, BASE_URL, transport=transport) as opened:
        assert [source.name for source in await opened.companies.sources()] == ["my secret7"]
        echo = f"oops, your key is {key}"
        with pytest.raises(UnexpectedReply) as caught:
            await opened.companies.sources()
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [KEY, KEY[:3] + f"\\u{ord(KEY[3]):04X}" + KEY[4:], "".join(f"\\u{ord(each):04x}" for each in KEY)],
    ids=["plain", "one escape", "all escaped"],
)
async def test_a_refusal_keeps_its_body_without_the_key(transport: InProcess, written: str) -> None:
    body = f'{{"error": "taken by {written}", "runs": [{{"id": "r1"}}]}}'
    transport.fault = lambda method, path, number: Fault(instead=Reply(status=409, body=body.encode()))
    async with session(transport) as opened:
        with pytest.raises(Conflict) as caught:
            await opened.request("POST", "/companies")
    error: Conflict = pickle.loads(pickle.dumps(caught.value.with_text("taken")))
    facts = json.loads(error.body)
    assert facts["runs"] == [{"id": "r1"}]
    assert KEY not in facts["error"]
    assert KEY not in str(caught.value)
    assert "r1" not in str(caught.value) + repr(caught.value)
    assert error.text == "taken"


async def test_a_refusal_keeps_no_more_of_its_body_than_64_kib(transport: InProcess) -> None:
    reply = Reply(status=409, body=b"x" * 1_000_000)
    transport.fault = lambda method, path, number: Fault(instead=reply)
    async with session(transport) as opened:
        with pytest.raises(Conflict) as caught:
            await opened.request("POST", "/companies")
    assert caught.value.body == b"x" * 65_536


async def test_a_429_does_not_count_as_an_attempt(transport: InProcess) -> None:
    full = Fault(instead=Reply(status=429, body=b'{"error": "Too many requests"}'))
    transport.fault = lambda method, path, number: full if number <= 12 else None
    async with session(transport) as opened:
        assert await opened.companies.sources()
    assert len(transport.sent) == 13


async def test_an_outage_causes_few_retries_and_no_failed_call() -> None:
    loop, transport = asyncio.get_running_loop(), InProcess(world_without_limit())
    down = Fault(instead=Reply(status=500, body=b""))
    transport.fault = lambda method, path, number: down if loop.time() < 300.0 else None
    async with session(transport, limit=1000) as opened:
        results = await asyncio.gather(
            *(opened.companies.sources() for _ in range(300)), return_exceptions=True
        )
        ended = loop.time()
    assert not [result for result in results if isinstance(result, Exception)]
    tried = sum(at < 300.0 for at, _, _ in transport.sent)
    assert tried <= 300 * 1.1 + 100 + 30
    assert ended < 330.0


async def test_a_failing_call_ends_while_other_calls_succeed() -> None:
    transport = InProcess(world_without_limit())
    broken = Fault(instead=Reply(status=500, body=b'{"error": "broken"}'))
    transport.fault = lambda method, path, number: broken if path.endswith("/templates") else None
    async with session(transport, limit=10_000) as opened:

        async def busy() -> None:
            while True:
                await opened.companies.sources()

        async with asyncio.timeout(3600):
            others = asyncio.create_task(busy())
            results = await asyncio.gather(
                *(opened.companies.templates() for _ in range(150)), return_exceptions=True
            )
        others.cancel()
    assert all(isinstance(result, ServerError) for result in results)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("name", "x", "is empty"),
        BadRequest("POST", "/companies", 400, "taken"),
        UnknownOutcome("POST", "/companies", "reset", "{}", "look"),
        NoAnswer("GET", "/sources", "reset"),
        asyncmig.RunFailed("r1", "broken"),
        asyncmig.WaitTooLong(5.0, 1.0),
        asyncmig.TruncatedDownload("Contacts", "1 of 2"),
        asyncmig.CustomerHeld("fleet.db", "acme", "pid 1"),
        SessionClosed(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_can_be_pickled(error: Exception) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


async def test_an_exception_of_a_subscriber_does_not_fail_the_call(
    transport: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []

    def broken(event: object) -> None:
        raise RuntimeError("no")

    async with session(transport) as opened:
        with opened.events.subscribe(broken), opened.events.subscribe(seen.append):
            await opened.companies.sources()
    assert [type(event).__name__ for event in seen] == ["RequestSent", "RequestDone"]
    assert "is removed" in caplog.text


def test_a_secret_is_not_in_its_repr_and_cannot_be_pickled() -> None:
    secret: Callable[[], Secret] = lambda: Secret(KEY)  # noqa: E731
    assert KEY not in repr(secret()) + str(secret()) + f"{secret()}"
    with pytest.raises(TypeError):
        pickle.dumps(secret())
    logging.getLogger("asyncmig").debug("%s", secret())


@pytest.mark.parametrize(
    "more",
    [
        b'"score": NaN',
        b'"score": -Infinity',
        b'"score": 1e999',
        b'"novelty": ' + b"[" * 100_000 + b"]" * 100_000,
        b'"text": "half a character \\ud83d"',
    ],
    ids=lambda more: more[:20].decode(),
)
async def test_the_end_of_a_run_is_read_from_a_reply_that_is_not_strict_json(
    transport: InProcess, more: bytes
) -> None:
    ended = Reply(status=200, body=b'{"status": "completed", %b, "report": {"inserted": 3}}' % more)
    transport.fault = lambda method, path, number: Fault(instead=ended)
    async with session(transport) as opened:
        async with asyncio.timeout(120):
            state = await opened.watch("run", "company").wait()
        assert state.report is not None
        assert state.report.inserted == 3
    assert len(transport.sent) == 1


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("method", "template", "budgets"),
    [
        ("GET", "/migrations/{migration}/preview", {"reads"}),
        ("get", "/migrations/{id}/files", {"reads", "writes"}),
        ("POST", "/migrations", {"create", "writes"}),
        ("POST", "/migrations/{x}/runs", {"agent", "generate"}),
        ("GET", "/unheard/of", {"GET /unheard/of"}),
        ("GET", "/sources", {"GET /sources"}),
    ],
)
async def test_a_gate_of_the_session_charges_the_budgets_of_its_route(
    method: str, template: str, budgets: set[str]
) -> None:
    async with Session("a-key", "https://api.example") as session:
        async with session.gate(method, template).slot() as slot:
            slot.answered(200)
        assert {name for name, stats in session.stats().items() if stats.used} == budgets
        assert session.budget(min(budgets)).statistics().used == 1
