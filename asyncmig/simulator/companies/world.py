"""The server's state: it takes a request and `now`, and returns a reply. It knows the contract and no client."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import final

from asyncmig.simulator.companies.bodies import (
    CompanyIn,
    DecisionIn,
    ExportIn,
    ImportIn,
    UploadIn,
)
from asyncmig.simulator.companies.company import Company, Upload, take_in
from asyncmig.simulator.companies.judge import judge
from asyncmig.simulator.companies.replies import (
    archive_reply,
    csv_reply,
    describe_sources,
    describe_templates,
    paged,
)
from asyncmig.simulator.companies.routes import PREFIX, endpoint_of, find_route
from asyncmig.simulator.companies.runs import ExportRun, ImportRun
from asyncmig.simulator.companies.scripts import Fails, Parks, Script
from asyncmig.simulator.companies.tables import Schema
from asyncmig.simulator.companies.variants import Variants
from asyncmig.simulator.companies.webhooks import Workbook
from asyncmig.simulator.server.bodies import Malformed, read
from asyncmig.simulator.server.durations import RunDurations
from asyncmig.simulator.server.ledger import Entry, Ledger, Verdict
from asyncmig.simulator.server.limits import RateLimit, SlidingLog
from asyncmig.simulator.server.messages import Json, Refusal, Reply, Request, drifted, json_reply
from asyncmig.simulator.server.tables import Unreadable

__all__ = ["World"]

_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")

Handler = Callable[["World", Request, Mapping[str, str], float], Reply]


@final
class World:
    """One account of the Migration API.

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
        self.key = key
        self._scripts: dict[str, Script] = dict(customers or {})
        self.sources: dict[str, str] = dict(sources)
        self.schemas: dict[str, Schema] = {schema.id: schema for schema in schemas}
        self._seed = seed
        self.rng: Random = Random(seed)
        self.ledger: Ledger = Ledger()
        self.base_url = "https://api.invalid/api/v1"
        self.storage_url = "https://storage.invalid"
        self._limit, self._scope = limit, scope
        self._limits: dict[str, RateLimit] = {}
        self._pace = pace or RunDurations()
        self.variants: Variants = variants or Variants()
        self._key_dies: float | None = None
        self._listings = 0
        self._last_shown: dict[str, Reply] = {}
        self._companies: dict[str, Company] = {}
        self._pending: dict[str, tuple[str, str]] = {}
        """Signed tokens: company and upload reference."""

    def endpoint_of(self, request: Request) -> str:
        """Return method and route template of a request; `PUT storage` for an upload."""
        return endpoint_of(request)

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        found = find_route(request)
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
            return _HANDLERS[endpoint](self, request, ids, now)
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
        run = self._companies[ids["company"]].runs.get(ids["run"])
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

    # Routes

    def list_sources(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /sources`."""
        self._require(self.variants.catalogue)
        return json_reply(200, {"sources": describe_sources(self.sources)})

    def list_templates(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /templates`."""
        self._require(self.variants.catalogue)
        return json_reply(200, {"templates": describe_templates(self.schemas.values())})

    def create_company(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies`."""
        body = read(request.body, CompanyIn)
        if body.source not in self.sources:
            raise Refusal(404, "Source not found")
        if body.external_id is not None and not _EXTERNAL_ID.fullmatch(body.external_id):
            raise Refusal(400, "external_id is malformed")
        taken = self._taken(body)
        if isinstance(taken, Company):
            return self._created(taken, status=200)
        if taken is not None:
            raise taken
        wanted = body.template_ids or list(self.schemas)
        if not all(each in self.schemas for each in wanted):
            raise Refusal(400, "template_ids names a template that does not exist")
        company = Company.made(body, [self.schemas[each] for each in wanted], self._id)
        self._companies[company.id] = company
        return self._created(company, status=201)

    def _taken(self, body: CompanyIn) -> Company | Refusal | None:
        """Return the reason against a new company, in the order in which this server checks."""
        found: list[Company | Refusal] = []
        for other in self._companies.values():
            if body.external_id is not None and other.external_id == body.external_id:
                known = (
                    other
                    if self.variants.existing
                    else Refusal(409, "A company with this external_id exists")
                )
                found.insert(0, known)
            if (other.name, other.source) == (body.name, body.source):
                found.append(Refusal(400, "A company of this name exists for the source"))
        if self.variants.name_first and not self.variants.existing:
            found.reverse()
        return found[0] if found else None

    def _created(self, company: Company, *, status: int) -> Reply:
        connection = {"id": self._id(), "kind": "destination", "creds_configured": True}
        company.workbook_id = company.workbook_id or self._id()
        return self._shown(
            status,
            {
                "company": company.describe(),
                "workbook_id": company.workbook_id,
                "sheets": company.sheets,
                "connections": [connection] if company.connected else [],
                "magic_link_url": f"https://app.invalid/magic/{self._id()}",
            },
        )

    def create_upload(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/uploads`."""
        company, body = self._company(ids), read(request.body, UploadIn)
        if body.size <= 0:
            raise Refusal(400, "size must be a positive number of bytes")
        ref, token = self._id(), self._id()
        company.uploads[ref] = Upload(
            name=body.name,
            content_type=body.content_type,
            size=body.size,
            expires_at=now + self.variants.upload_lives,
        )
        self._pending[token] = (company.id, ref)
        return self._shown(201, {"upload_url": f"{self.storage_url}/{token}", "upload_ref": ref})

    def start_import(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/imports`."""
        company, body = self._company(ids), read(request.body, ImportIn)
        known = company.known(f"i{body.idempotency_key}", body.payload())
        if known is not None:
            present = company.runs[known].status(now)
            return self._started(company, "imports", known, present, replay=True)
        most = self.variants.inline_rows
        if body.rows and most is not None and len(body.rows) > most:
            raise Refusal(self.variants.inline_status, f"rows has more than {most} rows")
        if any(run.status(now) and not run.ended for run in company.runs.values()):
            raise Refusal(409, "Another import is running")
        run = self._new_run(company, body, now)
        company.runs[run.id] = run
        company.keys[f"i{body.idempotency_key}"] = (body.payload(), run.id)
        return self._started(company, "imports", run.id, run.status(now))

    def _new_run(self, company: Company, body: ImportIn, now: float) -> ImportRun:
        if bool(body.files) == bool(body.rows):
            raise Refusal(400, "Give either files or rows")
        failure: str | None = None
        try:
            inserted = take_in(company, body, self._id)
        except Unreadable as error:
            failure, inserted = str(error), []
        script = self._scripts.get(company.external_id or "")
        if isinstance(script, Fails) and (script.times is None or len(company.runs) < script.times):
            failure = script.error
        return ImportRun(
            id=self._id(),
            created_at=now,
            tables=company.tables,
            failure=failure,
            pace=self._pace,
            rng=self.rng,
            inserted=inserted,
            variants=self.variants,
            parks_with=script if isinstance(script, Parks) else None,
            digest=hashlib.sha256(repr([rows for _, rows in inserted]).encode()).hexdigest(),
        )

    def _started(
        self,
        company: Company,
        kind: str,
        run_id: str,
        status: str,
        *,
        replay: bool = False,
        code: int | None = None,
    ) -> Reply:
        path = f"{PREFIX}/companies/{company.id}/{kind}/{run_id}"
        foreign = self.variants.poll_url == "foreign"
        queued = replay and self.variants.replay_shows == "queued"
        return self._shown(
            code or (self.variants.replay_status if replay else 201),
            {
                "run_id": run_id,
                "status": "queued" if queued else status,
                "poll_url": f"https://elsewhere.invalid{path}" if foreign else path,
            },
        )

    def read_import(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /companies/{id}/imports/{run_id}`."""
        run = self._run(ids)
        if now < run.created_at + self.variants.lag:
            raise Refusal(404, "Run not found")
        if run.id in self._last_shown and self.rng.random() < self.variants.stale:
            return self._last_shown[run.id]
        reply = self._last_shown[run.id] = self._shown(200, run.describe(now))
        return reply

    def list_imports(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /companies/{id}/imports`."""
        runs = list(reversed(self._company(ids).runs.values()))
        if request.query.get("status") != "active":
            self._listings += 1
            shown_runs: list[Json] = [{"run_id": run.id, **run.describe(now)} for run in runs]
            how, field = self.variants.pages, self.variants.list_field
            return self._shown(
                200, paged(shown_runs, request.query, how=how, field=field, number=self._listings)
            )
        for run in runs:
            shown = run.describe(now)
            if not run.ended:
                named = shown if self.variants.active == "anonymous" else {"run_id": run.id, **shown}
                return self._shown(200, {"run": named} if self.variants.active == "wrapped" else named)
        return json_reply(200, {"run": None})

    def decide(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/imports/{run_id}/decisions`."""
        run, body = self._run(ids), read(request.body, DecisionIn)
        if body.decision not in ("approve", "reject"):
            raise Refusal(400, "decision must be approve or reject")
        if run.status(now) != "needs_attention":
            raise Refusal(409, "The run is not waiting for a decision")
        self.ledger.note_decision(run.id, run.parks)
        run.decide(body.decision == "approve", {answer.question_id: answer for answer in body.answers}, now)
        return self._started(self._company(ids), "imports", run.id, run.status(now), code=200)

    def start_export(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/exports`."""
        company, body = self._company(ids), read(request.body, ExportIn)
        known = company.known(f"e{body.idempotency_key}", body.payload())
        if known is not None:
            return self._started(company, "exports", known, company.exports[known].status(now), replay=True)
        if body.mode not in ("full", "canary"):
            raise Refusal(400, "mode must be full or canary")
        refuses = {"refused": 400, "conflict": 409}.get(self.variants.unconnected_export)
        if refuses is not None and not company.connected:
            raise Refusal(refuses, "No destination is connected")
        wanted = body.selection.template_ids if body.selection else None
        tables = [
            t for t in company.tables if wanted is None or (t.schema is not None and t.schema.id in wanted)
        ]
        run = ExportRun(
            id=self._id(),
            created_at=now,
            mode=body.mode,
            tables=tables,
            connected=company.connected,
            rng=Random(f"{self._seed} {company.name} {len(company.exports)}"),  # in any order the same losses
            variants=self.variants,
        )
        company.exports[run.id] = run
        company.keys[f"e{body.idempotency_key}"] = (body.payload(), run.id)
        return self._started(company, "exports", run.id, run.status(now))

    def read_export(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /companies/{id}/exports/{run_id}`."""
        run = self._company(ids).exports.get(ids["run"])
        if run is None:
            raise Refusal(404, "Run not found")
        return self._shown(200, run.describe(now))

    def download(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /companies/{id}/export.csv`."""
        company = self._company(ids)
        only_valid = request.query.get("filter", "valid") != "all"
        sheet_id = request.query.get("sheet_id")
        if sheet_id is None:
            if self.variants.zip_status != 200:
                raise Refusal(self.variants.zip_status, "There is no archive of all sheets")
            return archive_reply(company.tables, only_valid=only_valid)
        compressed = self.variants.gzip and "gzip" in request.headers.get("accept-encoding", "")
        for table in company.tables:
            if table.sheet_id == sheet_id:
                return csv_reply(company.tables, table, only_valid=only_valid, compressed=compressed)
        raise Refusal(404, "Sheet not found")

    # What routes share

    def _company(self, ids: Mapping[str, str]) -> Company:
        company = self._companies.get(ids["company"])
        if company is None:
            raise Refusal(404, "Company not found")
        return company

    def _run(self, ids: Mapping[str, str]) -> ImportRun:
        run = self._company(ids).runs.get(ids["run"])
        if run is None:
            raise Refusal(404, "Run not found")
        return run

    def _require(self, offered: bool) -> None:
        if not offered:
            raise Refusal(404, "No such route")

    def _shown(self, status: int, value: object) -> Reply:
        return json_reply(status, drifted(value) if self.variants.drift else value)

    def _id(self) -> str:
        text = f"{self.rng.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

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


_HANDLERS: dict[str, Handler] = {
    "GET /companies/{id}/imports/{run_id}": World.read_import,
    "GET /companies/{id}/imports": World.list_imports,
    "GET /companies/{id}/export.csv": World.download,
    "POST /companies": World.create_company,
    "POST /companies/{id}/uploads": World.create_upload,
    "POST /companies/{id}/imports": World.start_import,
    "POST /companies/{id}/imports/{run_id}/decisions": World.decide,
    "POST /companies/{id}/exports": World.start_export,
    "GET /companies/{id}/exports/{run_id}": World.read_export,
    "GET /sources": World.list_sources,
    "GET /templates": World.list_templates,
}
