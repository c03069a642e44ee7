"""Downloads of sheets to files and as streams: selection, checks for completeness, and cleanup."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import (
    ImportReport,
    InvalidInput,
    NotFound,
    RateLimited,
    RetryPolicy,
    Session,
    TruncatedDownload,
)
from asyncmig.companies import Company, Sheet
from asyncmig.companies.expected import Expected
from asyncmig.customers.outcome import SheetCount
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, Reply, RunDurations, Variants, World
from asyncmig.transfers.csv_records import RecordCounter, RowCount

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
ROWS = [{"Email": f"p{n}@x.org", "Last Name": "L" * 200, "First Name": "F"} for n in range(20)]
Imported = Callable[..., AbstractAsyncContextManager[Company]]


@pytest.fixture
def world() -> World:
    return World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=RunDurations(sigma=0.0))


@pytest.fixture
def transport(world: World) -> InProcess:
    return InProcess(world)


@pytest.fixture
def imported(transport: InProcess) -> Imported:
    """Return a function that opens a company with three sheets; Contacts has 20 rows."""

    @asynccontextmanager
    async def make(**variants: object) -> AsyncIterator[Company]:
        transport.world.variants = replace(Variants(), **variants)  # type: ignore[arg-type]
        async with Session(
            KEY, BASE_URL, transport=transport, rng=Random(3), retry=RetryPolicy(attempts=3)
        ) as session:
            company = await session.companies.create(name="Acme", source=SOURCE)
            await (await company.imports.start(rows=ROWS)).wait()
            yield company
        assert transport.open == 0

    return make


def downloads(transport: InProcess) -> int:
    return sum("/export.csv" in url for _, _, url in transport.sent)


def faulty(transport: InProcess, fault: Fault, *numbers: int) -> None:
    transport.faulty_endpoint = "GET /companies/{id}/export.csv"
    transport.nth = dict.fromkeys(numbers, fault)


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


# To files


@pytest.mark.parametrize("wanted", ["Contacts", "contacts", "id", "sheet"])
async def test_one_sheet_is_selected_by_name_id_or_object(
    imported: Imported, transport: InProcess, tmp_path: Path, wanted: str
) -> None:
    async with imported() as company:
        sheet = next(sheet for sheet in company.sheets if sheet.name == "Contacts")
        asked = {"id": sheet.id, "sheet": sheet}.get(wanted, wanted)
        files = await company.download(to=tmp_path, sheets=[asked, sheet], filter="all")
    assert [(file.sheet, file.rows) for file in files] == [("Contacts", 20)]
    assert [path.name for path in tmp_path.iterdir()] == ["Contacts.csv"]
    assert downloads(transport) == 1


@pytest.mark.parametrize(
    ("sheets", "reason"),
    [("Contacts", "a sequence"), ([], "not empty"), (["Nope"], "is not known"), ([""], "is empty")],
)
async def test_an_invalid_selection_of_sheets_is_refused_without_a_request(
    imported: Imported, transport: InProcess, tmp_path: Path, sheets: list[str], reason: str
) -> None:
    async with imported() as company:
        with pytest.raises(InvalidInput, match=reason):
            await company.download(to=tmp_path, sheets=sheets)
        with pytest.raises(InvalidInput, match="neither"):
            company.stream("Contacts", filter="some")  # type: ignore[arg-type]
    assert downloads(transport) == 0


async def test_an_ambiguous_sheet_name_is_refused(imported: Imported, transport: InProcess) -> None:
    async with imported():
        pass
    async with Session(KEY, BASE_URL, transport=transport) as session:
        twins = [Sheet(id="1", name="Twin"), Sheet(id="2", name="Twin")]
        with pytest.raises(InvalidInput, match="is the name of 2 of them"):
            session.companies.open("c", sheets=twins).stream("Twin")


async def test_a_text_is_an_id_if_no_sheets_are_known(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    async with imported() as company, Session(KEY, BASE_URL, transport=transport) as session:
        opened_by_id = session.companies.open(company.id)
        files = await opened_by_id.download(to=tmp_path, sheets=[company.sheets[1].id])
        with pytest.raises(NotFound, match="Sheet not found"):
            await opened_by_id.download(to=tmp_path, sheets=["nope"])
    assert [file.rows for file in files] == [20]


@pytest.mark.parametrize("status", [404, 501])
async def test_an_unsupported_archive_is_requested_once(
    imported: Imported, transport: InProcess, tmp_path: Path, status: int
) -> None:
    async with imported(zip_status=status) as company:
        for _ in range(2):
            assert len(await company.download(to=tmp_path)) == 3
    assert downloads(transport) == 1 + 3 + 3


async def test_a_404_for_a_company_does_not_mean_that_archives_are_unsupported(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    async with imported() as company:
        gone = company.__class__(company._context, "gone", sheets=company.sheets)
        with pytest.raises(NotFound):
            await gone.download(to=tmp_path)
        await company.download(to=tmp_path)
    assert downloads(transport) == 2 + 1


@pytest.mark.parametrize("fault", [200, 403, 422, 500, "cut"])
async def test_sheets_are_downloaded_one_by_one_if_the_archive_always_fails(
    imported: Imported, transport: InProcess, tmp_path: Path, fault: int | str
) -> None:
    async with imported() as company:
        transport.fault = lambda method, path, number: (
            (Fault(instead=Reply(status=fault, body=b"{}")) if isinstance(fault, int) else Fault(cut_to=9))
            if path.endswith("/export.csv") and "sheet_id" not in transport.sent[-1][2]
            else None
        )
        for _ in range(2):
            assert [file.rows for file in await company.download(to=tmp_path)] == [0, 20, 0]
        if fault not in (200, "cut"):  # these fail after the stream has passed on bytes of the archive
            async with company.stream() as chunks:
                assert len(zipfile.ZipFile(io.BytesIO(await read(chunks))).namelist()) == 3
    archives = sum("sheet_id" not in url for _, _, url in transport.sent if "/export.csv" in url)
    assert 2 <= archives <= 3 * 8  # each download requests the archive again


async def test_an_archive_may_have_other_files_and_must_have_each_sheet(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    async with imported() as company:
        names = [sheet.name for sheet in company.sheets]
        for extra in (["README.txt", "__MACOSX/._A.csv", "manifest.json"], []):
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as content:
                for name in [*extra, *(f"{name}.csv" for name in names[: len(extra) or 1])]:
                    content.writestr(name, "a\n" + "1\n" * 20 * (name == "Contacts.csv"))
            faulty(transport, Fault(instead=Reply(status=200, body=archive.getvalue())), 1)
            files = await company.download(to=tmp_path / str(len(extra)))
            assert [file.sheet for file in files] == names  # from the archive, then from single downloads


async def test_a_damaged_archive_is_fetched_again(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    """`zipfile` raises several kinds of errors. None of them may be mistaken for a disk error."""
    rng, damaged = Random(4), list[Fault]()
    transport.fault = lambda method, path, number: (
        damaged.pop() if path.endswith("/export.csv") and damaged else None
    )
    async with imported() as company:
        async with company.stream() as chunks:
            whole = await read(chunks)
        for _ in range(150):
            body = bytearray(whole)
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            damaged.append(Fault(instead=Reply(status=200, body=bytes(body))))
            assert [file.rows for file in await company.download(to=tmp_path)] == [0, 20, 0]


@pytest.mark.parametrize("size", [256 * 1024, 256 * 1024 + 1, 5_000_000])
async def test_only_an_archive_of_more_than_256_kib_needs_a_temporary_file(
    imported: Imported, transport: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    cell, archive = Random(1).randbytes(size // 40 - 20).hex().encode(), io.BytesIO()
    sheets, temporary = {"Contacts": b"Note\n" + (cell + b"\n") * 20}, tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    async with imported() as company:
        with zipfile.ZipFile(archive, "w") as content:
            for sheet in company.sheets:
                content.writestr(f"{sheet.name}.csv", sheets.setdefault(sheet.name, b"a\n"))
        with zipfile.ZipFile(archive, "a") as content:
            content.comment = bytes(size - len(archive.getvalue()))
        faulty(transport, Fault(instead=Reply(status=200, body=archive.getvalue())), 1, 2)
        if size > 256 * 1024:
            with pytest.raises(FileNotFoundError, match="temporary"):
                await company.download(to=tmp_path / "out")
            temporary.mkdir()
        files = await company.download(to=tmp_path / "out")
    assert len(archive.getvalue()) == size
    assert {file.sheet: Path(file.path).read_bytes() for file in files} == sheets
    assert downloads(transport) == 1 + (size > 256 * 1024)


@pytest.mark.parametrize("name", ["../x", "CON", "a/b", "..\\x"])
async def test_a_sheet_name_cannot_lead_out_of_the_folder(
    imported: Imported, transport: InProcess, tmp_path: Path, name: str
) -> None:
    async with imported() as company:
        sheet = Sheet(id=company.sheets[1].id, name=name)
        [file] = await company.download(to=tmp_path / "out", sheets=[sheet])
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr(f"{name}.csv", "a\n1\n")
        faulty(transport, Fault(instead=Reply(status=200, body=archive.getvalue())), 2)
        opened_by_id = company.__class__(company._context, company.id)
        [entry] = await opened_by_id.download(to=tmp_path / "out")
    for each in (file, entry):
        assert Path(each.path).parent == tmp_path / "out"
        assert Path(each.path).stem.upper() != "CON"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


async def downloaded(imported: Imported, transport: InProcess, to: Path, content: bytes) -> int:
    """Return the row count of a sheet whose every download is `content`, after an import of 20 rows."""
    faulty(transport, Fault(instead=Reply(status=200, body=content, content_type="text/csv")), *range(1, 999))
    async with imported() as company:
        [file] = await company.download(to=to, sheets=["Contacts"], filter="all")
    assert Path(file.path).read_bytes() == content
    return file.rows


@pytest.mark.parametrize(
    ("line", "end"), [('p@x,6" pipe', "\r\n"), ('p@x,6"', "\n"), ('p@x, "a,b"', "\n"), ("p@x,a\rb", "\r\n")]
)
async def test_an_ambiguous_csv_is_accepted_if_one_reading_has_the_reported_rows(
    imported: Imported, transport: InProcess, tmp_path: Path, line: str, end: str
) -> None:
    content = "Email,Note" + end + (line + end) * 20
    assert await downloaded(imported, transport, tmp_path, content.encode()) == 20
    assert downloads(transport) == 1


@pytest.mark.parametrize("zip_status", [200, 404])
async def test_sheets_whose_sum_agrees_only_in_the_second_way_to_read_come_once(
    imported: Imported, transport: InProcess, tmp_path: Path, zip_status: int
) -> None:
    sheet, archive = b"Email,Note\r\n" + b'p@x,6" pipe\r\n' * 20, io.BytesIO()
    async with imported(zip_status=zip_status) as company:
        with zipfile.ZipFile(archive, "w") as content:
            for each in company.sheets:
                content.writestr(f"{each.name}.csv", sheet if each.name == "Contacts" else b"a\n")
        body = archive.getvalue() if zip_status == 200 else sheet
        faulty(transport, Fault(instead=Reply(status=200, body=body)), 1 if zip_status == 200 else 3)
        files = await company.download(to=tmp_path, report=ImportReport(inserted=20), filter="all")
    assert [file.rows for file in files] == [0, 20, 0]
    assert Path(files[1].path).read_bytes() == sheet
    assert downloads(transport) == (1 if zip_status == 200 else 4)


async def test_an_unclosed_quote_is_text_if_a_second_download_is_identical(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    content = b'Email,Note\r\np@x,"6 pipe\r\n' + b"p@x,x\r\n" * 19
    assert await downloaded(imported, transport, tmp_path, content) == 20
    assert downloads(transport) == 2


async def test_identical_wrong_downloads_end_with_a_final_error(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    with pytest.raises(TruncatedDownload, match="19 rows arrived") as caught:
        await downloaded(imported, transport, tmp_path, b"Email,Note\r\n" + b"p@x,x\r\n" * 19)
    assert caught.value.is_final
    assert downloads(transport) == 3  # `attempts` of the session
    assert not list(tmp_path.iterdir())


async def test_varying_wrong_downloads_are_requested_once_per_attempt(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    async with imported() as company:
        transport.fault = lambda method, path, number: (
            Fault(instead=Reply(status=200, body=b"Email\r\n" + b"p@x\r\n" * number, content_type="text/csv"))
            if path.endswith("/export.csv")
            else None
        )
        with pytest.raises(TruncatedDownload, match="3 rows arrived") as caught:
            await company.download(to=tmp_path, sheets=["Contacts"], filter="all")
    assert not caught.value.is_final
    assert downloads(transport) == 3


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
async def test_a_sheet_cut_in_its_last_cell_is_fetched_again(
    imported: Imported, transport: InProcess, tmp_path: Path, cut: int
) -> None:
    content = b"Email,Note\r\n" + b"p@x,whole\r\n" * 20
    bodies = [content[:-cut], content, content]
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=200, body=bodies[number - 1])) if path.endswith("/export.csv") else None
    )
    async with imported() as company:
        [file] = await company.download(to=tmp_path, sheets=["Contacts"], filter="all")
    assert Path(file.path).read_bytes() == content
    assert downloads(transport) == 2


async def test_a_missing_final_line_end_is_accepted_after_identical_downloads(
    imported: Imported, transport: InProcess, tmp_path: Path
) -> None:
    content = b"Email,Note\r\n" + b"\r\n".join([b"p@x,whole"] * 20)
    reply = Fault(instead=Reply(status=200, body=content))
    transport.fault = lambda method, path, number: reply if path.endswith("/export.csv") else None
    async with imported() as company:
        for times in (2, 3, 4):
            [file] = await company.download(to=tmp_path, sheets=["Contacts"], filter="all")
            assert Path(file.path).read_bytes() == content
            assert downloads(transport) == times


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("cell", ["x", '"a\r\n""b"', "\u0a0d\u0d0a", "\u2028"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("rows", [19, 20])
async def test_rows_of_a_sheet_in_utf_16_or_utf_32_are_counted(
    imported: Imported,
    transport: InProcess,
    tmp_path: Path,
    encoding: str,
    cell: str,
    columns: int,
    rows: int,
) -> None:
    lines = [",".join([each] * columns) for each in ["Note", *[cell] * rows]]
    content = "".join(f"{line}\r\n" for line in lines).encode(encoding)
    if rows == 20:
        assert await downloaded(imported, transport, tmp_path, content) == 20
        assert downloads(transport) == 1
    else:
        with pytest.raises(TruncatedDownload, match="19 rows arrived"):
            await downloaded(imported, transport, tmp_path, content)


class EndlessResponse:
    """A response without end: `head`, and then `more` again and again."""

    def __init__(self, head: bytes, more: bytes, content_type: str = "text/csv") -> None:
        self._head, self._more = head, more
        self.status, self.headers = 200, {"Content-Type": content_type}
        self.size = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._head
        while True:
            self.size += len(self._more)
            assert self.size < 256 * 1024 * 1024
            yield self._more


class EndlessDownloads(InProcess):
    """A transport whose downloads never end."""

    response: EndlessResponse

    @asynccontextmanager
    async def exchange(self, method: str, url: str, **other: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        async with super().exchange(method, url, **other) as answer:
            yield self.response if "/export.csv" in url else answer


async def _streamed(company: Company) -> None:
    async with company.stream("Contacts") as chunks:
        async for _ in chunks:
            pass


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("head", "more", "reason"),
    [
        (b"Email\r\n", b"p@x\r\n" * 1000, "more rows than the 20"),
        (b"", b"header" * 10_000, "no row ended within 16 MiB"),
        (b'Email\r\np@x\r\n"', b"a cell\r\n" * 10_000, "no row ended within 16 MiB"),
        (b"Email\r\n", b"\r\n" * 10_000, "no row ended within 16 MiB"),
    ],
)
async def test_the_download_of_an_endless_sheet_is_stopped(
    world: World, tmp_path: Path, head: bytes, more: bytes, reason: str, streamed: bool
) -> None:
    transport = EndlessDownloads(world)
    transport.response = EndlessResponse(head, more)
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(3)) as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        await (await company.imports.start(rows=ROWS)).wait()
        with pytest.raises(TruncatedDownload, match=reason):
            await (_streamed(company) if streamed else company.download(to=tmp_path, sheets=["Contacts"]))
    assert downloads(transport) == 1 + (not streamed)
    assert transport.response.size <= 40 * 1024 * 1024
    assert not list(tmp_path.iterdir())


async def test_the_download_of_an_endless_archive_is_stopped(world: World, tmp_path: Path) -> None:
    transport = EndlessDownloads(world)
    transport.response = EndlessResponse(b"PK\x03\x04", b"x" * 1024 * 1024, "application/zip")
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(3)) as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        await (await company.imports.start(rows=ROWS)).wait()
        with pytest.raises(TruncatedDownload):
            await company.download(to=tmp_path, filter="all")
    assert downloads(transport) <= 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bomb", ["rows", "cell", "members", "sheets"])
async def test_an_archive_that_unpacks_to_more_than_was_reported_is_refused(
    imported: Imported, transport: InProcess, tmp_path: Path, bomb: str
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        if bomb == "members":
            for n in range(90_000):
                content.writestr(f"{n}.txt", "")
        if bomb == "sheets":
            for n in range(300):
                content.writestr(f"{n}.csv", "")
        with content.open("Contacts.csv", "w") as sheet:
            for _ in range({"rows": 1, "cell": 40}.get(bomb, 0)):
                sheet.write((b"p@x\n" if bomb == "rows" else b"abcd") * 2**18)
    body = Reply(status=200, body=archive.getvalue(), content_type="application/zip")
    transport.fault = lambda method, path, number: None
    async with imported() as company:
        faulty(transport, Fault(instead=body), *range(1, 99))
        with pytest.raises(TruncatedDownload):
            await company.download(to=tmp_path, filter="all")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("zip_status", [200, 404])
async def test_sheets_whose_names_collide_in_a_file_system_get_separate_files(
    imported: Imported, transport: InProcess, tmp_path: Path, zip_status: int
) -> None:
    names = ["Caf\u00e9", "CAFE\u0301", "cafe"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        for name, rows in reversed(list(zip(names, (0, 20, 0), strict=True))):
            content.writestr(f"{name}.csv", "a\n" + "1\n" * rows)
    async with imported(zip_status=zip_status) as company:
        company.sheets = [
            Sheet(id=sheet.id, name=name) for sheet, name in zip(company.sheets, names, strict=True)
        ]
        if zip_status == 200:
            faulty(transport, Fault(instead=Reply(status=200, body=archive.getvalue())), 1)
        files = await company.download(to=tmp_path, report=ImportReport(inserted=20), filter="all")
        [alone] = await company.download(to=tmp_path, sheets=[names[0]], filter="all")
    expected = {"CAFE\u0301": "CAF\u00c9", "Caf\u00e9": "Caf\u00e9-2", "cafe": "cafe"}
    assert {file.sheet: Path(file.path).stem for file in files} == expected
    assert Path(alone.path).stem == "Caf\u00e9-2"
    assert len(list(tmp_path.iterdir())) == 3


async def test_a_download_replaces_a_symbolic_link_instead_of_following_it(
    imported: Imported, tmp_path: Path
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.write_text("mine")
    out.mkdir()
    (out / "Contacts.csv").symlink_to(other)
    (out / f"Contacts.csv.{'0' * 32}.part").symlink_to(other)
    async with imported() as company:
        await company.download(to=out, sheets=["Contacts"])
    assert other.read_text() == "mine"
    assert [path.name for path in out.iterdir()] == ["Contacts.csv"]
    assert not (out / "Contacts.csv").is_symlink()


@pytest.mark.parametrize("zip_status", [200, 404])
async def test_an_incomplete_download_leaves_no_file(
    imported: Imported, transport: InProcess, tmp_path: Path, zip_status: int
) -> None:
    async with imported(zip_status=zip_status) as company:
        faulty(transport, Fault(truncated_to=300), *range(1, 99))
        with pytest.raises(TruncatedDownload):
            await company.download(to=tmp_path)
    assert not list(tmp_path.iterdir())


async def test_a_full_disk_raises_an_error_and_leaves_no_file(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def truncate(self, size: int | None = None, /) -> int:
            return 0

    def full(path: Path, *args: object, **kwargs: object) -> Full:
        path.touch()
        return Full("/dev/full", "wb")

    async with imported() as company:
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space"):
            await company.download(to=tmp_path, sheets=["Contacts"])
    assert not list(tmp_path.iterdir())


# As a stream


async def test_one_sheet_is_streamed(imported: Imported, transport: InProcess) -> None:
    async with imported() as company, company.stream("Contacts") as chunks:
        content = await read(chunks)
    assert content.count(b"@x.org") == 20
    assert "filter=valid" in transport.sent[-1][2]


@pytest.mark.parametrize("zip_status", [200, 404, 501])
async def test_a_stream_of_all_sheets_is_an_archive_even_if_the_server_has_none(
    imported: Imported, transport: InProcess, zip_status: int
) -> None:
    async with imported(zip_status=zip_status) as company:
        for _ in range(2):
            async with company.stream(filter="all") as chunks:
                content = await read(chunks)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert sorted(archive.namelist()) == ["Companies.csv", "Contacts.csv", "Deals.csv"]
        assert archive.read("Contacts.csv").count(b"@x.org") == 20
    assert downloads(transport) == (2 if zip_status == 200 else 1 + 3 + 3)


@pytest.mark.parametrize("fault", [Fault(truncated_to=2000), Fault(cut_to=2000)], ids=["truncated", "cut"])
@pytest.mark.parametrize("sheet", ["Contacts", None])
@pytest.mark.parametrize("zip_status", [200, 404])
async def test_a_truncated_stream_raises_an_error(
    imported: Imported, transport: InProcess, fault: Fault, sheet: str | None, zip_status: int
) -> None:
    async with imported(zip_status=zip_status) as company:
        body_of = 1 if sheet else 1 if zip_status == 200 else 3  # Contacts is the second sheet
        if sheet is None and zip_status == 200:
            fault = replace(fault, **{"truncated_to" if fault.truncated_to else "cut_to": 400})
        faulty(transport, fault, body_of)
        received = bytearray()
        with pytest.raises(TruncatedDownload):
            await _relay(company, sheet, received)
        assert received
        assert sheet is not None or not zipfile.is_zipfile(io.BytesIO(received))
    assert transport.faults_met == 1


@pytest.mark.parametrize(
    "fault", ["request-lost", "answer-lost", "500-before", "html-200", "too-many", "redirect"]
)
async def test_a_stream_is_retried_before_its_first_byte(
    imported: Imported, transport: InProcess, fault: str
) -> None:
    async with imported() as company:
        faulty(transport, FAULTS[fault], 1)
        async with company.stream("Contacts") as chunks:
            assert (await read(chunks)).count(b"@x.org") == 20
    assert downloads(transport) == 2


async def test_leaving_a_stream_early_closes_its_connection(imported: Imported, transport: InProcess) -> None:
    async with imported() as company:
        async with company.stream("Contacts") as chunks:
            assert await anext(chunks)
            assert transport.open == 1
        assert transport.open == 0
        with pytest.raises(RateLimited):  # an error of the reader is not mistaken for one of the server
            async with company.stream("Contacts"):
                raise RateLimited("GET", "/storage", 429, "slow down")
        assert transport.open == 0
        reader = asyncio.create_task(_never_done(company))
        await asyncio.sleep(1.0)
        assert transport.open == 1
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert transport.open == 0


async def _relay(company: Company, sheet: str | None, to: bytearray) -> None:
    async with company.stream(sheet) as chunks:
        async for chunk in chunks:
            to += chunk


async def _never_done(company: Company) -> None:
    async with company.stream("Contacts") as chunks:
        async for _ in chunks:
            await asyncio.sleep(3600)


async def test_open_streams_do_not_use_up_the_rate_limit(imported: Imported, transport: InProcess) -> None:
    """A body that takes minutes does not delay the next request."""
    async with imported() as company, Session(KEY, BASE_URL, limit=2, transport=transport) as session:
        sheets = [session.companies.open(company.id).stream(sheet) for sheet in company.sheets]
        async with sheets[0] as first, sheets[1] as second:
            await asyncio.sleep(120.0)
            async with asyncio.timeout(5.0), sheets[2] as third:
                assert all([await read(chunks) for chunks in (first, second, third)])


async def test_a_stream_without_an_archive_or_known_sheets_raises_not_found(imported: Imported) -> None:
    async with imported(zip_status=404) as company:
        opened_by_id = company.__class__(company._context, company.id)
        with pytest.raises(NotFound, match="no sheet ids are known"):
            async with opened_by_id.stream():
                pass


# Row counts of a report


def counts(rows: int) -> tuple[RowCount, ...]:
    records = RecordCounter()
    records.feed(b"a,b\n" + b"1,2\n" * rows)
    return records.counts()


@pytest.mark.parametrize(
    ("row_filter", "invalid", "inserted", "right", "wrong"),
    [
        ("all", 3, 30, [10], [9, 11]),
        ("valid", 0, 30, [10], [9, 11]),
        ("valid", 3, 30, [7, 8, 9, 10], [6, 11]),
        ("valid", 25, 30, [0, 5], [6]),  # at most 20 of the 25 invalid rows are in the other sheet
        ("valid", 3, 10, [7], [6, 8]),  # no other sheet has rows
        ("valid", None, 30, [0, 10], [11]),
        ("valid", 3, None, [7, 10], [6, 11]),
    ],
)
def test_the_row_count_of_a_sheet_is_checked_against_the_report(
    row_filter: str, invalid: int | None, inserted: int | None, right: list[int], wrong: list[int]
) -> None:
    report = ImportReport(
        inserted=inserted,
        invalid_rows=invalid,
        per_sheet=(SheetCount(sheet_id="s", rows=10, template_name="S"),),
    )
    expected = Expected(report, row_filter)  # type: ignore[arg-type]
    for rows in right:
        expected.check("S", Sheet(id="s", name="S"), counts(rows))
        expected.check("S", None, counts(rows))
    for rows in wrong:
        with pytest.raises(TruncatedDownload, match="reported"):
            expected.check("S", Sheet(id="s", name="S"), counts(rows))
    expected.check("other", Sheet(id="o"), counts(99))
