"""Routes that show what the agent did: the thread (a snapshot, or a stream of server-sent events) and the log."""

import json
from typing import final

from asyncmig.simulator.migrations.account import Account, Event, Ids, Migration, Phase, Run
from asyncmig.simulator.migrations.runs import Agent
from asyncmig.simulator.server.messages import Json, Refusal, Reply, Request

__all__ = ["read_log", "snapshot", "stream"]

_PAGE = 50
_USER = ("message", "status", "preview", "request_input", "completed", "error")
_TOOLS = (*_USER, "tool_call", "tool_result", "task")
_INCLUDED = {"user": _USER, "tools": _TOOLS, "all": (*_TOOLS, "thinking", "prepared")}
_RETRY_AFTER = 30
_LIVES, _CUT_AFTER, _FAILS_AFTER, _EARLY = 300.0, 60.0, 20.0, 5.0


def _after(request: Request) -> int:
    text = request.query.get("after", "0")
    if not text.isdecimal():
        raise Refusal(400, "after must be a sequence")
    return int(text)


def _kinds(request: Request) -> tuple[str, ...]:
    include = request.query.get("include", "user")
    if include not in _INCLUDED:
        raise Refusal(400, f"include must be one of {', '.join(_INCLUDED)}")
    return _INCLUDED[include]


def _visible(migration: Migration, after: int, kinds: tuple[str, ...], now: float) -> list[Event]:
    return [
        event
        for event in migration.thread
        if event.sequence > after and event.at <= now and event.kind in kinds
    ]


def snapshot(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/thread`."""
    migration = account.find(ids, now)
    events = _visible(migration, _after(request), _kinds(request), now)[:_PAGE]
    last = events[-1].sequence if events else None
    return account.shown(
        200, {"events": [account.event_text(event) for event in events], "last_sequence": last}
    )


def stream(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/thread/stream`."""
    migration = account.find(ids, now)
    opened = ThreadStream(account, migration, _after(request), _kinds(request), now)
    headers = {"Cache-Control": "no-cache"}
    return Reply(status=200, body=b"", content_type="text/event-stream", headers=headers, stream=opened)


@final
class ThreadStream:
    """The stream of a thread, from one sequence on."""

    def __init__(
        self, account: Account, migration: Migration, after: int, kinds: tuple[str, ...], now: float
    ) -> None:
        self._account, self._migration, self._kinds = account, migration, kinds
        self._last, self._opened = after, now
        self._fails = account.rng.random() < account.variants.stream_errors
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream."""
        return self._ended

    def read(self, now: float) -> bytes:
        """Return the frames that are new at `now`, with the end if it has come."""
        account, migration, variants = self._account, self._migration, self._account.variants
        Agent(account, migration).advance(now)
        frames = [b": stream\n\n"] if variants.framing == "comments" else []
        started = max((at for _, at in migration.accepted), default=float("-inf"))
        if variants.early_done and self._opened == now and now - started < _EARLY:
            self._ended = True
            return self._done()
        for event in _visible(migration, self._last, self._kinds, now):
            self._last = event.sequence
            frames.append(self._frame(event.kind, account.event_text(event)))
        age = now - self._opened
        if self._is_over():
            self._ended = True
            frames += [self._done()] if variants.stream_done else []
        elif self._fails and age >= _FAILS_AFTER:
            self._ended = True
            frames.append(self._frame("error", {"error": "stream failed"}))
        elif age >= (_CUT_AFTER if variants.framing == "cut" else _LIVES):
            self._ended = True
            frames += [b'event: status\ndata: {"sequ'] if variants.framing == "cut" else []
        return b"".join(frames)

    def _is_over(self) -> bool:
        run = self._migration.active
        return run is None or (run.status == "blocked" and self._account.variants.blocked_stream == "done")

    def _done(self) -> bytes:
        return self._frame("done", {"last_sequence": self._last})

    def _frame(self, kind: str, value: object) -> bytes:
        framing = self._account.variants.framing
        text = json.dumps(value, indent=1 if framing == "lines" else None)
        lines = [f"event: {kind}", *(f"data: {line}" for line in text.split("\n"))]
        if framing == "comments":
            lines.insert(1, ": comment")
        end = "\r\n" if framing == "crlf" else "\n"
        return (end.join(lines) + end * 2).encode()


# The log


def read_log(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/log`."""
    migration, variants = account.find(ids, now), account.variants
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
