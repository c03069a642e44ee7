"""The timeline of a fleet, built from events only or from a journal only."""

import asyncio
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from asyncmig import Journal
from asyncmig.cli.charts import Hold, Timeline
from asyncmig.cli.html_report import page_of_journal
from asyncmig.companies.workflow.record import Record
from asyncmig.events import (
    Event,
    Held,
    MigrationChanged,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
)
from asyncmig.journal import JournalPlace
from asyncmig.steps import ACTIVE, CHART_BARS, OUTCOMES, STEP_AFTER, Entry, Remark, Step


def step(at: float, name: str, customer: str = "acme") -> Event:
    return MigrationChanged(at=at, external_id=customer, ids={"company": f"id-{customer}"}, step=name)


def sent(at: float, waited: float = 0.0, endpoint: str = "POST /companies") -> Event:
    return RequestSent(at=at, endpoint=endpoint, lane="WORK", attempt=1, waited=waited)


def refused(at: float, endpoint: str = "POST /companies") -> Event:
    return RequestDone(at=at, endpoint=endpoint, lane="WORK", attempt=1, seconds=0.1, status=429)


def parked(at: float, status: str = "needs_attention") -> Event:
    return RunChanged(at=at, ids={"company": "id-acme", "run": "r"}, status=status, progress=None)


def ended(at: float, noticed_within: float | None) -> Event:
    return RunEnded(
        at=at,
        ids={"company": "id-acme", "run": "r"},
        status="completed",
        seconds=9.0,
        noticed_within=noticed_within,
    )


def segments_of(*events: Event, end: float = 1100.0) -> list[tuple[str, float, float]]:
    """Return the segments of the customer `acme` after these events. The timeline begins at 1000."""
    timeline = Timeline(began=1000.0)
    for event in events:
        timeline.note(event, by="acme")
    timeline.end(end)
    return [(kind, start, end) for kind, start, end in timeline.segments("acme")]


def test_each_step_is_a_segment_and_an_outcome_ends_the_last_one() -> None:
    assert segments_of(
        step(1001, "checking"),
        step(1002, "creating"),
        step(1004, "uploading"),
        step(1010, "running"),
        step(1030, "downloading"),
        step(1033, "delivered"),
    ) == [
        ("preparing", 1, 4),
        ("uploading", 4, 10),
        ("running", 10, 30),
        ("downloading", 30, 33),
    ]


def test_a_wait_for_the_limit_is_a_separate_segment() -> None:
    assert segments_of(
        step(1000, "uploading"), sent(1020, waited=15), step(1022, "running"), step(1030, "failed")
    ) == [
        ("uploading", 0, 5),
        ("limit", 5, 20),
        ("uploading", 20, 22),
        ("running", 22, 30),
    ]


def test_the_pause_after_a_429_is_a_wait_for_the_limit() -> None:
    assert segments_of(
        step(1000, "creating"), sent(1000), refused(1001), sent(1004, waited=1), step(1005, "failed")
    ) == [("preparing", 0, 1), ("limit", 1, 4), ("preparing", 4, 5)]


def test_a_wait_of_another_task_is_not_a_wait_of_the_customer() -> None:
    timeline = Timeline(began=0.0)
    timeline.note(step(0, "creating"), by="acme")
    timeline.note(sent(9, waited=9), by="a poll")
    timeline.end(10)
    assert [segment.kind for segment in timeline.segments("acme")] == ["preparing"]


def test_the_time_between_the_end_of_a_run_and_its_detection_is_a_segment() -> None:
    assert segments_of(
        step(1000, "running"), ended(1050, 20.0), step(1051, "downloading"), step(1060, "delivered")
    ) == [
        ("running", 0, 30),
        ("unnoticed", 30, 50),
        ("running", 50, 51),
        ("downloading", 51, 60),
    ]


def test_a_parked_segment_lasts_until_the_decision_or_the_end() -> None:
    assert segments_of(
        step(1000, "running"),
        parked(1010),
        step(1011, "deciding"),
        step(1012, "running"),
        step(1020, "failed"),
    ) == [("running", 0, 10), ("parked", 10, 12), ("running", 12, 20)]
    assert segments_of(
        step(1000, "running"), parked(1010), parked(1015, "running"), step(1020, "parked")
    ) == [
        ("running", 0, 10),
        ("parked", 10, 15),
        ("running", 15, 20),
        ("parked", 20, 100),
    ]


def test_the_last_segment_of_an_interrupted_customer_ends_with_the_timeline() -> None:
    assert segments_of(step(1000, "uploading"), end=1007.0) == [("uploading", 0, 7)]


def test_the_number_of_segments_of_a_customer_is_limited() -> None:
    steps = [step(1000.0 + n, "uploading" if n % 2 else "creating") for n in range(5000)]
    segments = segments_of(*steps, end=6000.0)
    assert len(segments) < 500
    assert (segments[0][1], segments[-1][2]) == (0, 5000)


def test_requests_are_counted_by_endpoint_and_minute_and_overlapping_holds_are_merged() -> None:
    timeline = Timeline(began=1000.0)
    for event in (
        sent(1000),
        sent(1059.9),
        sent(1060),
        refused(1061),
        sent(1062, endpoint="GET /sources"),
        Held(at=1061, budget="POST /companies", until=1065, seconds=4, slots=9, burst=9),
        Held(at=1064, budget="POST /companies", until=1069, seconds=5, slots=9, burst=9),
        Held(at=1090, budget="POST /companies", until=1091, seconds=1, slots=9, burst=9),
    ):
        timeline.note(event)
    assert timeline.sent == {"POST /companies": {0: 2, 1: 1}, "GET /sources": {1: 1}}
    assert timeline.refused == {"POST /companies": {1: 1}}
    assert timeline.holds == {"POST /companies": [Hold(61, 69), Hold(90, 91)]}


def test_known_detection_delays_are_recorded() -> None:
    timeline = Timeline(began=0.0)
    for event in (ended(10, 2.5), ended(11, None), ended(12, 0.5)):
        timeline.note(event)
    assert timeline.noticed == [2.5, 0.5]


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("export", "downloading"),
        ("export started", "downloading"),
        ("exported", "downloading"),
        ("uploads expired", "uploading"),
        ("decided elsewhere", "running"),
        ("refused", "preparing"),
    ],
)
async def test_a_journal_entry_is_shown_as_its_step(entry: str, kind: str, tmp_path: Path) -> None:
    state = msgspec.json.encode(Record(external_id="acme", name="Acme", source="s"))
    async with Journal(tmp_path / "fleet.db") as journal, await journal.claim("acme") as claim:
        for each in ("decide", entry, "failed"):
            await claim.write(each, b"{}", state)
            await asyncio.sleep(0.03)
    page = await page_of_journal(JournalPlace(str(tmp_path / "fleet.db")))
    assert page.timeline is not None
    assert [segment.kind for segment in page.timeline.segments("acme")] == ["parked", kind]


def test_the_tables_contain_every_step_and_every_journal_entry() -> None:
    entries = {name for names in get_args(Entry) for name in get_args(names)}
    assert set(STEP_AFTER) == entries - set(get_args(Remark))
    assert set(STEP_AFTER.values()) <= {*ACTIVE, *OUTCOMES}
    assert set(CHART_BARS) == set(get_args(Step))
