"""The output while a fleet runs, and the precedence of exit codes."""

import asyncio
import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from asyncmig import RunSlotsStatistics
from asyncmig.cli.json_output import Budget, Report
from asyncmig.cli.live_view import CustomerProgress, LiveState, LiveView, full_run_slots
from asyncmig.cli.output import spoken
from asyncmig.cli.settings import Display, Settings
from asyncmig.cli.summary import RunResult
from asyncmig.customers.outcome import Delivered, Failed, Pending
from asyncmig.customers.status import CustomerStatus, status_of_outcome
from asyncmig.events import AttemptFailed, MigrationChanged, Recovered, RequestDone, SlotAwaited
from asyncmig.session import Session


def session_and_view(console: Console, customers: str) -> tuple[Session, LiveView]:
    session = Session("key", "http://127.0.0.1:9/api/v1")
    return session, LiveView(session, console, dict.fromkeys(customers, 1), Settings(), Display())


def ended(outcomes: Sequence[str], **facts: bool) -> RunResult:
    rows = tuple(CustomerStatus(external_id=str(n), name="", outcome=text) for n, text in enumerate(outcomes))
    return RunResult(report=Report(customers=rows, budget=Budget()), **facts)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["delivered"], 0),
        (["delivered", "failed"], 3),
        (["failed", "parked"], 5),
        (["failed", "parked", "unknown"], 6),
        (["failed", "parked", "unknown", "pending"], 75),
    ],
)
def test_the_worst_outcome_determines_the_exit_code(outcomes: list[str], code: int) -> None:
    assert ended(outcomes).exit_code == code
    assert ended(outcomes, key_refused=True).exit_code == 4
    assert ended(outcomes, unwritten=True).exit_code == 75


@pytest.mark.looptime
@pytest.mark.parametrize("terminal", [False, True])
async def test_progress_prints_a_line_for_each_outcome_and_a_summary_at_intervals(terminal: bool) -> None:
    out = io.StringIO()
    session, progress = session_and_view(Console(file=out, width=200, force_terminal=terminal), "abc")
    with progress.following():
        session.events.emit(MigrationChanged(at=0.0, external_id="c", step="uploading"))
        session.events.emit(
            RequestDone(
                at=0.0, endpoint="POST /x", lane="WORK", attempt=1, seconds=0.1, status=201, error=None
            )
        )
        progress.ended(
            status_of_outcome(Delivered(external_id="a", name="Acme", files=(), notes=("renamed",)))
        )
        progress.ended(status_of_outcome(Failed(external_id="b", name="Bolt", error="no\nway")))
        await asyncio.sleep(6.0)
    lines = [line for line in out.getvalue().splitlines() if "of 3 done" not in line or not terminal]
    assert any("failed  b  Bolt: no way" in line for line in lines)
    assert any("note  a  renamed" in line for line in lines)
    assert any("delivered  a  Acme" in line for line in lines) is not terminal
    status = "2 of 3 done (1 delivered, 1 failed)"
    assert status in out.getvalue()
    assert "1 uploading" in out.getvalue()
    assert "1 request in the last minute" in out.getvalue()


@pytest.mark.looptime
async def test_progress_prints_an_error_of_several_customers_once() -> None:
    out = io.StringIO()
    _, progress = session_and_view(Console(file=out, width=200), "abcd")
    progress.known([CustomerStatus(external_id="d", name="D", outcome="delivered")])
    for external_id in "ab":
        progress.ended(
            status_of_outcome(Pending(external_id=external_id, name="", error="the key was refused"))
        )
    progress.ended(status_of_outcome(Pending(external_id="c", name="", error="held by another process")))
    progress.ended(status_of_outcome(Delivered(external_id="d", name="", files=())))
    assert out.getvalue().count("pending") == 2
    assert "Delivered before: 1 customer." in out.getvalue()
    assert progress.status().startswith("4 of 4 done (1 delivered, 3 pending)")


@pytest.mark.looptime
@pytest.mark.parametrize("terminal", [False, True])
async def test_progress_shows_failing_customers_until_they_recover(terminal: bool) -> None:
    out = io.StringIO()
    session, progress = session_and_view(Console(file=out, width=250, force_terminal=terminal), "abc")
    with progress.following():
        session.events.emit(MigrationChanged(at=0.0, external_id="c", step="uploading"))
        session.events.emit(
            AttemptFailed(
                at=0.0,
                external_id="c",
                endpoint="PUT {upload_url}",
                attempt=3,
                attempts=8,
                status=403,
                error="denied\nfor ever",
            )
        )
        await asyncio.sleep(6.0)
        shown = "c: PUT {upload_url} answered 403 (attempt 3 of 8; tried again): denied for ever"
        assert f"1 customer retrying, {shown}" in out.getvalue()
        assert "retrying" in progress.status()
        session.events.emit(
            Recovered(at=6.0, external_id="c", endpoint="PUT {upload_url}", attempts=4, seconds=6.0)
        )
        assert "retrying" not in progress.status()


@pytest.mark.parametrize(
    ("runs", "others", "held_until", "line"),
    [
        (("a", "b"), 0, None, []),
        (("a", "b", "c"), 0, None, ["3 of 3 runs in progress"]),
        (("a",), 2, 160.0, ["3 of 3 runs in progress, 2 of them not ours; the next try in 1 min 00 s"]),
    ],
)
def test_progress_shows_full_run_slots(
    runs: tuple[str, ...], others: int, held_until: float | None, line: list[str]
) -> None:
    slots = RunSlotsStatistics(limit=3, runs=runs, others=others, refused=0, held_until=held_until)
    assert list(full_run_slots(slots, 100.0, {})) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "waiting for a run slot"), (3120.0, r"waiting for `generate` until \d\d:\d\d, 52 min 00 s")],
)
def test_progress_shows_the_end_and_duration_of_a_long_wait(seconds: float | None, text: str) -> None:
    state = LiveState({"acme": CustomerProgress("acme", 1)})
    state.note(MigrationChanged(at=0.0, external_id="acme", step="starting"))
    state.note(
        SlotAwaited(
            at=1.0, external_id="acme", endpoint="POST /x", budget="generate", until=None, seconds=seconds
        )
    )
    assert re.fullmatch(text, state.active[0].text)


@pytest.mark.parametrize(("hours", "text"), [(30, "30 h 00 min"), (49, "2 days 1 h")])
def test_long_durations_are_printed_in_hours_and_days(hours: int, text: str) -> None:
    assert spoken(hours * 3600.0) == text
