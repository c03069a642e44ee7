"""`report.json`: its shape, and how it is kept up to date."""

import asyncio
import json
from pathlib import Path

import pytest

from asyncmig.cli.report import ReportFile
from asyncmig.companies.workflow.generation import customer_record
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.outcome import Delivered, Downloaded, Failed, Pending
from asyncmig.customers.report import ImportReport
from asyncmig.jobs.manifest import Customer, Manifest
from asyncmig.session import Session

pytestmark = pytest.mark.looptime

MANIFEST = Manifest(
    path=Path("customers.csv"),
    customers=tuple(
        Customer(
            line=n, external_id=f"c-{n}", name=f"C {n}", source="s", templates=(), files=(Path("a.csv"),)
        )
        for n in (2, 3)
    ),
)


def delivered(out: Path, external_id: str = "c-2") -> Delivered:
    return Delivered(
        external_id=external_id,
        name="C 2",
        company_id="company",
        run_id="run",
        seconds=12.34567,
        files=(
            Downloaded(sheet="Deals", path=str(out / external_id / "Deals.csv"), rows=7, size=99),
            Downloaded(sheet="Old", path="/elsewhere/Old.csv", rows=1, size=9),
        ),
        report=ImportReport(inserted=9, invalid_rows=1),
    )


@pytest.fixture
def report(tmp_path: Path) -> ReportFile:
    return ReportFile(tmp_path / "out", MANIFEST, Session("key", "http://127.0.0.1:1/api/v1"))


def read(tmp_path: Path) -> dict[str, object]:
    content = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


async def test_it_has_the_documented_shape(report: ReportFile, tmp_path: Path) -> None:
    report.begin({})
    report.add(delivered(tmp_path / "out"))
    report.end((), None)
    assert read(tmp_path) == {
        "schema": 1,
        "companies": [
            {
                "external_id": "c-2",
                "name": "C 2",
                "outcome": "delivered",
                "error": None,
                "company_id": "company",
                "run_id": "run",
                "rows": {"inserted": 9, "flagged": 1},
                "files": [
                    {"sheet": "Deals", "path": "c-2/Deals.csv", "rows": 7, "bytes": 99},
                    {"sheet": "Old", "path": "/elsewhere/Old.csv", "rows": 1, "bytes": 9},
                ],
                "seconds": 12.346,
                "notes": [],
            },
            {
                "external_id": "c-3",
                "name": "C 3",
                "outcome": "pending",
                "error": "not finished",
                "company_id": None,
                "run_id": None,
                "rows": {"inserted": None, "flagged": None},
                "files": [],
                "seconds": 0.0,
                "notes": [],
            },
        ],
        "budget": {"requests": 0, "refused": 0, "polls": 0, "endpoints": {}, "limits": {}},
    }


async def test_it_is_written_at_most_once_a_second_and_whole(report: ReportFile, tmp_path: Path) -> None:
    report.begin({})
    before = read(tmp_path)
    report.add(delivered(tmp_path / "out"))
    await asyncio.sleep(0.9)
    assert read(tmp_path) == before
    await asyncio.sleep(0.2)
    assert read(tmp_path) != before
    assert not list((tmp_path / "out").glob("*.part"))


async def test_what_the_journal_knows_stands_from_the_start(report: ReportFile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    known = customer_record(Record(external_id="c-2", name="C 2", source="s", outcome=delivered(out)))
    begun = customer_record(Record(external_id="c-3", name="C 3", source="s", company_id="c3", run_id="r3"))
    report.begin({"c-2": known, "c-3": begun, "other": begun})
    assert [(row.outcome, row.company_id) for row in report.rows] == [
        ("delivered", "company"),
        ("pending", "c3"),
    ]


async def test_an_interrupt_takes_nothing_back(report: ReportFile, tmp_path: Path) -> None:
    before = Record(external_id="c-2", name="C 2", source="s", outcome=delivered(tmp_path / "out"))
    report.begin({"c-2": customer_record(before)})
    report.add(Pending(external_id="c-2", name="C 2", error="interrupted before it began"))
    report.add(Pending(external_id="c-3", name="C 3", error="interrupted before it began"))
    begun = Record(external_id="c-3", name="C 3", source="s", company_id="c3", run_id="r3")
    final = report.end((customer_record(begun),), "why")
    assert [(row.outcome, row.run_id) for row in final.companies] == [("delivered", "run"), ("pending", "r3")]


async def test_a_reason_is_given_to_those_that_never_began(report: ReportFile) -> None:
    report.begin({})
    report.add(Failed(external_id="c-2", name="C 2", error="no"))
    assert [row.error for row in report.end((), "the key was refused").companies] == [
        "no",
        "the key was refused",
    ]
