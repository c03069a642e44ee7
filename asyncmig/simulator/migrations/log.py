"""The route of the log."""

import json
from collections.abc import Mapping

from asyncmig.simulator.migrations.account import Account
from asyncmig.simulator.migrations.migration import Migration, Phase, Run
from asyncmig.simulator.server.messages import Json, Refusal, Reply, Request

__all__ = ["read_log"]

_RETRY_AFTER = 30


def read_log(account: Account, request: Request, ids: Mapping[str, str], now: float) -> Reply:
    """Respond to `GET /migrations/{id}/log`."""
    migration, variants = account.migration(ids, now), account.variants
    if variants.log == "unavailable":
        raise Refusal(503, "The log is not available in this region")
    run = migration.current
    held = run is not None and (
        migration.active is not None
        or (run.status == "awaiting_approval" and variants.log_at_preview == "in-flight")
    )
    status = run.status if run is not None and variants.log_status == "run" else migration.status()
    if held:
        assert run is not None
        raise Refusal(
            409,
            "The migration is not settled",
            headers={"Retry-After": str(_RETRY_AFTER)},
            fields={"status": status, "retry_after_seconds": _RETRY_AFTER},
        )
    runs = _runs(account, migration)
    log: Json = {
        "migration_id": migration.id,
        "generated_at": account.time_text(now),
        "status": status,
        "covers": {
            "runs": len(runs),
            "from": account.time_text(migration.created_at),
            "to": account.time_text(now),
        },
        "runs": runs,
    }
    if request.query.get("format") == "md":
        return Reply(status=200, body=_markdown(migration, log, runs).encode(), content_type="text/markdown")
    return account.shown(200, log)


def _runs(account: Account, migration: Migration) -> list[Json]:
    """Return the entries of the log: one for each operation, or one for each run."""
    if account.variants.log_entries == "phase":
        return [_entry(account, run, [phase]) for run in migration.runs for phase in run.phases]
    return [_entry(account, run, run.phases) for run in migration.runs]


def _entry(account: Account, run: Run, phases: list[Phase]) -> Json:
    first, last = phases[0], phases[-1]
    ended = last.completed_at
    audit = [
        {
            "at": account.time_text(phase.started_at),
            "event": "resumed" if phase is not run.phases[0] else "started",
        }
        for phase in phases
    ]
    if any(phase.kind == "execute" for phase in phases):
        audit.append({"at": account.time_text(last.started_at), "event": "plan_approved"})
    return {
        "run_id": run.id,
        "kind": first.kind,
        "status": last.status,
        "started_at": account.time_text(first.started_at),
        "completed_at": None if ended is None else account.time_text(ended),
        "started_by": None,
        "files": first.files,
        "plan": None,
        "questions": [question for phase in phases for question in phase.questions],
        "answers": {name: value for phase in phases for name, value in phase.answers.items()},
        "outcome": last.outcome,
        "audit": audit,
    }


def _markdown(migration: Migration, log: Json, runs: list[Json]) -> str:
    lines = [f"# {migration.name}", "", f"Status: {log['status']}", ""]
    for run in runs:
        lines += [f"## {run['kind']} ({run['status']})", "", f"Outcome: {json.dumps(run['outcome'])}", ""]
    return "\n".join(lines)
