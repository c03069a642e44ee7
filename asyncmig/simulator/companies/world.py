"""One account of the API generation "companies": its sources, templates and companies, and its routes."""

import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import ClassVar, TypeVar, final

from asyncmig.simulator.companies.company import (
    Company,
    CompanyIn,
    ExportIn,
    ImportIn,
    Upload,
    UploadIn,
    Verdict,
    judge,
)
from asyncmig.simulator.companies.runs import DecisionIn, ExportRun, Fails, ImportRun, Parks, Script
from asyncmig.simulator.companies.tables import Schema, Table, to_csv
from asyncmig.simulator.companies.variants import Variants, page_of
from asyncmig.simulator.companies.webhooks import Workbook
from asyncmig.simulator.server.limits import RateLimit, SlidingLog
from asyncmig.simulator.server.messages import (
    PREFIX,
    Json,
    Refusal,
    Reply,
    Request,
    Routes,
    json_reply,
    read_body,
)
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.simulator.server.tables import Unreadable, zip_bytes
from asyncmig.simulator.server.world import BaseWorld, Ids

__all__ = ["World"]

R = TypeVar("R", ImportRun, ExportRun)
_NEVER = float("inf")


@final
class World(BaseWorld[Variants]):
    """One account of the Migration API, with its key and its rate limit.

    `limit`: makes the rate limit of an endpoint (or of the key, with `scope="key"`). `variants`: choices where the
    contract is silent. `customers`: scripts of single customers, by external id.
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
        super().__init__(key=key, seed=seed, pace=pace, variants=variants or Variants())
        self.sources: dict[str, str] = dict(sources)
        self.schemas: dict[str, Schema] = {schema.id: schema for schema in schemas}
        self.companies: dict[str, Company] = {}
        self._limit, self._scope = limit, scope
        self._limits: dict[str, RateLimit] = {}
        self._scripts = dict(customers or {})
        self._key_dies = _NEVER
        self._listings = 0
        self._last_shown: dict[str, tuple[Reply, int, bool]] = {}
        """By import: the last answer to a read, how many parks it shows, and whether it shows the end."""
        self._signed: dict[str, Upload] = {}
        """Uploads by the token of their signed URL."""

    def _respond(self, endpoint: str, request: Request, ids: Ids, now: float) -> Reply:
        if self._key_dies == _NEVER and self.variants.key_lives is not None:
            self._key_dies = now + self.variants.key_lives
        if now >= self._key_dies:
            raise Refusal(401, "Invalid API key")
        name = "*" if self._scope == "key" else endpoint
        if name not in self._limits:
            self._limits[name] = self._limit()
        if not self._limits[name].allow(now):
            raise Refusal(429, "Too many requests")
        return self._handlers[endpoint](self, request, ids, now)

    def _refuse(self, refusal: Refusal, now: float) -> Reply:
        if not self.variants.error_body:
            return Reply(status=refusal.status, body=b"")
        return json_reply(refusal.status, {"error": refusal.text})

    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host: a PUT to a signed URL, once."""
        upload = self._signed.get(request.path.removeprefix("/"))
        if "x-api-key" in request.headers:
            self.ledger.key_leaks += 1
            return json_reply(400, {"error": "The API key does not belong here"})
        if request.method != "PUT" or upload is None:
            return json_reply(403, {"error": "The signature is not valid"})
        if upload.content is not None or now > upload.expires_at:
            return json_reply(403, {"error": "The URL has expired"})
        if request.headers.get("content-type") != upload.content_type or len(request.body) != upload.size:
            return json_reply(403, {"error": "Content-Type or size is not what was signed"})
        upload.content = request.body
        return Reply(status=200, body=b"", content_type="text/plain")

    # What tests look at

    def verdict(self, now: float) -> Verdict:
        """Return the counts of what a client of this world did wrong."""
        return judge(self.companies.values(), self.ledger, now)

    def workbook(self, external_id: str) -> Workbook:
        """Return this customer's workbook, as webhooks deliver it. Raises `KeyError` if there is no such company."""
        for company in self.companies.values():
            if company.external_id == external_id:
                return company.workbook()
        raise KeyError(external_id)

    def parked(self, external_id: str) -> bool:
        """Return whether an import of this customer was ever parked."""
        return any(run.parks for run in self._runs_of(external_id))

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers of the last decision about this customer: label or text by the question's prompt."""
        decided = [run for run in self._runs_of(external_id) if run.decided]
        return decided[-1].answered() if decided else {}

    def _runs_of(self, external_id: str) -> list[ImportRun]:
        companies = [each for each in self.companies.values() if each.external_id == external_id]
        return [run for company in companies for run in company.runs.values()]

    # Sources, templates and companies

    def _list_sources(self, request: Request, ids: Ids, now: float) -> Reply:
        self._require_catalogue()
        shown = [{"id": each, "name": name, "logo_url": None} for each, name in self.sources.items()]
        return json_reply(200, {"sources": shown})

    def _list_templates(self, request: Request, ids: Ids, now: float) -> Reply:
        self._require_catalogue()
        return json_reply(200, {"templates": [schema.describe() for schema in self.schemas.values()]})

    def _require_catalogue(self) -> None:
        if not self.variants.catalogue:
            raise Refusal(404, "No such route")

    def _create_company(self, request: Request, ids: Ids, now: float) -> Reply:
        body = read_body(request.body, CompanyIn)
        if body.source not in self.sources:
            raise Refusal(404, "Source not found")
        taken = self._taken(body)
        if isinstance(taken, Company):
            return self._created(taken, status=200)
        if taken is not None:
            raise taken
        wanted = body.template_ids or list(self.schemas)
        if not all(each in self.schemas for each in wanted):
            raise Refusal(400, "template_ids names a template that does not exist")
        tables = [Table.of(self.schemas[each], sheet_id=self.new_id()) for each in wanted]
        company = Company(
            id=self.new_id(),
            name=body.name,
            source=body.source,
            external_id=body.external_id,
            tables=tables,
            connected=bool(body.connections),
        )
        self.companies[company.id] = company
        return self._created(company, status=201)

    def _taken(self, body: CompanyIn) -> Company | Refusal | None:
        """Return the reason against a new company, in the order in which this server checks."""
        found: list[Company | Refusal] = []
        for other in self.companies.values():
            if body.external_id is not None and other.external_id == body.external_id:
                taken = Refusal(409, "A company with this external_id exists")
                found.insert(0, other if self.variants.existing else taken)
            if (other.name, other.source) == (body.name, body.source):
                found.append(Refusal(400, "A company of this name exists for the source", is_avoidable=False))
        if self.variants.name_first and not self.variants.existing:
            found.reverse()
        return found[0] if found else None

    def _created(self, company: Company, *, status: int) -> Reply:
        connection = {"id": self.new_id(), "kind": "destination", "creds_configured": True}
        company.workbook_id = company.workbook_id or self.new_id()
        return self.shown(
            status,
            {
                "company": company.describe(),
                "workbook_id": company.workbook_id,
                "sheets": [
                    {"id": table.sheet_id, "name": table.name, "template_id": table.schema.id}
                    for table in company.tables
                    if table.schema is not None
                ],
                "connections": [connection] if company.connected else [],
                "magic_link_url": f"https://app.invalid/magic/{self.new_id()}",
            },
        )

    def _create_upload(self, request: Request, ids: Ids, now: float) -> Reply:
        company, body = self._company(ids, now), read_body(request.body, UploadIn)
        ref, token = self.new_id(), self.new_id()
        company.uploads[ref] = self._signed[token] = Upload(
            name=body.name,
            content_type=body.content_type,
            size=body.size,
            expires_at=now + self.variants.upload_lives,
        )
        return self.shown(
            self.variants.upload_status, {"upload_url": f"{self.storage_url}/{token}", "upload_ref": ref}
        )

    def _company(self, ids: Ids, now: float) -> Company:
        company = self.companies.get(ids["id"])
        if company is None:
            raise Refusal(404, "Company not found")
        for run in company.runs.values():
            run.status(now)  # inserts the rows of an import that has ended
        return company

    # Imports

    def _start_import(self, request: Request, ids: Ids, now: float) -> Reply:
        company, body = self._company(ids, now), read_body(request.body, ImportIn)
        key = f"i{body.idempotency_key}"
        payload = body.payload(refs_count=self.variants.refs_count)
        known = company.known(key, payload)
        if known is not None:
            return self._started(ids, company.runs[known], now, is_replay=True)
        most = self.variants.inline_rows
        if body.rows and most is not None and len(body.rows) > most:
            text = f"rows has more than {most} rows"
            raise Refusal(self.variants.inline_status, text, is_avoidable=False)
        if any(not run.ended for run in company.runs.values()):
            raise Refusal(409, "Another import is running")
        run = self.new_import(company, body, now)
        company.runs[run.id] = run
        company.keys[key] = (payload, run.id)
        return self._started(ids, run, now)

    def new_import(self, company: Company, body: ImportIn, now: float) -> ImportRun:
        """Return a new import, which is not among the runs of the company yet. Raises `Refusal`."""
        if bool(body.files) == bool(body.rows):
            raise Refusal(400, "Give either files or rows")
        company.take_uploads(body, once=self.variants.upload_refs == "one")
        failure: str | None = None
        try:
            inserted = company.rows_of(body, self.new_id)
        except Unreadable as error:
            failure, inserted = str(error), []
        script = self._scripts.get(company.external_id or "")
        if isinstance(script, Fails) and (script.times is None or len(company.runs) < script.times):
            failure = script.error
        return ImportRun(
            id=self.new_id(),
            created_at=now,
            tables=company.tables,
            failure=failure,
            pace=self.pace,
            rng=self.rng,
            inserted=inserted,
            variants=self.variants,
            parks_with=script if isinstance(script, Parks) else None,
            digest=hashlib.sha256(repr([rows for _, rows in inserted]).encode()).hexdigest(),
        )

    def _started(
        self,
        ids: Ids,
        run: ImportRun | ExportRun,
        now: float,
        *,
        is_replay: bool = False,
        code: int = 201,
    ) -> Reply:
        """Respond to the start of a run, to its repeat under the same key, or to a decision."""
        kind = "imports" if isinstance(run, ImportRun) else "exports"
        path = f"{PREFIX}/companies/{ids['id']}/{kind}/{run.id}"
        is_foreign = self.variants.poll_url == "foreign"
        is_queued = is_replay and self.variants.replay_shows == "queued"
        return self.shown(
            self.variants.replay_status if is_replay else code,
            {
                "run_id": run.id,
                "status": "queued" if is_queued else run.status(now),
                "poll_url": f"https://elsewhere.invalid{path}" if is_foreign else path,
            },
        )

    def _read_import(self, request: Request, ids: Ids, now: float) -> Reply:
        run = self._run(self._company(ids, now).runs, ids, now)
        if run.id not in self._last_shown or self.rng.random() >= self.variants.stale:
            self._last_shown[run.id] = self.shown(200, run.describe(now)), run.parks, run.ended
        reply, parks, has_ended = self._last_shown[run.id]
        self.ledger.note_reading(run.id, parks, now, ended_at=run.settles_at if has_ended else None)
        return reply

    def _run(self, runs: Mapping[str, R], ids: Ids, now: float) -> R:
        run = runs.get(ids["run_id"])
        if run is None or now < run.created_at + self.variants.lag:
            raise Refusal(404, "Run not found")
        return run

    def _list_imports(self, request: Request, ids: Ids, now: float) -> Reply:
        runs = list(reversed(self._company(ids, now).runs.values()))
        if request.query.get("status") != "active":
            self._listings += 1
            shown: list[Json] = [{"run_id": run.id, **run.describe(now)} for run in runs]
            return self.shown(200, page_of(shown, request.query, self.variants, number=self._listings))
        for run in runs:
            described = run.describe(now)
            if not run.ended:
                active = self.variants.active
                named = described if active == "anonymous" else {"run_id": run.id, **described}
                return self.shown(200, {"run": named} if active == "wrapped" else named)
        return json_reply(200, {"run": None})

    def _decide(self, request: Request, ids: Ids, now: float) -> Reply:
        run = self._run(self._company(ids, now).runs, ids, now)
        body = read_body(request.body, DecisionIn)
        if run.status(now) != "needs_attention":
            raise Refusal(409, "The run is not waiting for a decision")
        run.decide(body.decision == "approve", {answer.question_id: answer for answer in body.answers}, now)
        self.ledger.decisions.append((run.id, run.parks))
        return self._started(ids, run, now, code=200)

    # Exports and downloads

    def _start_export(self, request: Request, ids: Ids, now: float) -> Reply:
        company, body = self._company(ids, now), read_body(request.body, ExportIn)
        key, payload = f"e{body.idempotency_key}", body.payload()
        known = company.known(key, payload)
        if known is not None:
            return self._started(ids, company.exports[known], now, is_replay=True)
        refuses = {"refused": 400, "conflict": 409}.get(self.variants.unconnected_export)
        if refuses is not None and not company.connected:
            raise Refusal(refuses, "No destination is connected", is_avoidable=False)
        wanted = body.selection.template_ids if body.selection else None
        run = ExportRun(
            id=self.new_id(),
            created_at=now,
            mode=body.mode,
            tables=[
                table
                for table in company.tables
                if wanted is None or (table.schema is not None and table.schema.id in wanted)
            ],
            connected=company.connected,
            rng=Random(f"{self.seed} {company.name} {len(company.exports)}"),  # in any order the same losses
            variants=self.variants,
        )
        company.exports[run.id] = run
        company.keys[key] = (payload, run.id)
        return self._started(ids, run, now)

    def _read_export(self, request: Request, ids: Ids, now: float) -> Reply:
        run = self._run(self._company(ids, now).exports, ids, now)
        return self.shown(200, run.describe(now))

    def _download(self, request: Request, ids: Ids, now: float) -> Reply:
        tables = self._company(ids, now).tables
        only_valid = request.query.get("filter", "valid") != "all"
        sheet_id = request.query.get("sheet_id")
        if sheet_id is None:
            if self.variants.zip_status != 200:
                raise Refusal(self.variants.zip_status, "There is no archive of all sheets")
            files, seen = dict[str, bytes](), Counter[str]()
            for table in tables:
                seen[table.name] += 1
                number = f" ({seen[table.name]})" if seen[table.name] > 1 else ""
                files[f"{table.name}{number}.csv"] = to_csv(tables, table, only_valid=only_valid)
            return Reply(status=200, body=zip_bytes(files), content_type="application/zip")
        sheet = next((each for each in tables if each.sheet_id == sheet_id), None)
        if sheet is None:
            raise Refusal(404, "Sheet not found")
        body, headers = to_csv(tables, sheet, only_valid=only_valid), dict[str, str]()
        if self.variants.gzip and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, mtime=0), "gzip"
        return Reply(status=200, body=body, content_type="text/csv", headers=headers)

    _handlers: ClassVar = {
        "GET /sources": _list_sources,
        "GET /templates": _list_templates,
        "POST /companies": _create_company,
        "POST /companies/{id}/uploads": _create_upload,
        "POST /companies/{id}/imports": _start_import,
        "GET /companies/{id}/imports": _list_imports,
        "GET /companies/{id}/imports/{run_id}": _read_import,
        "POST /companies/{id}/imports/{run_id}/decisions": _decide,
        "POST /companies/{id}/exports": _start_export,
        "GET /companies/{id}/exports/{run_id}": _read_export,
        "GET /companies/{id}/export.csv": _download,
    }
    """The handler of each endpoint: a method that takes a request, the ids in its path, and `now`."""
    routes: Routes = Routes(_handlers)
