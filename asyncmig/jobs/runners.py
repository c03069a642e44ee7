"""One customer as one job of a job runner: arq, procrastinate, Temporal and others.

`migrate_job` is `migrate` for a runner. If a later attempt continues by itself, it raises `RetryJob`, which the job
maps to the runner's retry. It returns an outcome that ends the job: the end of the migration, or a wait for a person:

    try:
        outcome = await migrate_job(session, spec, journal=journal, to="out/acme-001")
    except RetryJob as retry:
        ...  # ask the runner for another attempt in `retry.after` seconds

What happens to a `Pending` outcome depends on its reason:

| reason | the job | why |
| --- | --- | --- |
| `held` | again in 5 s | another worker has the customer, or died with it up to a minute ago |
| `interrupted` | again in 30 s | the worker stops, or its machine lacks disk space or memory |
| `server_away` | again in 5 minutes | this attempt has waited `retry_seconds` for the server already |
| `no_run_slot` | again in 5 minutes | other runs of the account occupy every run slot |
| `key_refused`, `account_refused` | ends with `Pending` | settle that, then restart the workers |
| `crashed` | ends with `Pending` | each attempt would raise the same exception: correct the code, or report it |
| `canceled` | ends with `Pending` | the caller wanted it |

Enqueue the customer again to continue a job that ended with `Pending`. A journal that is unavailable is a `RetryJob`
after 30 s.

A job can be cancelled, killed, and run twice: the journal prevents a second import. `decision_for` makes JSON types
from a decision about a parked customer, for the arguments of its next job. The guide has a complete example for each
runner; SAQ has a module of its own (`asyncmig.distributed.saq`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, Unpack

import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call
from asyncmig.customers.decisions import Answer, Approve, Credentials, Decision, checked_decision
from asyncmig.customers.options import MigrationKeywords, MigrationOptions, combined
from asyncmig.customers.outcome import Outcome, Parked, Pending, PendingReason
from asyncmig.customers.questions import check_answers
from asyncmig.customers.spec import Spec
from asyncmig.errors import AsyncmigError, CustomerHeld, InvalidInput, JournalUnavailable
from asyncmig.jobs.migrate import migrate
from asyncmig.journal import JournalPort
from asyncmig.session import Session

__all__ = [
    "Heartbeat",
    "RetryJob",
    "decision_for",
    "digest_of",
    "migrate_job",
    "read_outcome",
    "with_decision",
]

Heartbeat: TypeAlias = Callable[[], Awaitable[object] | None]
"""Shows the job runner that the worker is alive: a function, or a coroutine function."""
_RETRIES: dict[PendingReason, float] = {
    "held": 5.0,
    "interrupted": 30.0,
    "server_away": 300.0,
    "no_run_slot": 300.0,
}
"""Seconds to the next attempt by the reason of a `Pending` outcome. Any other reason ends the job."""
_JOURNAL_AWAY = 30.0


class RetryJob(AsyncmigError):
    """Another attempt of the job continues, `after` seconds from now; `reason` says why this one ended."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason, after)
        self.reason = reason
        self.after = after

    def __str__(self) -> str:
        return f"{self.reason} (again in {self.after:.0f} s)"


@checked_call
async def migrate_job(
    session: Session,
    spec: Spec,
    *,
    journal: JournalPort,
    to: Path | str,
    decision: Mapping[str, object] | None = None,
    heartbeat: Heartbeat | None = None,
    heartbeat_every: float = 10.0,
    api: str = generations.DEFAULT,
    options: MigrationOptions | None = None,
    **keywords: Unpack[MigrationKeywords],
) -> Outcome:
    """Migrate one customer in a job, and return an outcome that ends the job.

    A `Pending` outcome is returned only with a reason that another attempt would meet again; see the module.

    `decision`: what `decision_for` returned; it is sent if the customer still asks the questions that it answers.
    `heartbeat`: called at the beginning and then every `heartbeat_every` seconds, to show the runner that the worker
    is alive; its exceptions end the job. The other arguments are those of `migrate`.

    Raises `RetryJob` if another attempt continues: another worker holds the customer, the migration was interrupted,
    the server or the journal is unavailable. Raises `InvalidInput` as `migrate` does, and `JournalError`.
    """
    options = combined(options, keywords)
    if decision is not None:
        answer = msgspec.convert(decision.get("decision"), Decision)
        options = with_decision(options, answer, str(decision.get("shown")))
    work = asyncio.ensure_future(migrate(session, spec, journal=journal, to=to, api=api, options=options))
    beats = asyncio.ensure_future(_beat(heartbeat, heartbeat_every))
    try:
        await asyncio.wait([work, beats], return_when=asyncio.FIRST_COMPLETED)
        if beats.done():
            beats.result()
        outcome = await work
    except CustomerHeld as error:
        raise RetryJob(str(error), _RETRIES["held"]) from error
    except JournalUnavailable as error:
        raise RetryJob(str(error), _JOURNAL_AWAY) from error
    finally:
        work.cancel()
        beats.cancel()
        await asyncio.wait([work, beats])
    if isinstance(outcome, Pending) and outcome.reason in _RETRIES:
        raise RetryJob(outcome.error, _RETRIES[outcome.reason])
    return outcome


async def _beat(heartbeat: Heartbeat | None, every: float) -> None:
    while True:
        if heartbeat is not None and (called := heartbeat()) is not None:
            await called
        await asyncio.sleep(every)


@checked_call
def decision_for(parked: Parked, decision: Decision, *, api: str = generations.DEFAULT) -> dict[str, object]:
    """Return a decision about a parked customer as JSON types, for the argument `decision` of its next job.

    Raises `InvalidInput` for a decision that the API generation lacks, for answers that were not offered, and for
    credentials, which a queue must not store.
    """
    checked_decision(decision, generations.find(api).supported_decisions, api)
    if isinstance(decision, Credentials):
        raise InvalidInput("credentials", "***", "are secrets, which a queue must not store")
    if isinstance(decision, Approve | Answer):
        check_answers(parked.attention, decision.answers or {})
    return {"decision": msgspec.to_builtins(decision), "shown": digest_of(parked)}


async def read_outcome(journal: JournalPort, external_id: str) -> Outcome | None:
    """Return how a customer's last job ended, from its journal; None while it is not known or its job runs."""
    state = await journal.state(external_id)
    return None if state is None else generations.read(external_id, state).outcome


def with_decision(options: MigrationOptions, decision: Decision, shown: str) -> MigrationOptions:
    """Return options that send `decision` once, for the questions with the digest `shown`. Others stay parked."""
    left = [decision]

    async def decide(parked: Parked) -> Decision | None:
        return left.pop() if left and digest_of(parked) == shown else None

    return replace(options, decide=decide)


def digest_of(parked: Parked) -> str:
    """Return a digest of the questions. Their ids are not enough, because they can start again in each park."""
    return parked.attention.digest
