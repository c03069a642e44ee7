"""Uploads of files, bytes and streams to a storage that refuses requests, drops connections or expires URLs."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest
from inprocess import KEY, Fault, InProcess

from asyncmig import BadRequest, InvalidInput, NoAnswer, Session, UnexpectedReply
from asyncmig.companies import Company, Uploaded
from asyncmig.simulator import SCHEMAS, SOURCES, Reply, World, serve
from asyncmig.transfers.content import content_of

from .conftest import CLEAN, SOURCE, OpenSession

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]
CONTENT = bytes(range(256)) * 4_000
"""About a megabyte: several chunks."""


async def provisioned(session: Session) -> Company:
    return await session.companies.create(name="Acme", source=SOURCE)


def arrived(world: World) -> dict[str, tuple[str, bytes | None]]:
    """Return the content type and the bytes of each uploaded file by name."""
    (company,) = world.companies.values()
    return {each.name: (each.content_type, each.content) for each in company.uploads.values()}


async def chunks(content: bytes = CONTENT, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        await asyncio.sleep(0.001)
        yield content[start : start + size]


class Reopened:
    """A stream that each `async for` reads from the start."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return chunks()


@pytest.mark.parametrize(
    "source",
    [CONTENT, bytearray(CONTENT), chunks, Reopened(), lambda: chunks(size=999_999), "path", "iterator"],
    ids=["bytes", "bytearray", "function", "iterable", "callable", "path", "iterator"],
)
async def test_each_kind_of_source_is_uploaded_completely(
    source: object, open_session: OpenSession, world: World, tmp_path: Path
) -> None:
    if source == "path":
        source = tmp_path / "contacts.csv"
        source.write_bytes(CONTENT)  # type: ignore[attr-defined]
    source = chunks() if source == "iterator" else source
    seen: list[tuple[int, int]] = []
    async with open_session() as session:
        uploaded = await (await provisioned(session)).upload(
            source,  # type: ignore[arg-type]
            name="contacts.csv",
            size=len(CONTENT),
            progress=lambda sent, size: seen.append((sent, size)),
        )
    assert uploaded == Uploaded(
        name="contacts.csv",
        upload_ref=uploaded.upload_ref,
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    assert arrived(world) == {"contacts.csv": ("text/csv", CONTENT)}
    assert seen == sorted(set(seen))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("name", "given", "kind"),
    [
        ("a.CSV", None, "text/csv"),
        ("book.xlsx", None, "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("old.xls", None, "application/vnd.ms-excel"),
        ("data.bin.unheard-of", None, "application/octet-stream"),
        ("a.csv", "text/plain; charset=utf-16", "text/plain; charset=utf-16"),
    ],
)
async def test_a_file_is_uploaded_unchanged_with_the_content_type_of_its_name(
    name: str, given: str | None, kind: str, open_session: OpenSession, world: World
) -> None:
    content = b"PK\x03\x04\x00\xff not text at all"
    async with open_session() as session:
        await (await provisioned(session)).upload(content, name=name, content_type=given)
    assert arrived(world) == {name: (kind, content)}


@pytest.mark.parametrize(
    ("source", "options", "field"),
    [
        (b"x", {}, "name"),
        (b"x", {"name": " "}, "name"),
        (b"", {"name": "a.csv"}, "files"),
        (b"x", {"name": "a.csv", "size": 2}, "size"),
        (b"x", {"name": "a.csv", "content_type": "text/csv\r\nx-evil: 1"}, "content_type"),
        (chunks, {"name": "a.csv"}, "size"),
        (chunks, {"name": "a.csv", "size": 0}, "size"),
        (chunks, {"size": 1}, "name"),
        ("a.csv", {"name": "a.csv", "size": 1}, "files"),
        (lambda: "text", {"name": "a.csv", "size": 1}, "files"),
        (Path("not-there.csv"), {}, "files"),
        (Path(), {}, "files"),
    ],
)
async def test_an_invalid_source_is_refused_without_an_upload(
    source: object,
    options: dict[str, object],
    field: str,
    open_session: OpenSession,
    transport: InProcess,
    world: World,
) -> None:
    async with open_session() as session:
        company = await provisioned(session)
        with pytest.raises(InvalidInput) as refused:
            await company.upload(source, **options)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert [method for _, method, _ in transport.sent if method == "PUT"] == []


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (len(CONTENT) - 1, "has more"),
        (1_000_000, "has more"),  # at the end of a chunk
        (len(CONTENT) + 1, "ended after"),
    ],
)
async def test_a_stream_whose_size_differs_from_the_given_size_is_not_stored(
    size: int, what: str, open_session: OpenSession, world: World
) -> None:
    async with open_session() as session:
        with pytest.raises(InvalidInput, match=what):
            await (await provisioned(session)).upload(chunks, name="a.csv", size=size)
    assert arrived(world)["a.csv"][1] is None


