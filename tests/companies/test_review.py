"""Parked imports: their questions, the valid answers, and decisions whose response is lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from inprocess import Fault, InProcess

from asyncmig import Conflict, Custom, InvalidInput, NeedsAttention, RunFailed, UnknownOutcome, check_answers
from asyncmig.companies import ImportRun
from asyncmig.customers.questions import Action, Option, Patch, Question
from asyncmig.simulator import FAULTS, World

from .conftest import SOURCE, OpenSession

pytestmark = pytest.mark.looptime
BAD = [
    *({"Email": f"p{n}@x.org", "First Name": "F", "Last Name": "L"} for n in range(20)),
    *({"Email": "p1@x.org", "First Name": "F", "Last Name": "L"} for _ in range(3)),
    *({"Email": f"bad {n}", "First Name": "F", "Last Name": "L"} for n in range(3)),
]
DECISIONS = "/decisions"


@asynccontextmanager
async def parked(
    open_session: OpenSession, rows: list[dict[str, str]] | None = None
) -> AsyncIterator[ImportRun]:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(rows=rows or BAD)
        await run.wait()
        assert run.needs_attention is not None
        yield run


def decisions(transport: InProcess) -> int:
    return len([1 for _, method, url in transport.sent if method == "POST" and url.endswith(DECISIONS)])


async def test_a_parked_run_has_questions_a_patch_and_destructive_actions(open_session: OpenSession) -> None:
    async with parked(open_session) as run:
        asked = run.needs_attention
        assert asked is not None
        assert [question.target.column for question in asked.questions if question.target] == [
            "Email",
            "Email",
        ]
        assert asked.proposed_patch is not None
        dedup, keep = asked.proposed_patch.actions
        assert (dedup.action, dedup.column, dedup.key_column) == ("dedup_keep_first", None, "Email")
        assert dedup.is_destructive
        assert asked.is_destructive
        assert not keep.is_destructive
        assert asked.destructive == (dedup,)
        assert run.state is not None
        assert run.state.report is not None
        assert run.state.report.per_sheet == ()


QUESTIONS = NeedsAttention(
    questions=(
        Question(id="q0", options=(Option(id="a"), Option(id="b")), allow_custom=True),
        Question(id="q1", options=(Option(id="a"),)),
        Question(id="q2", allow_custom=True),
        Question(id="twice", options=(Option(id="a"),)),
        Question(id="twice", options=(Option(id="a"),)),
    ),
    proposed_patch=Patch(actions=(Action(action="keep"),)),
)


def test_an_answer_is_an_option_or_custom_text() -> None:
    check_answers(QUESTIONS, {"q0": Custom("x"), "q1": "a"})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"q9": "a"}, "is not a question of this run, which asks"),
        ({"q0": "c"}, r"is not one of \['a', 'b'\]; use Custom"),
        ({"q1": "b"}, r"is not one of \['a'\]$"),
        ({"q1": Custom("x")}, "takes only its options"),
        ({"q0": Custom(" ")}, "is empty"),
        ({"q2": "words"}, r"Custom\(\.\.\.\)"),
        ({"q1": None}, "is not one of"),
        ({"twice": "a"}, "is the id of 2 questions"),
    ],
)
def test_an_invalid_answer_is_refused(answers: dict[str, str | Custom], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_answers(QUESTIONS, answers)


@pytest.mark.parametrize("unanswered", ["proposed", "untouched"])
async def test_the_server_decides_unanswered_questions(
    unanswered: str, open_session: OpenSession, world: World
) -> None:
    world.variants = replace(world.variants, unanswered=unanswered)
    async with parked(open_session) as run:
        await run.approve(answers={"fq1": Custom("nobody@x.org")})
        done = await run.wait()
    assert done.report is not None
    assert done.report.inserted == (23 if unanswered == "proposed" else 26)


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_rejected_run_fails_whether_its_rows_are_kept_or_not(
    keeps: bool, open_session: OpenSession, world: World
) -> None:
    world.variants = replace(world.variants, rejected_keeps=keeps)
    async with parked(open_session) as run:
        await run.reject()
        with pytest.raises(RunFailed, match="Rejected"):
            await run.wait()


def on_decision(*faults: Fault) -> Callable[[str, str, int], Fault | None]:
    return lambda method, path, number: (
        faults[number - 1] if path.endswith(DECISIONS) and number <= len(faults) else None
    )


async def test_a_decision_with_a_lost_response_does_not_answer_the_next_park(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    """The response to the first decision is lost. At the next read, new questions have the same ids."""
    world.variants = replace(world.variants, parks_twice=True)
    transport.fault = on_decision(Fault(lost_after=True))
    async with parked(open_session) as run:
        first = run.needs_attention
        await run.approve()
        await run.wait()
        assert decisions(transport) == 1
        assert run.needs_attention != first
        assert {q.id for q in run.needs_attention.questions} <= {q.id for q in first.questions}  # type: ignore[union-attr]
        await run.approve()
        assert (await run.wait()).status == "completed"
    assert world.verdict(10**6).blind_decisions == 0


async def test_a_decision_that_takes_effect_late_is_not_repeated(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    """The read after the lost response still shows the park. The read before the repeat does not."""
    async with parked(open_session) as run:
        stale = msgspec.json.encode(run.state)
        reads = 0

        def lagging(method: str, path: str, number: int) -> Fault | None:
            nonlocal reads
            if path.endswith(DECISIONS):
                return Fault(lost_after=True)
            reads += path.endswith(run.id)
            return Fault(change=lambda body: stale) if reads == 1 else None

        transport.fault = lagging
        await run.approve()
        assert (await run.wait()).status == "completed"
    assert decisions(transport) == 1


async def test_a_decision_that_never_arrives_raises_unknown_outcome_with_its_body(
    open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(lost_before=True) if path.endswith(DECISIONS) else None
    )
    async with parked(open_session) as run:
        with pytest.raises(UnknownOutcome, match="decide again") as unknown:
            await run.approve(answers={"fq0": "a"})
        assert json.loads(unknown.value.sent)["answers"] == [{"question_id": "fq0", "option_id": "a"}]
        transport.fault = lambda method, path, number: None
        await run.approve()
        assert (await run.wait()).status == "completed"


async def test_questions_that_changed_since_they_were_shown_are_not_answered(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    """Another client has decided, and the run has parked again with questions of the same ids."""
    world.variants = replace(world.variants, parks_twice=True)
    async with parked(open_session) as run, open_session() as elsewhere:
        other = elsewhere.watch(run.id, run.company_id)
        await other.wait()
        await other.approve()
        await other.wait()
        assert other.needs_attention not in (None, run.needs_attention)
        await asyncio.sleep(10.0)
        before = decisions(transport)
        with pytest.raises(Conflict, match="now asks something else"):
            await run.approve()
        assert decisions(transport) == before
        assert run.needs_attention == other.needs_attention
        await run.approve()
        assert (await run.wait()).status == "completed"
    assert world.verdict(10**6).blind_decisions == 0


async def test_a_recently_read_park_is_decided_without_another_read(
    open_session: OpenSession, transport: InProcess
) -> None:
    async with parked(open_session) as run:
        before = len(transport.sent)
        await run.approve()
        assert len(transport.sent) == before + 1


async def test_a_decision_about_an_expired_park_is_a_conflict_and_the_run_fails(
    open_session: OpenSession, world: World
) -> None:
    world.variants = replace(world.variants, park_lasts=60.0)
    async with parked(open_session) as run:
        await asyncio.sleep(100.0)
        with pytest.raises(Conflict):
            await run.approve()
        with pytest.raises(RunFailed, match="in time"):
            await run.wait()


@pytest.mark.parametrize("fault", ["500-after", "truncated", "hang", "html-502"])
async def test_a_rejection_is_sent_once_even_if_its_response_is_lost(
    fault: str, open_session: OpenSession, transport: InProcess, world: World
) -> None:
    transport.fault = on_decision(FAULTS[fault])
    async with parked(open_session) as run:
        await run.reject()
        with pytest.raises(RunFailed, match="Rejected"):
            await run.wait()
    assert len(world.ledger.decisions) == 1
