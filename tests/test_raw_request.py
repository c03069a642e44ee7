"""`Session.request`: requests to routes for which the library has no method."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import (
    Conflict,
    InvalidInput,
    Lane,
    NoAnswer,
    NotFound,
    Reply,
    RetryPolicy,
    Session,
    SessionClosed,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig._io.transport import Body, Lost, Response, Timeouts
from asyncmig.events import RequestSent
from asyncmig.simulator import SCHEMAS, SOURCES, World

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
JSON = "application/json; charset=utf-8"


@dataclass
class ScriptedReply:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body


@dataclass
class ScriptedTransport:
    """A transport that returns or raises the given replies in order, and records the requests."""

    replies: list[ScriptedReply | Lost]
    requests: list[tuple[str, str, bytes | None, Mapping[str, str]]] = field(default_factory=list)

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncIterator[Response]:
        assert body is None or isinstance(body, bytes)
        self.requests.append((method, url.removeprefix(BASE_URL), body, headers))
        scripted = self.replies.pop(0)
        if isinstance(scripted, Lost):
            raise scripted
        yield scripted

    async def aclose(self) -> None:
        pass


def session(
    *replies: ScriptedReply | Lost, transport: ScriptedTransport | None = None
) -> tuple[Session, ScriptedTransport]:
    transport = transport or ScriptedTransport(list(replies))
    policy = RetryPolicy(attempts=3)
    return Session(KEY, BASE_URL, transport=transport, rng=Random(2), retry=policy), transport


async def test_a_request_is_encoded_and_its_reply_is_returned() -> None:
    opened, transport = session(ScriptedReply(201, b'{"note": 7}', {"Content-Type": JSON, "X-Trace": "t"}))
    async with opened:
        reply = await opened.request(
            "post",
            "/companies/{id}/notes/{tag}",
            id="../a b/ü",
            tag="50%",
            body={"text": "hi"},
            params={"q": "a&b"},
        )
    ((method, url, body, headers),) = transport.requests
    assert method == "POST"
    assert url == "/companies/..%2Fa%20b%2F%C3%BC/notes/50%25?q=a%26b"
    assert body == b'{"text":"hi"}'
    assert headers["x-api-key"] == KEY
    assert headers["Content-Type"] == "application/json"
    assert (reply.status, reply.content, reply.headers["x-trace"]) == (201, b'{"note": 7}', "t")
    assert reply.json() == {"note": 7}
    assert repr(reply) == "<Reply 201 to POST /companies/{id}/notes/{tag}: 11 bytes>"
    assert pickle.loads(pickle.dumps(reply)) == reply


async def test_a_reply_is_decoded_as_the_given_type() -> None:
    class Note(msgspec.Struct):
        note: int

    opened, _ = session(ScriptedReply(body=b'{"note": 7, "new": 1}'), ScriptedReply(204, b"", {}))
    async with opened:
        reply = await opened.request("GET", "/notes")
        nothing = await opened.request("DELETE", "/notes")
    assert reply.json(Note) == Note(7)
    assert reply.json(dict[str, int]) == {"note": 7, "new": 1}
    with pytest.raises(UnexpectedReply, match=r"GET /notes answered 200.*array"):
        reply.json(list[int])
    with pytest.raises(UnexpectedReply):
        nothing.json()
    assert (nothing.status, nothing.content) == (204, b"")


@pytest.mark.parametrize(
    ("method", "template", "options", "field_name"),
    [
        ("FETCH", "/a", {}, "method"),
        ("GET", "a", {}, "template"),
        ("GET", "", {}, "template"),
        ("GET", "https://elsewhere.test/a", {}, "template"),
        ("GET", "//elsewhere.test/a", {}, "template"),
        ("GET", "/a?b=c", {}, "template"),
        ("GET", "/a#b", {}, "template"),
        ("GET", "/a b", {}, "template"),
        ("GET", "/a\r\nHost: b", {}, "template"),
        ("GET", "/a\n", {}, "template"),
        ("GET", "/a/../b", {}, "template"),
        ("GET", "/a/%2e%2E", {}, "template"),
        ("GET", "/{id", {}, "template"),
        ("GET", "/{id!r}", {"id": "x"}, "template"),
        ("GET", "/{}", {}, "template"),
        ("GET", "/a/{id}", {}, "id"),
        ("GET", "/a/{id}", {"id": ""}, "id"),
        ("GET", "/a/{id}", {"id": ".."}, "id"),
        ("GET", "/a/{id}", {"id": 7}, "id"),
        ("GET", "/a/{id}", {"id": "x", "run_id": "y"}, "run_id"),
        ("GET", "/a", {"params": {"n": 1}}, "params['n']"),
        ("POST", "/a", {"body": {"x": object()}}, "body"),
        ("POST", "/a", {"body": "\ud800"}, "body"),
    ],
)
async def test_invalid_arguments_are_refused_before_a_request_is_sent(
    method: str, template: str, options: dict[str, Any], field_name: str
) -> None:
    opened, transport = session()
    async with opened:
        with pytest.raises(InvalidInput) as refused:
            await opened.request(method, template, **options)
    assert refused.value.field == field_name
    assert not transport.requests


LOST = Lost("ServerDisconnectedError", sent=True)
UNSENT = Lost("ClientConnectorError", sent=False)
CUT = ScriptedReply(body=b'{"a": [1')
PAGE = ScriptedReply(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html"})


@pytest.mark.parametrize(
    "trouble", [LOST, UNSENT, CUT, PAGE, ScriptedReply(503), ScriptedReply(302)], ids=repr
)
@pytest.mark.parametrize(
    ("method", "options"), [("GET", {}), ("HEAD", {}), ("PATCH", {"repeatable": True})], ids=str
)
async def test_a_repeatable_request_is_repeated_after_a_failure(
    trouble: ScriptedReply | Lost, method: str, options: dict[str, Any]
) -> None:
    opened, transport = session(trouble, trouble, ScriptedReply())
    async with opened:
        assert (await opened.request(method, "/a", **options)).status == 200
    assert len(transport.requests) == 3


@pytest.mark.parametrize("trouble", [LOST, CUT, PAGE, ScriptedReply(503)], ids=repr)
@pytest.mark.parametrize(
    ("method", "options"),
    [("POST", {}), ("PUT", {}), ("PATCH", {}), ("DELETE", {}), ("GET", {"repeatable": False})],
    ids=str,
)
async def test_a_request_that_is_not_repeatable_has_an_unknown_outcome_after_a_failure(
    trouble: ScriptedReply | Lost, method: str, options: dict[str, Any]
) -> None:
    opened, transport = session(trouble)
    async with opened:
        with pytest.raises(UnknownOutcome) as unknown:
            await opened.request(method, "/a/{id}", id="x", body={"password": "hidden"}, **options)
    assert len(transport.requests) == 1
    assert (unknown.value.method, unknown.value.endpoint) == (method, "/a/{id}")
    assert "hidden" not in str(unknown.value)


async def test_any_request_is_repeated_if_it_was_not_sent() -> None:
    opened, transport = session(UNSENT, ScriptedReply())
    async with opened:
        await opened.request("POST", "/a")
    assert len(transport.requests) == 2


async def test_a_request_fails_after_the_last_attempt() -> None:
    opened, transport = session(LOST, LOST, LOST)
    async with opened:
        with pytest.raises(NoAnswer):
            await opened.request("GET", "/a")
    assert len(transport.requests) == 3


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (409, Conflict)])
async def test_an_error_status_raises_its_error(status: int, error: type[Exception]) -> None:
    opened, _ = session(ScriptedReply(status, b'{"error": "the server\'s words"}'))
    async with opened:
        with pytest.raises(error, match=r"POST /a answered .*: the server's words"):
            await opened.request("POST", "/a")


async def test_any_request_is_repeated_after_the_wait_of_a_429() -> None:
    opened, transport = session(ScriptedReply(429, headers={"Retry-After": "30"}), ScriptedReply())
    async with opened:
        began = asyncio.get_running_loop().time()
        await opened.request("POST", "/a")
        assert asyncio.get_running_loop().time() - began >= 30
    assert len(transport.requests) == 2


async def test_a_body_that_is_not_json_is_returned_unchanged() -> None:
    content = b"\xff\x00 not JSON"
    opened, _ = session(ScriptedReply(body=content, headers={"Content-Type": "application/octet-stream"}))
    async with opened:
        assert (await opened.request("GET", "/export.bin")).content == content


async def test_a_body_of_bytes_is_sent_unchanged() -> None:
    opened, transport = session(ScriptedReply())
    async with opened:
        await opened.request("POST", "/a", body=b'{"x": 1.0}')
    assert transport.requests[0][2] == b'{"x": 1.0}'


async def test_a_reply_does_not_contain_the_key() -> None:
    headers = {"Content-Type": JSON, "X-Echo": KEY}
    opened, _ = session(ScriptedReply(body=b'{"key": "' + KEY.encode() + b'"}', headers=headers))
    async with opened:
        reply = await opened.request("GET", "/a")
    assert KEY not in str((reply.content, reply.headers))


async def test_a_request_shares_the_budget_of_its_route() -> None:
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1)
    transport = InProcess(world)
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(2)) as opened:
        company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
        run = await company.imports.start(rows=[{"Email": "a@x.org"}])
        with opened.events.open(RequestSent) as events:
            reply = await opened.request(
                "GET",
                "/companies/{id}/imports/{run_id}",
                id=company.id,
                run_id=run.id,
                lane=Lane.DECIDE,
            )
            sent = await anext(events)
        assert opened.stats()["GET /companies/{id}/imports/{run_id}"].granted == 1
    assert isinstance(reply, Reply)
    assert reply.json(dict[str, object])["status"] == "queued"
    assert (sent.lane, sent.ids) == ("DECIDE", {"id": company.id, "run_id": run.id})


async def test_a_closed_session_sends_nothing() -> None:
    opened, transport = session()
    async with opened:
        opened.close()
        with pytest.raises(SessionClosed):
            await opened.request("GET", "/a")
    assert not transport.requests