async def test_a_file_that_grows_or_shrinks_during_its_upload_is_refused(
    open_session: OpenSession, tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    async with open_session(upload_bytes_per_second=100_000) as session:
        company = await provisioned(session)
        for content in (CONTENT * 5, CONTENT * 7):
            file.write_bytes(CONTENT * 6)
            upload = asyncio.create_task(company.upload(file))
            await asyncio.sleep(1.0)
            file.write_bytes(content)
            with pytest.raises(InvalidInput, match="changed"):
                await upload


async def test_an_exception_in_a_stream_or_a_progress_callback_is_propagated_unchanged(
    open_session: OpenSession,
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("of the bucket")

    async with open_session() as session:
        company = await provisioned(session)
        with pytest.raises(KeyError, match="of the bucket"):
            await company.upload(broken, name="a.csv", size=2)
        with pytest.raises(ZeroDivisionError):
            await company.upload(CONTENT, name="a.csv", progress=lambda sent, size: (sent / 0, None)[1])
        assert (await company.upload(CONTENT, name="a.csv")).size == len(CONTENT)


@pytest.mark.looptime(noop_cycles=42)
async def test_aiohttp_does_not_turn_an_exception_in_a_stream_into_a_network_error() -> None:
    """aiohttp reads the stream in a task of its own, and reports each exception there as a network error."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("of the bucket")

    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS)
    async with serve(world) as serving, Session(KEY, serving.base_url) as session:
        company = await provisioned(session)
        with pytest.raises(KeyError, match="of the bucket"):
            await company.upload(broken, name="a.csv", size=2)
        with pytest.raises(InvalidInput, match="has more"):
            await company.upload(chunks, name="a.csv", size=1_000_000)
        uploaded = await company.upload(chunks, name="a.csv", size=len(CONTENT))
        assert company.id
    assert arrived(world)["a.csv"][1] == CONTENT
    assert uploaded.sha256 == hashlib.sha256(CONTENT).hexdigest()


FAULTS = {
    "reset": Fault(lost_after=True),
    "expired": Fault(instead=Reply(status=403, body=b"<Error>Request has expired</Error>")),
    "busy": Fault(instead=Reply(status=503, body=b"")),
    "html": Fault(instead=Reply(status=200, body=b"<html>", content_type="text/html")),
}


def storage(*faults: Fault) -> Callable[[str, str, int], Fault | None]:
    """Return a function that applies `faults` to the first uploads, in order."""
    return lambda method, path, number: (
        faults[number - 1] if path == "/storage" and number <= len(faults) else None
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_source_that_can_be_reopened_is_sent_again_to_a_new_url(
    fault: Fault, open_session: OpenSession, transport: InProcess, world: World
) -> None:
    transport.fault = storage(fault, fault)
    async with open_session() as session:
        uploaded = await (await provisioned(session)).upload(chunks, name="a.csv", size=len(CONTENT))
    urls = [url for _, method, url in transport.sent if method == "PUT"]
    assert len(urls) == len(set(urls)) == 3
    assert uploaded.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert world.companies[next(iter(world.companies))].uploads[uploaded.upload_ref].content == CONTENT


@pytest.mark.parametrize(("body", "puts"), [(b"", 1), (b"<html>stored", 8)])
async def test_html_responses_of_the_storage_are_accepted_after_all_attempts(
    body: bytes, puts: int, open_session: OpenSession, transport: InProcess, world: World
) -> None:
    page = Fault(afterwards=Reply(status=200, body=body, content_type="Text/HTML; charset=utf-8"))
    transport.fault = storage(*[page] * 9)
    async with open_session() as session:
        uploaded = await (await provisioned(session)).upload(CONTENT, name="a.csv")
    assert uploaded.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [method for _, method, _ in transport.sent].count("PUT") == puts


@pytest.mark.parametrize("url", ["http://elsewhere.invalid/x", "https://[bad/x", "ftp://x/y", "nothing"])
async def test_an_invalid_upload_url_of_the_server_is_refused(
    open_session: OpenSession, transport: InProcess, url: str
) -> None:
    named = Fault(
        afterwards=Reply(status=201, body=json.dumps({"upload_url": url, "upload_ref": "r"}).encode())
    )
    async with open_session() as session:
        company = await provisioned(session)
        transport.fault = lambda method, path, number: named if path.endswith("/uploads") else None
        with pytest.raises(InvalidInput, match="named by the server"):
            await company.upload(CONTENT, name="a.csv")
    assert not any(method == "PUT" for _, method, _ in transport.sent)


@pytest.mark.parametrize(("fault", "kind"), [("reset", NoAnswer), ("expired", UnexpectedReply)])
async def test_a_partly_read_stream_is_not_sent_again_and_the_error_says_why(
    fault: str, kind: type[Exception], open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = storage(FAULTS[fault])
    async with open_session() as session:
        with pytest.raises(kind, match=r"stream of a\.csv can be read only once.*give a callable"):
            await (await provisioned(session)).upload(chunks(), name="a.csv", size=len(CONTENT))
    assert [method for _, method, _ in transport.sent].count("PUT") == 1


async def test_an_unread_stream_is_retried(open_session: OpenSession, transport: InProcess) -> None:
    # An upload makes eight attempts.
    transport.fault = lambda method, path, number: (
        Fault(lost_before=True) if path.endswith("/uploads") and number < 8 else None
    )
    async with open_session() as session:
        uploaded = await (await provisioned(session)).upload(chunks(), name="a.csv", size=len(CONTENT))
    assert uploaded.size == len(CONTENT)


async def test_an_attempt_requests_the_url_and_sends_the_bytes_at_most_once(
    open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(lost_before=True) if path == "/storage" or (path.endswith("/uploads") and number % 2) else None
    )
    async with open_session() as session:
        company = await provisioned(session)
        with pytest.raises(NoAnswer):
            await company.upload(CONTENT, name="a.csv")
    assert sum(url.endswith("/uploads") for _, _, url in transport.sent) == 8
    assert sum(method == "PUT" for _, method, _ in transport.sent) == 4


async def test_a_file_that_is_too_large_for_the_storage_is_sent_once(
    open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=413, body=b"")) if path == "/storage" else None
    )
    async with open_session() as session:
        with pytest.raises(BadRequest, match="413"):
            await (await provisioned(session)).upload(CONTENT, name="a.csv")
    assert [method for _, method, _ in transport.sent].count("PUT") == 1


def xml(code: str, message: str = "as it is") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def answers(*replies: Reply) -> Callable[[str, str, int], Fault | None]:
    """Return these replies to the first PUTs, and the last one to all later PUTs; an empty body stores the file."""

    def fault(method: str, path: str, number: int) -> Fault | None:
        reply = replies[min(number, len(replies)) - 1]
        return Fault(instead=reply) if path == "/storage" and reply.body else None

    return fault


@pytest.mark.parametrize(
    ("status", "code", "puts"),
    [
        (400, "EntityTooLarge", 1),
        (413, "RequestBodyTooLarge", 1),
        (400, "InvalidRequest", 3),
        (401, "AccessDenied", 3),
        (403, "RequestTimeTooSkewed", 3),
        (404, "NoSuchBucket", 3),
        (409, "BlobImmutable", 3),
    ],
)
async def test_a_refusal_by_the_storage_is_final_if_new_urls_are_refused_too(
    open_session: OpenSession, transport: InProcess, world: World, status: int, code: str, puts: int
) -> None:
    transport.fault = answers(Reply(status=status, body=xml(code), content_type="application/xml"))
    async with open_session() as session:
        company = await provisioned(session)
        with pytest.raises(BadRequest, match=f"{status}: the storage refused the bytes: {code}: as it is"):
            await company.upload(CONTENT, name="a.csv")
        await session.companies.sources()  # the session does not treat its key as refused
    assert [method for _, method, _ in transport.sent].count("PUT") == puts
    assert len({url for _, method, url in transport.sent if method == "PUT"}) == puts


@pytest.mark.parametrize(
    "refusals",
    [
        [(403, "AccessDenied"), (403, "AccessDenied")],
        [(503, "SlowDown")] * 5,
        [(400, "RequestTimeout")] * 5,
        [(429, "TooMany"), (408, "Late"), (403, "AccessDenied"), (500, "InternalError")],
        [(302, "")] * 7,  # a redirect by a proxy
    ],
)
async def test_temporary_refusals_by_the_storage_are_retried(
    open_session: OpenSession, transport: InProcess, refusals: list[tuple[int, str]]
) -> None:
    transport.fault = answers(
        *(Reply(status=each, body=xml(code) if code else b"moved") for each, code in refusals),
        Reply(status=200, body=b""),
    )
    async with open_session() as session:
        uploaded = await (await provisioned(session)).upload(CONTENT, name="a.csv")
    assert uploaded.size == len(CONTENT)
    assert [method for _, method, _ in transport.sent].count("PUT") == len(refusals) + 1


async def test_a_retry_after_header_of_the_storage_is_obeyed(
    open_session: OpenSession, transport: InProcess
) -> None:
    busy = Reply(status=503, body=xml("SlowDown"), headers={"Retry-After": "40"})
    transport.fault = answers(busy, Reply(status=200, body=b""))
    async with open_session() as session:
        await (await provisioned(session)).upload(CONTENT, name="a.csv")
    first, second = (at for at, method, _ in transport.sent if method == "PUT")
    assert 40 <= second - first < 70


@pytest.mark.parametrize("status", [201, 204])
async def test_status_201_or_204_with_html_means_that_the_file_is_stored(
    open_session: OpenSession, transport: InProcess, status: int
) -> None:
    transport.fault = answers(Reply(status=status, body=b"<html>stored</html>", content_type="text/html"))
    async with open_session() as session:
        await (await provisioned(session)).upload(CONTENT, name="a.csv")
    assert [method for _, method, _ in transport.sent].count("PUT") == 1


async def test_a_url_that_expires_during_the_upload_is_replaced(
    open_session: OpenSession, world: World
) -> None:
    world.variants = replace(world.variants, upload_lives=5.0)
    lifetimes = iter([5.0, 3600.0])
    async with open_session(upload_bytes_per_second=100_000) as session:
        company = await provisioned(session)

        def slow_the_first(sent: int, size: int) -> None:
            if sent == size:
                next(lifetimes, None)
                world.variants = replace(world.variants, upload_lives=3600.0)

        uploaded = await company.upload(CONTENT, name="a.csv", progress=slow_the_first)
    assert next(lifetimes, None) is None  # the file was sent twice
    assert uploaded.size == len(CONTENT)


async def test_opened_streams_are_closed_after_cancellation_and_failure(
    open_session: OpenSession, transport: InProcess
) -> None:
    open_now = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal open_now
        open_now += 1
        try:
            async for chunk in chunks():
                yield chunk
        finally:
            open_now -= 1

    async with open_session(upload_bytes_per_second=100_000) as session:
        company = await provisioned(session)
        upload = asyncio.create_task(company.upload(counted, name="a.csv", size=len(CONTENT)))
        await asyncio.sleep(3.0)
        assert open_now == 1
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert open_now == 0
        transport.fault = storage(Fault(), FAULTS["reset"])
        await company.upload(counted, name="a.csv", size=len(CONTENT))
        assert open_now == 0
    assert transport.open == 0


class SlowFile(BytesIO):
    """A file whose second read blocks until `go` is set."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.go, self.reads, self.is_read = threading.Event(), 0, False

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += size != 0
        self.is_read = True
        if self.reads == 2:
            assert self.go.wait(10)
        self.is_read = False
        return super().read(size)


async def test_an_upload_that_is_cancelled_twice_ends_after_the_thread_that_reads_its_file() -> None:
    file = SlowFile(bytes(5_000_000))
    content = content_of(file, name="a.csv", size=None)

    async def send() -> None:
        async with content.attempt(None, None) as sending:
            reader = asyncio.create_task(drain(sending))
            try:
                await asyncio.sleep(3600)
            finally:
                reader.cancel()  # as aiohttp does with the task that sends the body

    async def drain(sending: AsyncIterator[bytes]) -> None:
        async for _ in sending:
            pass

    upload = asyncio.create_task(send())
    while file.reads < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    for _ in range(2):
        upload.cancel()
        await asyncio.sleep(0.001)
    assert file.is_read
    assert not upload.done()
    file.go.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert not file.is_read


async def test_a_file_of_which_only_the_beginning_was_sent_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[IO[bytes]] = []

    def opening(path: Path, mode: str) -> IO[bytes]:
        opened.append(real(path, mode))
        return opened[-1]

    real: Callable[[Path, str], IO[bytes]] = Path.open
    path = tmp_path / "a.csv"
    path.write_bytes(bytes(5_000_000))
    monkeypatch.setattr(Path, "open", opening)
    async with content_of(path, name=None, size=None).attempt(None, None) as sending:
        assert opened == []
        assert await anext(sending)
    assert [file.closed for file in opened] == [True]


def written(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"file{n}.csv" for n in range(count)]
    for n, path in enumerate(paths):
        path.write_text(f"Email\n{n}@x.org\n", encoding="utf-8")
    return paths


async def test_the_files_of_an_import_are_uploaded_in_parallel_and_keep_their_order(
    open_session: OpenSession, transport: InProcess, tmp_path: Path
) -> None:
    paths = written(tmp_path, 12)
    most = 0

    def watch(method: str, path: str, number: int) -> None:
        nonlocal most
        most = max(most, transport.open if path == "/storage" else 0)

    transport.fault = watch
    async with open_session(max_parallel_uploads=3) as session:
        company = await provisioned(session)
        ready = await company.upload(CLEAN.encode(), name="ready.csv")
        run = await company.imports.start(files=[paths[0], ready, *paths[1:]])
        assert run.id
    (state,) = transport.world.companies.values()
    (imported,) = state.runs.values()
    assert [table.name for table, _ in imported.inserted] == [
        "file0",
        "Contacts",
        *(f"file{n}" for n in range(1, 12)),
    ]
    assert most == 3


@pytest.mark.parametrize("broken", ["/storage", "/uploads"])
async def test_uploads_that_wait_for_a_retry_do_not_count_as_parallel_uploads(
    broken: str, open_session: OpenSession, transport: InProcess
) -> None:
    fails = True
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=503, body=b"")) if fails and path.endswith(broken) else None
    )
    loop = asyncio.get_running_loop()
    async with open_session(max_parallel_uploads=2) as session:
        company = await provisioned(session)
        stuck = [asyncio.create_task(company.upload(CONTENT, name=f"{n}.csv")) for n in range(2)]
        await asyncio.sleep(0.5)
        fails, began = False, loop.time()
        await company.upload(CONTENT, name="good.csv")
        assert loop.time() - began < 0.5  # the shortest back-off is a second
        await asyncio.gather(*stuck)


