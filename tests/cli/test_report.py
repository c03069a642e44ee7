"""`report.json`: its fields, and the times at which it is written."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from asyncmig.cli.inputs import warn_of_lost_journal
from asyncmig.cli.json_output import ReportFile, read_outcomes
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.outcome import Delivered, Downloaded, Failed, ImportReport, Pending
from asyncmig.jobs.manifest import Customer, Manifest
from asyncmig.records.record import customer_record
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

EMPTY_ROW: dict[str, object] = {
    "api": "companies",
    "outcome": "pending",
    "pending_reason": None,
    "step": "waiting",
    "detail": "",
    "ids": {},
    "error": None,
    "files": [],
    "rows": {"inserted": None, "flagged": None, "delivered": None},
    "replaced_existing_data": None,
    "notes": [],
    "destructive": [],
    "seconds": 0.0,
    "holds_run_slot": False,
    "changed_at": None,
    "last_failure": None,
    "held_by": None,
    "progress": None,
}


UNKNOWN_FACTS = {"flagged": None, "is_verified": None}


def delivered(out: Path, external_id: str = "c-2") -> Delivered:
    return Delivered(
        external_id=external_id,
        name="C 2",
        ids={"company": "company", "run": "run"},
        seconds=12.34567,
        files=(
            Downloaded(sheet="Deals", path=str(out / external_id / "Deals.csv"), rows=7, size=99),
            Downloaded(sheet="Old", path="/elsewhere/Old.csv", rows=1, size=9),
        ),
        report=ImportReport(inserted=9, invalid_rows=1),
    )


@pytest.fixture
def report(tmp_path: Path) -> ReportFile:
    return ReportFile(tmp_path / "out", MANIFEST, Session("key", "http://127.0.0.1:1/api/v1"), "companies")


def read(tmp_path: Path) -> dict[str, object]:
    content = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


async def test_the_report_has_the_documented_fields(report: ReportFile, tmp_path: Path) -> None:
    report.begin({})
    report.add(delivered(tmp_path / "out"))
    report.end((), None)
    assert read(tmp_path) == {
        "schema": 2,
        "customers": [
            {
                "external_id": "c-2",
                "name": "C 2",
                **EMPTY_ROW,
                "outcome": "delivered",
                "step": "ended",
                "ids": {"company": "company", "run": "run"},
                "rows": {"inserted": 9, "flagged": 1, "delivered": 8},
                "files": [
                    {"sheet": "Deals", "path": "c-2/Deals.csv", "rows": 7, "bytes": 99, **UNKNOWN_FACTS},
                    {"sheet": "Old", "path": "/elsewhere/Old.csv", "rows": 1, "bytes": 9, **UNKNOWN_FACTS},
                ],
                "seconds": 12.346,
            },
            {
                "external_id": "c-3",
                "name": "C 3",
                **EMPTY_ROW,
                "error": "not finished",
            },
        ],
        "budget": {"requests": 0, "refused": 0, "polls": 0, "endpoints": {}, "limits": {}},
    }


async def test_the_report_is_replaced_at_most_once_per_second(report: ReportFile, tmp_path: Path) -> None:
    report.begin({})
    before = read(tmp_path)
    report.add(delivered(tmp_path / "out"))
    await asyncio.sleep(0.9)
    assert read(tmp_path) == before
    await asyncio.sleep(0.2)
    assert read(tmp_path) != before
    assert not list((tmp_path / "out").glob("*.part"))


async def test_the_report_contains_known_customers_from_the_start(report: ReportFile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    known = customer_record(Record(external_id="c-2", name="C 2", source="s", outcome=delivered(out)))
    begun = customer_record(Record(external_id="c-3", name="C 3", source="s", company_id="c3", run_id="r3"))
    report.begin({"c-2": known, "c-3": begun, "other": begun})
    assert [(row.outcome, row.ids.get("company")) for row in report.rows] == [
        ("delivered", "company"),
        ("pending", "c3"),
    ]


async def test_an_interrupt_does_not_remove_known_results(report: ReportFile, tmp_path: Path) -> None:
    before = Record(external_id="c-2", name="C 2", source="s", outcome=delivered(tmp_path / "out"))
    report.begin({"c-2": customer_record(before)})
    report.add(Pending(external_id="c-2", name="C 2", error="interrupted before it began"))
    report.add(Pending(external_id="c-3", name="C 3", error="interrupted before it began"))
    begun = Record(external_id="c-3", name="C 3", source="s", company_id="c3", run_id="r3")
    final = report.end((customer_record(begun),), "why")
    assert [(row.outcome, row.ids.get("run")) for row in final.customers] == [
        ("delivered", "run"),
        ("pending", "r3"),
    ]


async def test_customers_that_did_not_start_have_the_reason_of_the_end(report: ReportFile) -> None:
    report.begin({})
    report.add(Failed(external_id="c-2", name="C 2", error="no"))
    assert [row.error for row in report.end((), "the key was refused").customers] == [
        "no",
        "the key was refused",
    ]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_report_of_either_schema_causes_a_warning_of_a_lost_journal(tmp_path: Path, schema: int) -> None:
    customers = [{"external_id": "c-2", "outcome": "delivered"}, {"external_id": "c-3", "outcome": "failed"}]
    saved = {"schema": schema, "companies" if schema == 1 else "customers": customers, "budget": {}}
    (tmp_path / "report.json").write_text(json.dumps(saved), encoding="utf-8")
    assert read_outcomes(tmp_path) == {"c-2": "delivered", "c-3": "failed"}
    output = io.StringIO()
    warn_of_lost_journal("fleet.db", tmp_path, Console(file=output))
    assert "1 customer as delivered" in output.getvalue()
