"""The server's state: it takes a request and `now`, and returns a reply. It knows the contract and no client."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random
from typing import final

import msgspec

from asyncmig.simulator.migrations import catalog, exports, files, history, operations
from asyncmig.simulator.migrations.account import EPOCH, Account
from asyncmig.simulator.migrations.data import SCHEMAS, SOURCES
from asyncmig.simulator.migrations.judge import Refused, Verdict, judge
from asyncmig.simulator.migrations.migration import Migration
from asyncmig.simulator.migrations.runs import advance
from asyncmig.simulator.migrations.scripts import Script
from asyncmig.simulator.migrations.tables import Schema
from asyncmig.simulator.migrations.variants import Variants
from asyncmig.simulator.server.ledger import Entry, Ledger
from asyncmig.simulator.server.limits import Budgets, FixedWindow, Limits, Meter, SlidingLog
from asyncmig.simulator.server.messages import (
    Json,
    Malformed,
    Refusal,
    Reply,
    Request,
    Routes,
    json_reply,
    read_body,
)
from asyncmig.simulator.server.settings import RunDurations

__all__ = ["World", "endpoint_of"]

Handler = Callable[[Account, Request, Mapping[str, str], float], Reply]
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
_ROUTES = Routes(_HANDLERS)
endpoint_of: Callable[[Request], str] = _ROUTES.endpoint_of

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "600",
}
_FOREIGN_PERIOD = 600.0
"""Seconds for which the number of foreign runs stays the same."""


@final
class World:
    """One account of the Migration API, generation "migrations".

    `limits`: numbers of the limits; by default those that the variants choose. `scripts`: what happens to customers,
    by external id. `epoch`: Unix seconds at second 0 of the clock. `plan`: False for an account that can only read.
    """

    def __init__(
        self,
        *,
        key: str,
        sources: Iterable[str] = SOURCES,
        schemas: Iterable[Schema] = SCHEMAS,
        seed: int = 0,
        limits: Limits | None = None,
        pace: RunDurations | None = None,
        variants: Variants | None = None,
        scripts: Mapping[str, Script] | None = None,
        epoch: float = EPOCH,
        plan: bool = True,
    ) -> None:
        self.key: str = key
        self.variants: Variants = variants or Variants()
        self.ledger: Ledger = Ledger()
        self.limits: Limits = limits or Limits.parse(self.variants.limits)
        self.account: Account = Account(
            sources=sources,
            schemas=schemas,
            seed=seed,
            variants=self.variants,
            pace=pace or RunDurations(),
            scripts=scripts or {},
            epoch=epoch,
            plan=plan,
        )
        self._budgets = Budgets(self._meter)
        self._refused = Refused()

    @property
    def base_url(self) -> str:
        """The address of the API, set by the code that serves the world."""
        return self.account.base_url

    @base_url.setter
    def base_url(self, url: str) -> None:
        self.account.base_url = url

    @property
    def storage_url(self) -> str:
        """The address of the storage, set by the code that serves the world."""
        return self.account.storage_url

    @storage_url.setter
    def storage_url(self, url: str) -> None:
        self.account.storage_url = url

    @property
    def migrations(self) -> Mapping[str, Migration]:
        """The migrations by id, for tests to look at."""
        return self.account.migrations

    def migration(self, external_id: str) -> Migration:
        """Return the migration of a customer. Raises `KeyError` if there is none."""
        for migration in self.account.migrations.values():
            if migration.external_id == external_id:
                return migration
        raise KeyError(external_id)

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers about a customer that the agent accepted: label or text by the question's text."""
        found = [each for each in self.account.migrations.values() if each.external_id == external_id]
        return {text: value for migration in found for text, value in migration.decisions.items()}

    def endpoint_of(self, request: Request) -> str:
        """Return method and route template of a request; `PUT storage` for an upload."""
        return endpoint_of(request)

    def verdict(self, now: float) -> Verdict:
        """Return what a client of this world did wrong."""
        advance(self.account, now)
        return judge(self.account.migrations.values(), self.ledger, self._refused)

    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host: a PUT to a signed URL, a download, or a CORS preflight."""
        if request.method == "OPTIONS":
            return Reply(status=204, body=b"", headers=_CORS)
        self._note_key(request)
        reply = (exports.fetch_link if request.method == "GET" else files.put_bytes)(
            self.account, request, now
        )
        return replace(reply, headers={**reply.headers, **_CORS})

    def _note_key(self, request: Request) -> None:
        self.ledger.key_leaks += "x-api-key" in request.headers

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        if request.path.startswith("/downloads/"):
            self._note_key(request)
            return exports.fetch_link(self.account, request, now)
        found = _ROUTES.find(request)
        if found is None:
            return json_reply(404, {"error": "No such route"})
        template, ids = found
        reply = self._answer(request, f"{request.method} {template}", ids, now)
        date = format_datetime(datetime.fromtimestamp(self.account.epoch + now, UTC), usegmt=True)
        reply = replace(reply, headers={"Date": date, **reply.headers})
        self.ledger.note(
            Entry(at=now, method=request.method, template=template, ids=ids, status=reply.status)
        )
        return reply

    def _answer(self, request: Request, endpoint: str, ids: Mapping[str, str], now: float) -> Reply:
        if request.headers.get("x-api-key") != self.key:
            return self._error(Refusal(401, "Invalid API key"), now)
        variants = self.variants
        if self.account.rng.random() < variants.proxy_403:
            return Reply(status=403, body=b"<html>Forbidden</html>", content_type="text/html")
        advance(self.account, now)
        is_start = endpoint == "POST /migrations/{id}/runs"
        charged = self._charges(request, endpoint)
        try:
            if is_start and not variants.concurrency_counts:
                self._take_place(ids, now)
            if not self._budgets.admit(charged, now):
                self._refused.over_the_limit += 1
                raise Refusal(429, "Too many requests", headers=self._headers(charged, now, refused=True))
            if is_start and variants.concurrency_counts:
                self._take_place(ids, now)
            reply = _HANDLERS[endpoint](self.account, request, ids, now)
        except Malformed as malformed:
            self._refused.malformed += 1
            return self._error(Refusal(400, str(malformed)), now)
        except Refusal as refusal:
            self._refused.malformed += refusal.status == 400 and refusal.is_avoidable
            return self._error(refusal, now)
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
            if not variants.replays_count and files.find_existing(self.account, request) is not None:
                return []
            return ["create", "writes"] if variants.create_costs_write else ["create"]
        if endpoint == "POST /migrations/{id}/runs" and _kind_of(request) == "generate":
            return ["agent", "generate"]
        return [name]

    def _meter(self, name: str) -> Meter | None:
        rate = self.limits.rate_of(name)
        if rate is None:
            return None
        limit, window = rate
        if self.variants.window == "sliding":
            return SlidingLog(limit, window, count_rejects=self.variants.rejects_count)
        return FixedWindow(
            limit, window, phase=self.variants.phase, count_rejects=self.variants.rejects_count
        )

    def _headers(self, charged: list[str], now: float, *, refused: bool) -> dict[str, str]:
        """Return the headers about limits: on a refusal with `Retry-After`."""
        wanted = self.variants.limit_headers
        if not self.limits.by_class or wanted == "none" or not (refused or wanted == "always"):
            return {}
        headers = self._budgets.headers(charged, now, self.account.epoch + now)
        if not refused:
            headers.pop("Retry-After", None)
        return headers

    def _foreign(self, now: float) -> int:
        """Return how many runs of others are in progress at `now`."""
        most = self.variants.foreign_runs
        return Random(f"{self.account.seed} {now // _FOREIGN_PERIOD}").randint(0, most) if most else 0

    def _take_place(self, ids: Mapping[str, str], now: float) -> None:
        """Raise `Refusal` (429) if the account has no place for another run."""
        most, account = self.limits.runs, self.account
        own, foreign = account.in_progress(), self._foreign(now)
        if most is None or len(own) + foreign < most or any(each.id == ids["id"] for each, _ in own):
            return
        self._refused.starts_beyond_three += len(own) >= most
        prefix = "run_" if self.variants.listed_ids == "run_" else ""
        run_ids = [*(run_id for _, run_id in own), *(account.new_id() for _ in range(foreign))]
        runs: list[Json] = [
            {"id": prefix + run_id, "status": "running", "updatedAt": None, "runKind": None}
            for run_id in run_ids
        ]
        wait = self.variants.concurrency_wait
        raise Refusal(
            429,
            "Too many runs are in progress",
            headers={} if wait is None else {"Retry-After": str(int(wait))},
            fields={
                "code": "run_concurrency_limit",
                "limit": most,
                **({"runs": runs} if self.variants.concurrency_list else {}),
            },
        )

    def _error(self, refusal: Refusal, now: float) -> Reply:
        """Return an error response, as the variants shape it."""
        headers = dict(refusal.headers)
        if self.variants.retry_after == "date" and "Retry-After" in headers:
            at = datetime.fromtimestamp(self.account.epoch + now + int(headers["Retry-After"]), UTC)
            headers["Retry-After"] = format_datetime(at, usegmt=True)
        how = "json" if refusal.fields else self.variants.errors
        if how == "html":
            body = f"<html><body>{refusal.status}</body></html>".encode()
            return Reply(status=refusal.status, body=body, content_type="text/html", headers=headers)
        if how == "empty":
            return Reply(status=refusal.status, body=b"", headers=headers)
        text = {} if how == "textless" else {"error": refusal.text}
        reply = json_reply(refusal.status, {**text, **refusal.fields})
        return Reply(status=reply.status, body=reply.body, headers=headers)


class _Start(msgspec.Struct):
    kind: str = ""


def _kind_of(request: Request) -> str:
    """Return the kind of run that a request starts; nothing for a malformed body, whose handler refuses it."""
    try:
        return read_body(request.body, _Start, may_be_empty=True).kind
    except Malformed:
        return ""
