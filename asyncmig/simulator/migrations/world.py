"""The server's state: it takes a request and `now`, and returns a reply. It knows the contract and no client."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random
from typing import final

import msgspec

from asyncmig.simulator.migrations import catalog, exports, files, history, operations
from asyncmig.simulator.migrations.account import Account, Ids, Migration
from asyncmig.simulator.migrations.runs import advance
from asyncmig.simulator.server.ledger import BaseVerdict, mistake, shared_counts
from asyncmig.simulator.server.messages import (
    Json,
    Refusal,
    Reply,
    Request,
    Routes,
    json_reply,
    read_body,
)

__all__ = ["Verdict", "World"]

Handler = Callable[[Account, Request, Ids, float], Reply]
_M = "/migrations/{id}"
_TABLE: tuple[tuple[str, str, Handler], ...] = (
    ("GET /sources", "reads", catalog.list_sources),
    ("PATCH /sources/{source}", "writes", catalog.update_source),
    ("POST /sources/{source}/pin", "writes", catalog.pin_source),
    ("GET /sources/{source}/knowledge", "writes", catalog.source_knowledge),
    ("PATCH /sources/{source}/knowledge", "writes", catalog.write_source_knowledge),
    ("GET /templates", "reads", catalog.list_templates),
    ("GET /templates/{slug}", "reads", catalog.read_template),
    ("PATCH /templates/{slug}", "writes", catalog.update_template),
    ("POST /migrations", "create", files.create_migration),
    (f"POST {_M}/files", "writes", files.create_uploads),
    (f"GET {_M}/files", "reads", files.list_files),
    (f"POST {_M}/source-connection", "writes", files.save_connection),
    (f"GET {_M}/source-connection", "writes", files.read_connection),
    (f"DELETE {_M}/source-connection", "writes", files.delete_connection),
    (f"GET {_M}/knowledge", "writes", catalog.migration_knowledge),
    (f"PATCH {_M}/knowledge", "writes", catalog.write_migration_knowledge),
    (f"POST {_M}/runs", "agent", operations.start_run),
    (f"GET {_M}/runs/{{run_id}}", "reads", operations.read_run),
    (f"PATCH {_M}/runs/{{run_id}}", "reads", operations.cancel_run),
    (f"POST {_M}/runs/{{run_id}}/messages", "agent", operations.answer),
    (f"POST {_M}/runs/{{run_id}}/credentials", "agent", operations.submit_credentials),
    (f"GET {_M}/preview", "reads", exports.preview),
    (f"GET {_M}/thread", "reads", history.snapshot),
    (f"GET {_M}/thread/stream", "reads", history.stream),
    (f"GET {_M}/exports/{{slug}}.csv", "reads", exports.download),
    (f"POST {_M}/exports", "jobs", exports.start_export),
    (f"GET {_M}/exports/jobs/{{job_id}}", "reads", exports.read_export),
    (f"GET {_M}/log", "reads", history.read_log),
)
"""Each endpoint, its class of limits, and its handler."""
_CLASSES = {endpoint: name for endpoint, name, _ in _TABLE}
_HANDLERS = {endpoint: handler for endpoint, _, handler in _TABLE}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "600",
}
_FOREIGN_PERIOD = 600.0
"""Seconds for which the number of foreign runs stays the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(BaseVerdict):
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    executed_twice: int = mistake("executes of rows that were written before")
    """Executes after one that wrote rows, without new files or an update in between."""
    generated_twice: int = mistake("generates although a preview of the same files was there or was executed")
    uploaded_twice: int = mistake("files uploaded twice")
    """Files with the name and content of an earlier one of the migration."""
    duplicate_migrations: int = mistake("migrations created twice for one customer")
    """Migrations with the name and source of another."""
    starts_beyond_three: int = mistake("starts while the account's own runs took all places")


