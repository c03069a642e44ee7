"""How a job of a job runner handles each reason for which a migration is pending."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

import pytest

from asyncmig import MemoryJournal, Outcome, Pending, Session, Spec
from asyncmig.customers.outcome import PendingReason
from asyncmig.jobs import runners
from asyncmig.jobs.runners import RetryJob, migrate_job
from asyncmig.testing import Simulator

pytestmark = pytest.mark.looptime


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    path = tmp_path / "contacts.csv"
    path.write_text("Email,First Name,Last Name\na@example.com,A,B\n", encoding="utf-8")
    return Spec(external_id="acme", name="Acme", source=next(iter(Simulator().world.sources)), files=(path,))


async def job(session: Session, spec: Spec, folder: Path) -> Outcome:
    return await migrate_job(session, spec, journal=MemoryJournal(), to=folder / "out")


def ends_with(outcome: Outcome) -> Callable[..., Awaitable[Outcome]]:
    async def migrate(*args: object, **keywords: object) -> Outcome:
        return outcome

    return migrate


@pytest.mark.parametrize("reason", get_args(PendingReason))
async def test_each_reason_is_retried_or_ends_the_job_as_documented(
    reason: PendingReason, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = Pending(external_id="acme", name="Acme", error="why", reason=reason)
    monkeypatch.setattr(runners, "migrate", ends_with(pending))
    (line,) = [line for line in (runners.__doc__ or "").splitlines() if f"`{reason}`" in line and "|" in line]
    async with Simulator().session() as session:
        try:
            outcome = await job(session, spec, tmp_path)
        except RetryJob as retry:
            minutes, seconds = divmod(retry.after, 60)
            assert retry.reason == "why"  # noqa: PT017
            assert (f"again in {minutes:g} minutes" if minutes else f"again in {seconds:g} s") in line
        else:
            assert outcome is pending
            assert "ends with `Pending`" in line


async def test_a_refused_key_ends_every_job_of_the_worker_and_is_sent_once(
    spec: Spec, tmp_path: Path
) -> None:
    simulator = Simulator()
    simulator.world.key = "another"
    async with simulator.session() as session:
        outcomes = [await job(session, spec, tmp_path) for _ in range(2)]
    assert [each.reason for each in outcomes if isinstance(each, Pending)] == ["key_refused"] * 2
    assert len(simulator.ledger.entries) == 1
