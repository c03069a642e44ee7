"""The server's state: it takes a request and `now`, and returns a reply. It knows the contract and no client."""

from collections.abc import Callable, Iterable, Mapping
from typing import final

from asyncmig.simulator.companies.account import HANDLERS, ROUTES, Account
from asyncmig.simulator.companies.judge import Verdict, judge
from asyncmig.simulator.companies.runs import ImportRun
from asyncmig.simulator.companies.scripts import Script
from asyncmig.simulator.companies.tables import Schema
from asyncmig.simulator.companies.variants import Variants
from asyncmig.simulator.companies.webhooks import Workbook
from asyncmig.simulator.server.ledger import Entry
from asyncmig.simulator.server.limits import RateLimit, SlidingLog
from asyncmig.simulator.server.messages import (
    Malformed,
    Refusal,
    Reply,
    Request,
    json_reply,
)
from asyncmig.simulator.server.settings import RunDurations

__all__ = ["World", "endpoint_of"]

endpoint_of: Callable[[Request], str] = ROUTES.endpoint_of


@final
class World(Account):
    """One account of the Migration API, with its key and its rate limit.

    `limit`: makes the rate limit of an endpoint (or of the key, with `scope="key"`). `storage_url`: the host of
    signed upload URLs, set by the code that serves the world. `variants`: choices where the contract is silent.
    `customers`: scripts of single customers, by external id.
    """

    def __init__(
        self,
        *,
        key: str,
        sources: Mapping[str, str],
        schemas: Iterable[Schema],
        seed: int = 0,
        limit: Callable[[], RateLimit] = lambda: SlidingLog(100),
        scope: str = "endpoint",
        pace: RunDurations | None = None,
        variants: Variants | None = None,
        customers: Mapping[str, Script] | None = None,
    ) -> None:
        super().__init__(
            sources=sources,
            schemas=schemas,
            seed=seed,
            pace=pace or RunDurations(),
            variants=variants or Variants(),
            customers=dict(customers or {}),
        )
        self.key = key
        self.base_url = "https://api.invalid/api/v1"
        self._limit, self._scope = limit, scope
        self._limits: dict[str, RateLimit] = {}
        self._key_dies: float | None = None

    def endpoint_of(self, request: Request) -> str:
        """Return method and route template of a request; `PUT storage` for an upload."""
        return endpoint_of(request)

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        found = ROUTES.find(request)
        if found is None:
            return json_reply(404, {"error": "No such route"})
        template, ids = found
        reply = self._answer(request, f"{request.method} {template}", ids, now)
        self.ledger.note(
            Entry(at=now, method=request.method, template=template, ids=ids, status=reply.status)
        )
        if reply.status == 200 and template.endswith("/imports/{run_id}"):
            self._note_reading(ids, now)
        return reply

    def _answer(self, request: Request, endpoint: str, ids: Mapping[str, str], now: float) -> Reply:
        if self._key_dies is None and self.variants.key_lives is not None:
            self._key_dies = now + self.variants.key_lives
        if request.headers.get("x-api-key") != self.key or now >= (self._key_dies or float("inf")):
            return json_reply(401, {"error": "Invalid API key"})
        name = "*" if self._scope == "key" else endpoint
        if name not in self._limits:
            self._limits[name] = self._limit()
        if not self._limits[name].allow(now):
            return json_reply(429, {"error": "Too many requests"})
        try:
            return HANDLERS[endpoint](self, request, ids, now)
        except Malformed as malformed:
            status, text = 400, str(malformed)
        except Refusal as refusal:
            status, text = refusal.status, refusal.text
        return (
            json_reply(status, {"error": text})
            if self.variants.error_body
            else Reply(status=status, body=b"")
        )

    def _note_reading(self, ids: Mapping[str, str], now: float) -> None:
        run = self._companies[ids["id"]].runs.get(ids["run_id"])
        if run is None:
            return
        self.ledger.note_reading(run.id, run.parks, now)
        if run.ended:
            self.ledger.note_end(run.id, ended_at=run.settles_at, read_at=now)

    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host: a PUT to a signed URL, once."""
        if "x-api-key" in request.headers:
            self.ledger.key_leaks += 1
            return json_reply(400, {"error": "The API key does not belong here"})
        company_id, ref = self._pending.get(request.path.removeprefix("/"), ("", ""))
        if request.method != "PUT" or not ref:
            return json_reply(403, {"error": "The signature is not valid"})
        upload = self._companies[company_id].uploads[ref]
        if upload.content is not None or now > upload.expires_at:
            return json_reply(403, {"error": "The URL has expired"})
        if request.headers.get("content-type") != upload.content_type or len(request.body) != upload.size:
            return json_reply(403, {"error": "Content-Type or size is not what was signed"})
        upload.content = request.body
        return Reply(status=200, body=b"", content_type="text/plain")

    # What tests look at

    def verdict(self, now: float) -> Verdict:
        """Return the counts of what a client of this world did wrong."""
        return judge(self._companies.values(), self.ledger, now)

    def workbook(self, external_id: str) -> Workbook:
        """Return this customer's workbook, as webhooks deliver it. Raises `KeyError` if there is no such company."""
        for company in self._companies.values():
            if company.external_id == external_id:
                return company.workbook()
        raise KeyError(external_id)

    def parked(self, external_id: str) -> bool:
        """Return whether an import of this customer was ever parked."""
        return any(run.attention is not None for run in self._runs_of(external_id))

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers of the last decision about this customer: label or text by the question's prompt."""
        decided = [run for run in self._runs_of(external_id) if run.decided]
        return decided[-1].answered() if decided else {}

    def _runs_of(self, external_id: str) -> list[ImportRun]:
        companies = [each for each in self._companies.values() if each.external_id == external_id]
        return [run for company in companies for run in company.runs.values()]