async def test_a_failed_file_cancels_the_other_uploads_and_raises_its_error(
    open_session: OpenSession, transport: InProcess, world: World, tmp_path: Path
) -> None:
    paths, loop = written(tmp_path, 6), asyncio.get_running_loop()
    for path in paths[1:]:
        path.write_bytes(CONTENT)
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=413, body=b"")) if path == "/storage" and number == 1 else None
    )
    async with open_session(upload_bytes_per_second=100_000) as session:
        company = await provisioned(session)
        with pytest.raises(BadRequest, match="413"):
            await company.imports.start(files=paths)
        assert loop.time() < 10.0
        await asyncio.sleep(60.0)
        assert transport.open == 0
        assert not any(content for _, content in arrived(world).values())
        paths[3].unlink()
        before = len(transport.sent)
        with pytest.raises(InvalidInput, match="file3"):
            await company.imports.start(files=paths)
        assert len(transport.sent) == before


async def test_all_uploads_of_a_session_share_upload_bytes_per_second(open_session: OpenSession) -> None:
    loop = asyncio.get_running_loop()
    async with open_session(upload_bytes_per_second=256_000) as session:
        company = await provisioned(session)
        began = loop.time()
        await asyncio.gather(*(company.upload(CONTENT, name=f"{n}.csv") for n in range(4)))
        assert loop.time() - began == pytest.approx(16.0, abs=1.0)


async def test_a_repeated_start_with_a_key_reuses_the_earlier_uploads(
    open_session: OpenSession, transport: InProcess, tmp_path: Path
) -> None:
    """A server may compare the upload references of a key: new references with the old key would cause a 409."""
    paths = written(tmp_path, 2)
    transport.fault = lambda method, path, number: (
        Fault(lost_after=True) if method == "POST" and path.endswith("/imports") and number <= 8 else None
    )
    async with open_session() as session:
        company = await provisioned(session)
        with pytest.raises(NoAnswer):
            await company.imports.start(files=paths, idempotency_key="k")
        run = await company.imports.start(files=paths, idempotency_key="k")
        assert (await run.wait()).status == "completed"
        again = await company.imports.start(files=paths, idempotency_key="k")
        assert again.id == run.id
    assert [method for _, method, _ in transport.sent].count("PUT") == 2
    assert transport.world.verdict(10**6).duplicate_imports == 0
