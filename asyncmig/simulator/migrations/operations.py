"""Routes of runs: start, read, cancel, answer, credentials."""

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import msgspec

from asyncmig.simulator.migrations.account import Account, Ids, Migration, Run
from asyncmig.simulator.migrations.runs import Agent
from asyncmig.simulator.migrations.scripts import Question
from asyncmig.simulator.server.messages import Filled, Json, Refusal, Reply, Request, read_body

__all__ = ["answer", "cancel_run", "read_run", "start_run", "submit_credentials"]

_MOST_FILES, _MOST_DOCUMENTS = 400, 5
_DOCUMENTS = (".pdf", ".doc", ".docx")


class _RunIn(msgspec.Struct, kw_only=True):
    kind: Literal["generate", "update", "clarify", "execute"]
    message: str | None = None
    extract_via_api: bool | None = None


class _CancelIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    status: Literal["cancel_requested"]


class _AnswerIn(msgspec.Struct, kw_only=True):
    id: str
    value: Filled


class _AnswersIn(msgspec.Struct, kw_only=True):
    answers: Annotated[list[_AnswerIn], msgspec.Meta(min_length=1)] | Filled


class _CredentialsIn(msgspec.Struct, kw_only=True):
    credentials: Annotated[Json, msgspec.Meta(min_length=1)]
    connection_id: str | None = None


def start_run(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/runs`."""
    account.require_plan()
    migration, body = account.find(ids, now), read_body(request.body, _RunIn)
    if body.kind in ("update", "clarify") and not (body.message or "").strip():
        raise Refusal(400, "message is required")
    if migration.active is not None:
        named = {} if account.variants.bare_conflict else {"run_id": migration.active.id}
        raise Refusal(409, "A run is in progress", fields=named)
    if not migration.schemas:
        raise Refusal(409, "The migration has no templates")
    if body.kind == "generate":
        _check_data(account, migration)
        migration.live = body.extract_via_api
    elif migration.preview is None:
        raise Refusal(409, "There is no preview: generate one first")
    elif not migration.resumable:
        raise Refusal(409, "The preview can no longer be resumed: generate it anew")
    migration.touched_at = now
    run = Agent(account, migration).start(body.kind, body.message, now)
    path = f"/migrations/{migration.id}/runs/{run.id}"
    return account.shown(
        201, {"run_id": run.id, "status": run.status, "poll_url": f"{account.base_url}{path}"}
    )


def _check_data(account: Account, migration: Migration) -> None:
    """Raise `Refusal` (400) if there is nothing to generate from, or too much."""
    if not migration.arrived and not migration.connections:
        raise Refusal(400, "There is no data: upload a file or save a connection")
    counted = migration.files if account.variants.unused_urls_count else migration.arrived
    documents = sum(file.name.lower().endswith(_DOCUMENTS) for file in counted)
    is_avoidable = len(counted) == len(migration.arrived)
    for count, most, what in (
        (len(counted), _MOST_FILES, "files"),
        (documents, _MOST_DOCUMENTS, "PDF or Word files"),
    ):
        if count > most:
            text = f"A run takes at most {most} {what}; there are {count}"
            raise Refusal(400, text, is_avoidable=is_avoidable)


def _run(account: Account, ids: Ids, now: float) -> tuple[Migration, Run]:
    migration = account.find(ids, now)
    for run in migration.runs:
        if run.id == ids["run_id"] and now >= run.created_at + account.variants.lag:
            return migration, run
    raise Refusal(404, "Run not found")


def read_run(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/runs/{run_id}`."""
    migration, run = _run(account, ids, now)
    if run.before is not None and now < run.shows_before:
        return account.shown(200, run.before)
    return account.shown(200, Agent(account, migration).describe(run))


def cancel_run(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `PATCH /migrations/{id}/runs/{run_id}`."""
    migration, run = _run(account, ids, now)
    read_body(request.body, _CancelIn)
    variants, agent = account.variants, Agent(account, migration)
    if run.status in ("completed", "failed", "canceled"):
        if variants.cancel_ended == "refused":
            raise Refusal(409, "The run has ended")
    elif run.status == "awaiting_approval" and variants.cancel_at_preview == "refused":
        raise Refusal(409, "The run is not in progress")
    elif not run.is_canceling:
        agent.cancel(run, now)
    return account.shown(200, agent.describe(run))


def _blocked(account: Account, ids: Ids, now: float, reason: str) -> tuple[Migration, Run]:
    migration, run = _run(account, ids, now)
    if run.status != "blocked":
        raise Refusal(409, "The run is not blocked")
    if run.reason != reason:
        raise Refusal(409, f"The run waits for something else than a {reason}")
    if now < run.changed_at + account.variants.listens_after:
        raise Refusal(409, "The agent is not listening yet: retry shortly")
    migration.touched_at = now
    return migration, run


def answer(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/runs/{run_id}/messages`."""
    migration, run = _blocked(account, ids, now, "question")
    answers = read_body(request.body, _AnswersIn).answers
    if isinstance(answers, str):
        answers = [_AnswerIn(id=str(run.questions[0]["id"]), value=answers)]
    asked = {str(shown["id"]): question for shown, question in zip(run.questions, run.asked, strict=True)}
    given = {each.id: each.value for each in answers}
    if unknown := given.keys() - asked.keys():
        raise Refusal(400, f"{min(unknown)} is not a question of this run")
    again = _asked_again(account, asked, given)
    for question_id, value in given.items():
        if asked[question_id] not in again:
            migration.decisions[asked[question_id].text] = value
    run.phase.answers |= given
    run.phase.pending = again
    run.answers = {**given}
    if account.variants.replies == "told":
        migration.tell(now, "message", {"text": "; ".join(given.values()), "role": "user"}, account.rng)
    Agent(account, migration).resume(run, now)
    return account.shown(200, {"run_id": run.id, "status": "running"})


def _asked_again(account: Account, asked: Mapping[str, Question], given: Mapping[str, str]) -> list[Question]:
    """Return the questions that need another answer. Raises `Refusal` where the server refuses instead."""
    variants, again = account.variants, list[Question]()
    for question_id, question in asked.items():
        if question_id not in given:
            if variants.partial_answers == "refused":
                raise Refusal(400, f"{question_id} has no answer")
            again += [question] if variants.partial_answers == "asked" else []
        elif (
            question.options
            and not question.allow_custom
            and variants.options == "listed"
            and given[question_id] not in question.options
        ):
            if variants.free_text == "refused":
                raise Refusal(400, f"{question_id} takes only its options")
            again += [question] if variants.free_text == "asked" else []
    return again


def submit_credentials(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/runs/{run_id}/credentials`.

    The value `wrong` is rejected: the run blocks again.
    """
    migration, run = _blocked(account, ids, now, "credentials")
    body = read_body(request.body, _CredentialsIn)
    wanted = cast("str", (run.request or {})["connection_id"])
    if body.connection_id not in (None, wanted):
        raise Refusal(409, "The run waits for the credentials of another connection")
    accepted = "wrong" not in body.credentials.values()
    migration.credentials[wanted] = body.credentials
    for connection in migration.connections.values():
        if connection["id"] == wanted:
            connection["creds_configured"] = accepted
    if not accepted:
        run.phase.blocks -= 1
    Agent(account, migration).resume(run, now)
    return account.shown(200, {"run_id": run.id, "status": "running"})
