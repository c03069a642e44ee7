"""Base URLs in every accepted spelling, and proxies from environment variables."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncmig import AsyncmigError, InvalidInput, RetryPolicy, Session
from asyncmig.transport import AiohttpTransport, Lost, Timeouts

KEY = "key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("VERN_"):
            monkeypatch.delenv(name)


# Base URLs


@pytest.mark.parametrize(
    ("spelling", "normalized"),
    [
        ("https://api.example.org/api/v1", "https://api.example.org/api/v1"),
        ("https://api.example.org/api/v1//", "https://api.example.org/api/v1"),
        (" https://api.example.org/api/v1\n", "https://api.example.org/api/v1"),
        ("HTTPS://API.Example.ORG/api/V1", "https://api.example.org/api/V1"),
        ("https://api.example.org:443/api/v1", "https://api.example.org/api/v1"),
        ("https://api.example.org:/api/v1?", "https://api.example.org/api/v1"),
        ("https://api.example.org:8443", "https://api.example.org:8443"),
        ("https://bücher.example/api", "https://xn--bcher-kva.example/api"),
        ("https://[2001:DB8::1]:8443/api/", "https://[2001:db8::1]:8443/api"),
        ("http://LOCALHOST:8080/api/", "http://localhost:8080/api"),
        ("http://127.0.0.2/api", "http://127.0.0.2/api"),
        ("http://[::1]:80/api", "http://[::1]/api"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_each_spelling_of_a_base_url_is_normalized(
    spelling: str, normalized: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_variable:
        monkeypatch.setenv("VERN_BASE_URL", spelling)
    assert Session(KEY, None if by_variable else spelling).base_url == normalized


@pytest.mark.parametrize(
    "url",
    [
        "api.example.org/api/v1",
        "localhost:8080/api",
        "//api.example.org/api",
        "https:/api.example.org",
        "https:\\\\api.example.org",
        "ftp://api.example.org",
        "https:///api/v1",
        "https://api.example.org:0/api",
        "https://api.example.org:99999/api",
        "https://api.example.org:port/api",
        "https://api example.org/api",
        "https://api.exa\nmple.org/api",
        "https://[::1/api",
        "https://api.example.org/api?token=secret",
        "https://api.example.org/api#secret",
        "https://user:secret@api.example.org/api",
        "https://user:s#secret@api.example.org/api",
        "https://user:1/secret@api.example.org/api",
        "https://user:se://secret@api.example.org/api",
        "user:secret@api.example.org/api",
        "https://secret@api.example.org",
        "https://@api.example.org",
        "https://api.example.org/api VERN_API_KEY=secret",
        "http://api.example.org/api/v1",
        "http://10.0.0.1/api/v1",
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_an_invalid_base_url_is_refused_and_the_error_names_its_source(
    url: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_variable:
        monkeypatch.setenv("VERN_BASE_URL", url)
    with pytest.raises(InvalidInput) as refused:
        Session(KEY, None if by_variable else url)
    assert refused.value.field == ("VERN_BASE_URL" if by_variable else "base_url")
    assert "secret" not in repr(refused.value) + str(refused.value)
    assert refused.value.__context__ is None


# Proxies


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a proxy that records the head of each request and refuses it."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def ask(url: str = "https://api.example.invalid/sources") -> Lost:
    """Send a request to a host that does not exist, and return the error."""
    transport = AiohttpTransport()
    try:
        with pytest.raises(Lost) as lost:
            async with transport.exchange("GET", url, headers={}, body=None, timeouts=Timeouts()):
                pass
    finally:
        await transport.aclose()
    return lost.value


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("spelling", ["{}", "http://{}", "HTTP://{}/", " {} "])
async def test_a_proxy_is_read_from_each_environment_variable(
    name: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy() as (address, heads):
        monkeypatch.setenv(name, spelling.format(address))
        lost = await ask()
    assert [head.split()[:2] for head in heads] == [[b"CONNECT", b"api.example.invalid:443"]]
    assert not lost.sent  # the tunnel was refused: no server saw the request
    assert "403" in lost.reason


@pytest.mark.parametrize(
    ("exceptions", "is_used"),
    [
        ("", True),
        ("*", False),
        ("api.example.invalid", False),
        ("other.invalid, API.Example.invalid", False),
        (".example.invalid", False),
        ("*.example.invalid", False),
        ("example.invalid other.invalid", False),
        ("ample.invalid", True),
        ("api.example.invalid:443", False),
        ("api.example.invalid:8443", True),
        ("10.0.0.0/8", True),
    ],
)
async def test_requests_to_hosts_in_no_proxy_do_not_use_the_proxy(
    exceptions: str, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy() as (address, heads):
        monkeypatch.setenv("HTTPS_PROXY", address)
        monkeypatch.setenv("NO_PROXY", exceptions)
        await ask()
    assert len(heads) == is_used


@pytest.mark.parametrize(
    ("exceptions", "host", "is_used"),
    [
        ("10.0.0.0/8", "10.1.2.3", False),
        ("10.1.2.3:443", "10.1.2.3", False),
        ("10.1.2", "10.1.2.3", True),
        ("2001:db8::/32", "[2001:db8::1]", False),
        ("[2001:db8::1]:443", "[2001:db8::1]", False),
        ("[2001:db8::1]:80", "[2001:db8::1]", True),
        ("", "127.0.0.1", False),
        ("", "localhost", False),
        ("", "[::1]", False),
    ],
)
def test_no_proxy_accepts_ip_addresses_and_networks(
    exceptions: str, host: str, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert (AiohttpTransport().proxy_for(f"https://{host}/api") is not None) is is_used


async def test_credentials_in_the_url_of_a_proxy_are_sent_to_it_and_are_in_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy() as (address, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"us%40er:se%23cr€t@{address}")
        lost = await ask()
    given = heads[0].decode().partition("Proxy-Authorization: Basic ")[2].split()[0]
    assert base64.b64decode(given).decode() == "us@er:se#cr€t"
    monkeypatch.setenv("HTTPS_PROXY", "us%40er:se%23cr€t@127.0.0.1:1")
    for each in (lost, await ask()):
        assert "cr€t" not in f"{each!r} {each} {each.__cause__!r} {each.__context__!r}"


@pytest.mark.parametrize(
    "value",
    [
        "socks5://user:secret@proxy:1080",
        "socks5h://proxy:1080/",
        "https://user:secret@proxy:3128",
        "proxy:port",
        "proxy:0",
        "http://:3128",
        "http:proxy:3128",
        "http:/proxy:3128",
        "http//proxy:3128",
        "::1:3128",
        "two words:3128",
        "nonsense!",
        "http://user:se#secret@proxy:3128",
        "user:1/secret@proxy:3128",
        "user:x://secret@proxy:3128",
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_an_invalid_proxy_is_refused_before_the_first_request(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput) as refused:
        Session(KEY, "https://api.example.org/api")
    assert refused.value.field == name
    assert "secret" not in repr(refused.value) + str(refused.value)
    Session(KEY, "http://localhost:8080/api")  # needs no proxy
    monkeypatch.setenv("NO_PROXY", "example.org")
    Session(KEY, "https://api.example.org/api")


@pytest.mark.parametrize("values", [{"HTTPS_PROXY": ""}, {"https_proxy": "", "HTTPS_PROXY": "proxy:1"}])
def test_an_empty_variable_means_no_proxy(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert AiohttpTransport().proxy_for("https://api.example.org/") is None


# netrc


@pytest.mark.parametrize("place", ["NETRC", ".netrc"])
async def test_no_credentials_are_taken_from_a_netrc_file(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login someone password secret\n", encoding="utf-8")
    (tmp_path / ".netrc").chmod(0o600)
    if place == "NETRC":
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    else:
        monkeypatch.delenv("NETRC", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[str | None] = []

    async def record(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"sources": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", record)
    transport = AiohttpTransport()
    async with TestServer(app) as server:
        url = str(server.make_url("/sources"))
        for method in ("GET", "PUT", "POST"):
            async with transport.exchange(method, url, headers={}, body=b"", timeouts=Timeouts()):
                pass
        async with aiohttp.ClientSession(trust_env=True) as http, http.get(url):
            pass
    await transport.aclose()
    assert seen[:3] == [None] * 3
    assert seen[3] is not None  # aiohttp itself would use the file
    async with proxy() as (address, heads):
        monkeypatch.setenv("HTTPS_PROXY", address)
        await ask()
    assert b"authorization" not in heads[0].lower()


async def test_a_proxy_for_plain_http_gets_its_credentials_with_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy() as (address, heads):
        monkeypatch.setenv("HTTP_PROXY", f"user:secret@{address}")
        transport = AiohttpTransport()
        url = "http://api.example.invalid/sources"
        async with transport.exchange("GET", url, headers={}, body=None, timeouts=Timeouts()) as answer:
            assert answer.status == 403
        await transport.aclose()
    assert heads[0].startswith(b"GET http://api.example.invalid/sources ")
    assert base64.b64encode(b"user:secret") in heads[0]


async def test_a_session_sends_its_requests_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as (address, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"user:secret@{address}")
        async with Session(KEY, "https://api.example.invalid/api", retry=RetryPolicy(attempts=1)) as session:
            with pytest.raises(
                AsyncmigError, match="the proxy refused the connection with status 403"
            ) as error:
                await session.companies.sources()
    assert len(heads) == 1
    assert KEY.encode() not in heads[0]
    assert "secret" not in repr(error.value) + repr(error.value.__cause__)
