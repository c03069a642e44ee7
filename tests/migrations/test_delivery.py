"""Downloads from a hostile server: doubtful files are not reported as clean or complete, and links are not shown."""

from pathlib import Path

import pytest

from asyncmig import BadRequest, UnexpectedReply

from .conftest import OpenMigration
from .server import Account, Json, Reply
from .test_transfers import CLEAN, ONE_BAD, Jobs

pytestmark = pytest.mark.looptime
CONTACTS = "/migrations/m1/exports/contacts.csv"


async def test_a_truncated_sheet_without_a_total_is_not_reported_as_clean(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.total = False
    account.sheets["contacts"] = (
        "Name,Email\r\nBob,BAD\r\n"  # cut after the first record; Bob's row is flagged
    )
    async with open_migration() as migration:
        contacts, _ = await migration.download(to=tmp_path, report=ONE_BAD)
    assert (contacts.flagged, contacts.is_verified) == ("unknown", False)


async def test_a_refusal_for_another_reason_does_not_switch_the_filter_off(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.filters = "honoured"
    account.sheets["contacts"] = "Name,Email\r\nAda,a@x.org\r\nBob,BAD\r\n"

    def sheet(body: Json, query: Json) -> Reply:
        return (
            Reply(400, {"error": "No column Nope"}) if "fields" in query else account.sheet("contacts", query)
        )

    account.routes["GET", CONTACTS] = sheet
    async with open_migration() as migration:
        with pytest.raises(BadRequest):
            await migration.download(to=tmp_path, sheets=["contacts"], fields=["Nope"], report=ONE_BAD)
        (contacts,) = await migration.download(to=tmp_path, sheets=["contacts"], report=ONE_BAD)
    assert (contacts.rows, contacts.flagged) == (1, "none")


@pytest.mark.parametrize("link", ["https://[secret-link", "https://secret-link℀.test/x"])
@pytest.mark.parametrize("redirects", [False, True])
async def test_a_malformed_link_is_reported_and_not_shown(
    link: str,
    redirects: bool,
    open_migration: OpenMigration,
    account: Account,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Jobs(account, link="https://files.test/x" if redirects else link)
    if redirects:
        account.routes["GET", "/x"] = lambda body, query: Reply(302, headers={"Location": link})
    async with open_migration() as migration:
        with pytest.raises(UnexpectedReply) as caught:
            await migration.download(to=tmp_path, sheets=["contacts"])
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret-link" not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__
    assert "secret-link" not in caplog.text


async def test_an_html_page_at_a_download_link_is_not_delivered(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    Jobs(account)
    page = b"<html>\n<p>Sign in\n</html>"
    account.routes["GET", "/x"] = lambda body, query: Reply(200, page, {"Content-Type": "text/html"})
    async with open_migration() as migration:
        job = await migration.export_job("contacts")
        with pytest.raises(UnexpectedReply):
            await job.download(tmp_path / "contacts.csv")
    assert list(tmp_path.iterdir()) == []


async def test_an_export_that_expired_is_started_again(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs = Jobs(account)
    fetch = jobs.fetch
    account.routes["GET", "/x"] = lambda body, query: (
        Reply(410, b"gone") if len(jobs.bodies) == 1 else fetch(body, query)
    )
    async with open_migration() as migration:
        (contacts,) = await migration.download(to=tmp_path, sheets=["contacts"], report=CLEAN)
    assert (contacts.rows, len(jobs.bodies)) == (2, 2)


async def test_a_403_of_an_export_says_whether_reads_still_work(
    open_migration: OpenMigration, account: Account
) -> None:
    account.routes["GET", "/sources"] = lambda body, query: Reply(200, {"sources": []})
    account.routes["POST", "/migrations/m1/exports"] = lambda body, query: Reply(403, {"error": "no plan"})
    async with open_migration() as migration:
        with pytest.raises(UnexpectedReply, match="has no plan"):
            await migration.export_job("contacts")
