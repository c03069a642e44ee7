"""The state of one account, and its routes: what the API does with a request."""

import gzip
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from asyncmig.simulator.companies.company import Company, CompanyIn, ImportIn, Upload, UploadIn, take_in
from asyncmig.simulator.companies.runs import DecisionIn, ExportIn, ExportRun, ImportRun
from asyncmig.simulator.companies.scripts import Fails, Parks, Script
from asyncmig.simulator.companies.tables import Schema, to_csv, to_zip
from asyncmig.simulator.companies.variants import Variants
from asyncmig.simulator.server.ledger import Ledger
from asyncmig.simulator.server.messages import (
    PREFIX,
    Json,
    Refusal,
    Reply,
    Request,
    Routes,
    drifted,
    json_reply,
    new_uuid,
    read_body,
)
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.simulator.server.tables import Unreadable

__all__ = ["HANDLERS", "ROUTES", "Account"]

_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")

Handler = Callable[["Account", Request, Mapping[str, str], float], Reply]


class Account:
    """Sources, templates and companies; and the variants, durations and random numbers that routes use."""

    def __init__(
        self,
        *,
        sources: Mapping[str, str],
        schemas: Iterable[Schema],
        seed: int,
        pace: RunDurations,
        variants: Variants,
        customers: Mapping[str, Script],
    ) -> None:
        self.sources: dict[str, str] = dict(sources)
        self.schemas: dict[str, Schema] = {schema.id: schema for schema in schemas}
        self.rng: Random = Random(seed)
        self.ledger: Ledger = Ledger()
        self.storage_url = "https://storage.invalid"
        self.variants: Variants = variants
        self._seed, self._pace, self._scripts = seed, pace, customers
        self._listings = 0
        self._last_shown: dict[str, Reply] = {}
        self._companies: dict[str, Company] = {}
        self._pending: dict[str, tuple[str, str]] = {}
        """Signed tokens: company and upload reference."""

    def list_sources(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /sources`."""
        self._require(self.variants.catalogue)
        shown = [{"id": each, "name": name, "logo_url": None} for each, name in self.sources.items()]
        return json_reply(200, {"sources": shown})

    def list_templates(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `GET /templates`."""
        self._require(self.variants.catalogue)
        return json_reply(200, {"templates": [schema.describe() for schema in self.schemas.values()]})

    def create_company(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies`."""
        body = read_body(request.body, CompanyIn)
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
        company, body = self._company(ids), read_body(request.body, UploadIn)
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
        company, body = self._company(ids), read_body(request.body, ImportIn)
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
                200, _page(shown_runs, request.query, how=how, field=field, number=self._listings)
            )
        for run in runs:
            shown = run.describe(now)
            if not run.ended:
                named = shown if self.variants.active == "anonymous" else {"run_id": run.id, **shown}
                return self._shown(200, {"run": named} if self.variants.active == "wrapped" else named)
        return json_reply(200, {"run": None})

    def decide(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/imports/{run_id}/decisions`."""
        run, body = self._run(ids), read_body(request.body, DecisionIn)
        if body.decision not in ("approve", "reject"):
            raise Refusal(400, "decision must be approve or reject")
        if run.status(now) != "needs_attention":
            raise Refusal(409, "The run is not waiting for a decision")
        self.ledger.note_decision(run.id, run.parks)
        run.decide(body.decision == "approve", {answer.question_id: answer for answer in body.answers}, now)
        return self._started(self._company(ids), "imports", run.id, run.status(now), code=200)

    def start_export(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        """Respond to `POST /companies/{id}/exports`."""
        company, body = self._company(ids), read_body(request.body, ExportIn)
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
        run = self._company(ids).exports.get(ids["run_id"])
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
            body = to_zip(company.tables, only_valid=only_valid)
            return Reply(status=200, body=body, content_type="application/zip")
        table = next((each for each in company.tables if each.sheet_id == sheet_id), None)
        if table is None:
            raise Refusal(404, "Sheet not found")
        body, headers = to_csv(company.tables, table, only_valid=only_valid), dict[str, str]()
        if self.variants.gzip and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, mtime=0), "gzip"
        return Reply(status=200, body=body, content_type="text/csv", headers=headers)

    # What routes share

    def _company(self, ids: Mapping[str, str]) -> Company:
        company = self._companies.get(ids["id"])
        if company is None:
            raise Refusal(404, "Company not found")
        return company

    def _run(self, ids: Mapping[str, str]) -> ImportRun:
        run = self._company(ids).runs.get(ids["run_id"])
        if run is None:
            raise Refusal(404, "Run not found")
        return run

    def _require(self, offered: bool) -> None:
        if not offered:
            raise Refusal(404, "No such route")

    def _shown(self, status: int, value: object) -> Reply:
        return json_reply(status, drifted(value) if self.variants.drift else value)

    def _id(self) -> str:
        return new_uuid(self.rng)


HANDLERS: Mapping[str, Handler] = {
    "GET /companies/{id}/imports/{run_id}": Account.read_import,
    "GET /companies/{id}/imports": Account.list_imports,
    "GET /companies/{id}/export.csv": Account.download,
    "POST /companies": Account.create_company,
    "POST /companies/{id}/uploads": Account.create_upload,
    "POST /companies/{id}/imports": Account.start_import,
    "POST /companies/{id}/imports/{run_id}/decisions": Account.decide,
    "POST /companies/{id}/exports": Account.start_export,
    "GET /companies/{id}/exports/{run_id}": Account.read_export,
    "GET /sources": Account.list_sources,
    "GET /templates": Account.list_templates,
}
"""The handler of each endpoint."""
ROUTES = Routes(HANDLERS)


def _page(items: Sequence[Json], query: Mapping[str, str], *, how: str, field: str, number: int) -> object:
    """Return one page of `items`, or all: `how` and `field` as in `Variants`; `number` counts the requests."""
    if how == "none":
        return {field: items} if field else items
    asked = query.get("cursor") or query.get("offset") or query.get("page") or ""
    position = int(asked) - (how == "page") if asked.isdigit() else 0
    field = field or "imports"
    return {field: items[position : position + 1], **_next_page(position, len(items), how, number)}


def _next_page(position: int, count: int, how: str, number: int) -> Json:
    """Return what the page says of the one after it."""
    last = position + 1 >= count
    match how:
        case "cursor":
            return {"next_cursor": None if last else str(position + 1)}
        case "url":
            address = f"https://elsewhere.invalid/api/v1/imports?cursor={position + 1}&limit=1"
            return {"links": {"next": None if last else address}}
        case "page":
            return {"pagination": {"page": position + 1, "total_pages": count}}
        case "offset":
            return {"offset": position, "limit": 1, "total": count}
        case "repeats":
            return {"next": f"again-{number}", "has_more": True}
        case _:
            return {"has_more": not last}
