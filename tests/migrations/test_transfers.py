"""Uploads and downloads: no duplicate files, no undetected truncation, and flagged rows are reported."""

import asyncio
import io
import zipfile
from pathlib import Path

import pytest

from asyncmig import BadRequest, InvalidInput, NotFound, TruncatedDownload, UnexpectedReply
from asyncmig.customers.outcome import SheetCount
from asyncmig.migrations.wire import Report, Sheet

from .conftest import KEY, OpenMigration
from .server import Account, Reply

pytestmark = pytest.mark.looptime
CLEAN = Report(
    inserted=3,
    per_sheet=(SheetCount(template_name="Contacts", rows=2), SheetCount(template_name="Deals", rows=1)),
    invalid_rows=0,
)
ONE_BAD = Report(inserted=3, per_sheet=CLEAN.per_sheet, invalid_rows=1)


# Uploads


async def test_sixty_files_take_three_requests_for_urls(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        uploaded = await migration.upload_all([(f"{n}.csv", b"a\n%d\n" % n) for n in range(60)])
    assert [each.name for each in uploaded] == [f"{n}.csv" for n in range(60)]
    assert account.count("POST", "/files") == 3
    assert len(account.files) == 60
    puts = [headers for url, headers in account.headers if url.startswith("https://storage.test")]
    assert all("x-api-key" not in {name.lower() for name in headers} for headers in puts)
    assert {headers["Content-Type"] for headers in puts} == {"text/csv"}


async def test_a_file_that_the_server_has_is_not_sent_again(
    open_migration: OpenMigration, account: Account
) -> None:
    account.files = [{"name": "My File.csv", "storage_path": "p/1", "size": "4"}]
    async with open_migration() as migration:
        known, new = await migration.upload_all([("my_file.csv", b"a\n1\n"), ("deals.csv", b"b\n1\n")])
    assert (known.is_new, known.storage_path, new.is_new) == (False, "p/1", True)
    assert account.count("PUT", ".csv") == 1


@pytest.mark.parametrize("fault", ["lost", "vanished", 500, 403])
async def test_a_failed_put_neither_duplicates_nor_loses_a_file(
    fault: object, open_migration: OpenMigration, account: Account
) -> None:
    account.fault = lambda method, path, n: fault if method == "PUT" and len(puts(account)) == 1 else None
    async with open_migration() as migration:
        uploaded = await migration.upload(b"a\n1\n", name="contacts.csv")
    assert [each["storage_path"] for each in account.files] == [uploaded.storage_path]


async def test_a_file_that_is_listed_late_is_not_sent_again(
    open_migration: OpenMigration, account: Account
) -> None:
    def listed(body: object, query: object) -> Reply:
        is_late = account.now < 5.0 + min(
            [at for at, method, _, _ in account.sent if method == "PUT"], default=0
        )
        return Reply(200, {"files": [] if is_late else account.files})

    account.routes["GET", "/migrations/m1/files"] = listed
    account.fault = lambda method, path, n: "lost" if method == "PUT" else None
    async with open_migration() as migration:
        await migration.upload(b"a\n1\n", name="contacts.csv")
    assert len(account.files) == 1


def puts(account: Account) -> list[str]:
    return [path for _, method, path, _ in account.sent if method == "PUT"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [([f"{n}.csv" for n in range(401)], "400"), ([f"{n}.PDF" for n in range(6)], "5 PDF or Word")],
)
async def test_too_many_files_are_refused_before_any_request(
    names: list[str], reason: str, open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        before = len(account.sent)
        with pytest.raises(InvalidInput, match=reason):
            await migration.upload_all([(name, b"x") for name in names])
    assert len(account.sent) == before


async def test_existing_files_count_towards_the_limit(
    open_migration: OpenMigration, account: Account
) -> None:
    account.files = [{"name": f"{n}.docx", "storage_path": f"p/{n}", "size": 1} for n in range(5)]
    async with open_migration() as migration:
        with pytest.raises(InvalidInput, match="5 PDF or Word"):
            await migration.upload(b"xx", name="more.pdf")
    assert account.count("POST", "/files") == 0


# Downloads


@pytest.mark.parametrize(
    ("filters", "bad", "report", "flagged", "rows"),
    [
        ("ignored", False, CLEAN, "none", [2, 1]),
        ("ignored", True, ONE_BAD, "included", [2, 1]),
        ("honoured", True, ONE_BAD, "none", [1, 1]),
        ("refused", True, ONE_BAD, "included", [2, 1]),
        ("refused", False, CLEAN, "none", [2, 1]),
        ("ignored", True, None, "unknown", [2, 1]),
    ],
)
async def test_a_download_reports_whether_it_has_flagged_rows(
    filters: str,
    bad: bool,
    report: Report | None,
    flagged: str,
    rows: list[int],
    open_migration: OpenMigration,
    account: Account,
    tmp_path: Path,
) -> None:
    account.filters = filters
    if bad:
        account.sheets["contacts"] = "Name,Email\r\nAda,a@x.org\r\nBob,BAD\r\n"
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, report=report)
    assert [file.rows for file in files] == rows
    assert {file.flagged for file in files} == {flagged}
    assert all(file.is_verified for file in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Contacts.csv", "Deals.csv"]


async def test_without_a_total_a_filtered_file_is_not_verified(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.total, account.filters = False, "honoured"
    account.sheets["contacts"] = "Name,Email\r\nAda,a@x.org\r\nBob,BAD\r\n"
    async with open_migration() as migration:
        contacts, deals = await migration.download(to=tmp_path, report=ONE_BAD)
    assert (contacts.is_verified, deals.is_verified) == (False, True)


@pytest.mark.parametrize("total", [True, False])
async def test_a_truncated_body_is_fetched_again(
    total: bool, open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.total = total
    whole, calls = account.sheets["contacts"], []

    def sheet(body: object, query: object) -> Reply:
        calls.append(1)
        text = whole if len(calls) > 2 else "Name,Email\r\nAda,a@x.org\r\n"
        return Reply(200, text.encode(), {"X-Total-Records": "2"} if total else {})

    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = sheet
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["Contacts"], report=CLEAN)
    assert (files[0].rows, len(calls)) == (2, 3)


async def test_a_body_with_a_truncated_last_cell_is_fetched_again(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    whole = account.sheets["contacts"]
    unended = whole.removesuffix("\r\n")
    bodies = iter([whole[:-4], whole, unended, unended, unended, whole, whole[:-4], whole])
    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = lambda body, query: Reply(
        200, next(bodies).encode(), {"X-Total-Records": "2"}
    )
    async with open_migration() as migration:
        await migration.download(to=tmp_path, sheets=["contacts"])
        assert (tmp_path / "Contacts.csv").read_bytes() == whole.encode()
        await migration.download(to=tmp_path, sheets=["contacts"])
        await migration.download(to=tmp_path, sheets=["contacts"])  # the server does not end the last line
        assert account.count("GET", "contacts.csv") == 5
        await migration.download(to=tmp_path, sheets=["contacts"])  # the server ends the last line now
        await migration.download(to=tmp_path, sheets=["contacts"])
    assert (tmp_path / "Contacts.csv").read_bytes() == whole.encode()
    assert account.count("GET", "contacts.csv") == 8


async def test_a_body_without_a_header_is_fetched_again(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    bodies = iter(["", "Name,Email\r\n"])
    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = lambda body, query: Reply(
        200, next(bodies).encode(), {"X-Total-Records": "0"}
    )
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["contacts"])
    assert (files[0].rows, files[0].size) == (0, 12)


async def test_a_body_is_fetched_again_after_a_lost_connection(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.fault = lambda method, path, n: "cut" if path.endswith("contacts.csv") and n == 1 else None
    async with open_migration() as migration:
        await migration.download(to=tmp_path, sheets=["contacts"])
    assert account.count("GET", "contacts.csv") == 2


async def test_an_empty_sheet_is_refused_if_rows_were_reported(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.sheets["contacts"] = "Name,Email\r\n"
    async with open_migration() as migration:
        with pytest.raises(TruncatedDownload, match="at least 2 were reported"):
            await migration.download(to=tmp_path, report=CLEAN)
    assert list(tmp_path.iterdir()) == []


async def test_a_sheet_without_rows_may_be_missing(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    del account.sheets["deals"]
    report = Report(inserted=2, per_sheet=CLEAN.per_sheet[:1], invalid_rows=0)
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, report=report)
    assert [file.slug for file in files] == ["contacts"]


async def test_an_unknown_field_raises_bad_request_without_a_retry(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = lambda body, query: Reply(
        400, {"error": f"unknown_field: {query['fields']}"}
    )
    async with open_migration() as migration:
        with pytest.raises(BadRequest, match="unknown_field: Nmae,Email"):
            await migration.download(to=tmp_path, sheets=["contacts"], fields=["Nmae", "Email"])
    assert account.count("GET", "contacts.csv") == 1


class Jobs:
    """Export jobs of an account whose sheets are stored compressed."""

    def __init__(self, account: Account, *, link: str = "https://files.test/x?sig=secret-link") -> None:
        self.account, self.link, self.reads, self.fetched = account, link, 0, list[str]()
        self.bodies = list[dict[str, object]]()
        self.content = account.sheets["contacts"].encode()
        for slug in ("contacts", "deals"):
            account.routes["GET", f"/migrations/m1/exports/{slug}.csv"] = lambda body, query: Reply(
                409, {"error": "stored compressed: use an export job"}
            )
        account.routes["POST", "/migrations/m1/exports"] = self.start
        account.routes["GET", "/migrations/m1/exports/jobs/j1"] = self.read
        account.routes["GET", "/x"] = self.fetch

    def start(self, body: dict[str, object], query: object) -> Reply:
        self.bodies.append(body)
        return Reply(202, {"job_id": "j1", "status": "pending", "total_rows": "2"})

    def read(self, body: object, query: object) -> Reply:
        self.reads += 1
        state = {"job_id": "j1", "status": "running" if self.reads == 1 else "completed", "total_rows": 2}
        return Reply(200, state | ({"download_url": self.link} if self.reads > 2 else {}))

    def fetch(self, body: object, query: object) -> Reply:
        self.fetched.append("x")
        if len(self.fetched) == 1:
            return Reply(403, b"expired")
        if len(self.fetched) == 2:
            return Reply(302, headers={"Location": "/x?again"})
        return Reply(200, self.content)


async def test_a_sheet_that_is_refused_directly_is_downloaded_by_an_export_job(
    open_migration: OpenMigration, account: Account, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(account)
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["contacts"], report=ONE_BAD)
    assert jobs.bodies == [{"slug": "contacts"}]
    assert (files[0].rows, files[0].flagged, files[0].is_verified) == (2, "included", True)
    elsewhere = [headers for url, headers in account.headers if "files.test" in url]
    assert len(elsewhere) == 3
    assert KEY not in str(elsewhere)
    assert "secret-link" not in caplog.text


@pytest.mark.parametrize("link", ["http://files.test/x", "ftp://files.test/x"])
async def test_a_link_without_encryption_is_refused(
    link: str, open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    Jobs(account, link=link)
    async with open_migration() as migration:
        with pytest.raises(InvalidInput, match="not https"):
            await migration.download(to=tmp_path, sheets=["contacts"])


@pytest.mark.parametrize("status", [404, 410])
async def test_an_export_job_that_the_server_has_deleted_is_started_again(
    status: int, open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs = Jobs(account)
    account.fault = lambda method, path, n: status if path.endswith("j1") and len(jobs.bodies) == 1 else None
    async with open_migration() as migration, asyncio.timeout(600.0):
        files = await migration.download(to=tmp_path, sheets=["contacts"])
    assert (len(files), len(jobs.bodies)) == (1, 2)


async def test_a_sheet_from_an_export_job_may_have_the_flagged_rows_that_the_others_lack(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    Jobs(account)
    deals = "/migrations/m1/exports/deals.csv"
    del account.routes["GET", deals]
    account.filters = "honoured"
    account.sheets["deals"] = "Name\r\nBAD\r\n"
    two_bad = Report(inserted=3, per_sheet=CLEAN.per_sheet, invalid_rows=2)
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, report=ONE_BAD)
        assert [(file.rows, file.flagged) for file in files] == [(2, "none"), (0, "none")]
        files = await migration.download(to=tmp_path, report=two_bad)
        assert [(file.rows, file.flagged) for file in files] == [(2, "included"), (0, "none")]


async def test_a_zip_of_all_sheets_is_checked(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs, packed = Jobs(account), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("Contacts.csv", account.sheets["contacts"])
    jobs.content = packed.getvalue()[:-30]
    async with open_migration() as migration:
        job = await migration.export_job()
        with pytest.raises(TruncatedDownload):
            await job.download(tmp_path / "all.zip")
        jobs.content = packed.getvalue()
        assert (await job.download(tmp_path / "all.zip")).read_bytes() == packed.getvalue()
    assert jobs.bodies == [{"slugs": ["contacts", "deals"]}]
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]


async def test_an_export_job_starts_after_the_end_of_a_lost_one(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs = Jobs(account)
    answers = iter([409, 409])

    def start(body: dict[str, object], query: object) -> Reply:
        if jobs.bodies and (status := next(answers, None)):
            return Reply(status, {"error": "already running"})
        return jobs.start(body, query)

    account.routes["POST", "/migrations/m1/exports"] = start
    account.fault = lambda method, path, n: (
        "lost" if method == "POST" and path.endswith("exports") and n == 1 else None
    )
    async with open_migration() as migration:
        job = await migration.export_job("contacts")
        await job.download(tmp_path / "contacts.csv")
    assert len(jobs.bodies) == 2


async def test_lost_starts_of_exports_are_repeated_for_a_sheet(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    Jobs(account)
    account.fault = lambda method, path, n: "lost" if path.endswith("exports") and n < 4 else None
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["contacts"])
    assert [file.rows for file in files] == [2]


async def test_a_migration_opened_by_its_id_finds_its_sheets_in_the_preview(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        opened = type(migration)(migration._context, "m1")
        files = await opened.download(to=tmp_path)
        assert [file.slug for file in files] == ["contacts", "deals"]
        only = await opened.download(to=tmp_path, sheets=[Sheet(id="deals", name="Deals")])
        assert [file.path for file in only] == [str(tmp_path / "Deals.csv")]


@pytest.mark.parametrize("known_from", ["report", "log", "templates", "nothing"])
async def test_a_migration_without_a_preview_finds_its_sheets_by_its_execution(
    known_from: str, open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    templates = [{"slug": slug, "name": slug.title(), "columns": []} for slug in ("contacts", "deals", "old")]
    if known_from == "templates":  # a report without names, and a log that is not available
        del templates[2]
        account.fault = lambda method, path, _: 503 if path.endswith("/log") else None
    account.routes["GET", "/templates"] = lambda *_: Reply(200, {"templates": templates})
    account.routes["GET", "/migrations/m1/preview"] = lambda *_: Reply(404, {"error": "no preview"})
    outcome = {"ok": True, "per_sheet": [{"sheet": "Contacts", "rows": 2}, {"sheet": "Deals", "rows": 1}]}
    runs = [{"run_id": "run-1", "kind": "execute", "status": "completed", "outcome": outcome}]
    found = {"status": "completed", "runs": runs if known_from == "log" else []}
    account.routes["GET", "/migrations/m1/log"] = lambda *_: Reply(200, found)
    report = {"report": CLEAN, "templates": Report(inserted=3)}.get(known_from)
    async with open_migration() as migration:
        opened = type(migration)(migration._context, "m1")
        if known_from == "nothing":
            with pytest.raises(NotFound, match="no preview"):
                await opened.download(to=tmp_path)
            return
        files = await opened.download(to=tmp_path, report=report)
    assert [file.slug for file in files] == ["contacts", "deals"]


async def test_html_instead_of_a_file_is_not_written(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.routes["GET", "/migrations/m1/exports/deals.csv"] = lambda body, query: Reply(
        200, b"<html>", {"Content-Type": "text/html"}
    )
    async with open_migration() as migration:
        with pytest.raises(UnexpectedReply, match="HTML"):
            await migration.download(to=tmp_path, sheets=["deals"])
    assert list(tmp_path.iterdir()) == []