@final
class World(Account):
    """One account of the Migration API, generation "migrations".

    `limits`: numbers of the limits; by default those that the variants choose. `scripts`: what happens to customers,
    by external id. `epoch`: Unix seconds at second 0 of the clock. `plan`: False for an account that can only read.
    """

    routes: Routes = Routes(_HANDLERS)
    starts_beyond_three: int = 0
    """Starts that were refused while the account's own runs took all places."""

    def migration(self, external_id: str) -> Migration:
        """Return the migration of a customer. Raises `KeyError` if there is none."""
        for migration in self.migrations.values():
            if migration.external_id == external_id:
                return migration
        raise KeyError(external_id)

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers about a customer that the agent accepted: label or text by the question's text."""
        found = [each for each in self.migrations.values() if each.external_id == external_id]
        return {text: value for migration in found for text, value in migration.decisions.items()}

    def verdict(self, now: float) -> Verdict:
        """Return what a client of this world did wrong."""
        advance(self, now)
        migrations = self.migrations.values()
        names = Counter((each.name, each.source) for each in migrations)
        repeated = Counter(
            phase.kind
            for migration in migrations
            for run in migration.runs
            for phase in run.phases
            if phase.is_repeat
        )
        contents = Counter(
            (migration.id, file.requested_name, file.content)
            for migration in migrations
            for file in migration.arrived
        )
        return Verdict(
            **shared_counts(self.ledger),
            executed_twice=repeated["execute"],
            generated_twice=repeated["generate"],
            uploaded_twice=sum(count - 1 for count in contents.values()),
            duplicate_migrations=sum(count - 1 for count in names.values()),
            starts_beyond_three=self.starts_beyond_three,
        )

    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host: a PUT to a signed URL, a download, or a CORS preflight."""
        if request.method == "OPTIONS":
            return Reply(status=204, body=b"", headers=_CORS)
        self.ledger.key_leaks += "x-api-key" in request.headers
        reply = (exports.fetch_link if request.method == "GET" else files.put_bytes)(self, request, now)
        return replace(reply, headers={**reply.headers, **_CORS})

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        if request.path.startswith("/downloads/"):  # a relative download link
            self.ledger.key_leaks += "x-api-key" in request.headers
            return exports.fetch_link(self, request, now)
        reply = super().handle(request, now)
        return replace(reply, headers={"Date": self._date(now), **reply.headers})

    def _date(self, now: float) -> str:
        return format_datetime(datetime.fromtimestamp(self.epoch + now, UTC), usegmt=True)

    def _respond(self, endpoint: str, request: Request, ids: Ids, now: float) -> Reply:
        if self.rng.random() < self.variants.proxy_403:
            return Reply(status=403, body=b"<html>Forbidden</html>", content_type="text/html")
        advance(self, now)
        is_start = endpoint == "POST /migrations/{id}/runs"
        charged = self._charges(request, endpoint)
        if is_start and not self.variants.concurrency_counts:
            self._take_place(ids, now)
        if not self.budgets.admit(charged, now):
            raise Refusal(429, "Too many requests", headers=self._headers(charged, now, refused=True))
        if is_start and self.variants.concurrency_counts:
            self._take_place(ids, now)
        reply = _HANDLERS[endpoint](self, request, ids, now)
        return replace(reply, headers={**reply.headers, **self._headers(charged, now, refused=False)})

    def _charges(self, request: Request, endpoint: str) -> list[str]:
        """Return the budgets that a request charges."""
        variants, name = self.variants, _CLASSES[endpoint]
        if not self.limits.by_class:
            return [self.limits.charged(endpoint)]
        if request.method == "GET" and endpoint.endswith(("/knowledge", "/source-connection")):
            return [variants.knowledge_class]
        if endpoint == "GET /migrations/{id}/files":
            return [variants.files_class]
        if endpoint == "PATCH /migrations/{id}/runs/{run_id}":
            return [variants.cancel_class]
        if name == "create":
            if not variants.replays_count and files.find_existing(self, request) is not None:
                return []
            return ["create", "writes"] if variants.create_costs_write else ["create"]
        if endpoint == "POST /migrations/{id}/runs" and _kind_of(request) == "generate":
            return ["agent", "generate"]
        return [name]

    def _headers(self, charged: list[str], now: float, *, refused: bool) -> dict[str, str]:
        """Return the headers about limits: on a refusal with `Retry-After`."""
        wanted = self.variants.limit_headers
        if not self.limits.by_class or wanted == "none" or not (refused or wanted == "always"):
            return {}
        headers = self.budgets.headers(charged, now, self.epoch + now)
        if not refused:
            headers.pop("Retry-After", None)
        return headers

    def _foreign(self, now: float) -> int:
        """Return how many runs of others are in progress at `now`."""
        most = self.variants.foreign_runs
        return Random(f"{self.seed} {now // _FOREIGN_PERIOD}").randint(0, most) if most else 0

    def _take_place(self, ids: Ids, now: float) -> None:
        """Raise `Refusal` (429) if the account has no place for another run."""
        most, variants = self.limits.runs, self.variants
        own, foreign = self.in_progress(), self._foreign(now)
        if most is None or len(own) + foreign < most or any(each.id == ids["id"] for each, _ in own):
            return
        self.starts_beyond_three += len(own) >= most
        listed = [(run.id, run.status) for _, run in own]
        listed += [(self.new_id(), "running") for _ in range(foreign)]
        prefix = "run_" if variants.listed_ids == "run_" else ""
        runs: list[Json] = [
            {"id": prefix + run_id, "status": status, "updatedAt": None, "runKind": None}
            for run_id, status in listed
        ]
        wait = variants.concurrency_wait
        raise Refusal(
            429,
            "Too many runs are in progress",
            headers={} if wait is None else {"Retry-After": str(int(wait))},
            fields={
                "code": "run_concurrency_limit",
                "limit": most,
                **({"runs": runs} if variants.concurrency_list else {}),
            },
            is_avoidable=False,
        )

    def _refuse(self, refusal: Refusal, now: float) -> Reply:
        headers = dict(refusal.headers)
        if self.variants.retry_after == "date" and "Retry-After" in headers:
            headers["Retry-After"] = self._date(now + int(headers["Retry-After"]))
        how = "json" if refusal.fields else self.variants.errors
        if how == "html":
            body = f"<html><body>{refusal.status}</body></html>".encode()
            return Reply(status=refusal.status, body=body, content_type="text/html", headers=headers)
        if how == "empty":
            return Reply(status=refusal.status, body=b"", headers=headers)
        text = {} if how == "textless" else {"error": refusal.text}
        return replace(json_reply(refusal.status, {**text, **refusal.fields}), headers=headers)


class _Start(msgspec.Struct):
    kind: str = ""


def _kind_of(request: Request) -> str:
    """Return the kind of run that a request starts; nothing for a malformed body, whose handler refuses it."""
    try:
        return read_body(request.body, _Start).kind
    except Refusal:
        return ""
