"""The server's state: a request and `now` go in, a reply comes out. It knows the contract and no client."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import final

from asyncmig.simulator.ledger import Entry, Ledger
from asyncmig.simulator.limits import RateLimit, SlidingLog
from asyncmig.simulator.runs import ImportRun, Json, Pace
from asyncmig.simulator.tables import Schema, Table, Unreadable, find_flaws, read_csv, to_table

__all__ = ["Refusal", "Reply", "Request", "World"]

_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_UPLOAD_LIVES = 3600.0
_PREFIX = "/api/v1"
_COMPANY = f"{_PREFIX}/companies/(?P<company>[^/]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What came in; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes out."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(slots=True, kw_only=True)
class _Upload:
    name: str
    content_type: str
    size: int
    expires_at: float
    content: bytes | None = None


@dataclass(slots=True, kw_only=True)
class _Company:
    id: str
    name: str
    source: str
    external_id: str | None
    schemas: list[Schema]
    tables: list[Table]
    uploads: dict[str, _Upload] = field(default_factory=dict[str, _Upload])
    runs: dict[str, ImportRun] = field(default_factory=dict[str, ImportRun])
    keys: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Idempotency keys: payload and run id."""


Handler = Callable[["World", Request, Mapping[str, str], float], Reply]


def _json(status: int, value: object) -> Reply:
    return Reply(status=status, body=json.dumps(value).encode())


@final
class World:
    """One account of the Migration API.

    `limit`: makes the rate limit of an endpoint (or of the key, with `scope="key"`). `storage_url` is where signed
    upload URLs point to; whoever serves the world sets it.
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
        pace: Pace | None = None,
    ) -> None:
        self.key = key
        self.sources = dict(sources)
        self.schemas = {schema.id: schema for schema in schemas}
        self.rng = Random(seed)
        self.ledger = Ledger()
        self.storage_url = "https://storage.invalid"
        self._limit, self._scope = limit, scope
        self._limits: dict[str, RateLimit] = {}
        self._pace = pace or Pace()
        self._companies: dict[str, _Company] = {}
        self._pending: dict[str, tuple[str, str]] = {}
        """Signed tokens: company and upload reference."""

    def handle(self, request: Request, now: float) -> Reply:
        """Answer a request to the API's host."""
        for method, pattern, template, handler in _ROUTES:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return self._noted(request, template, match.groupdict(), handler, now)
        return _json(404, {"error": "No such route"})

    def _noted(
        self, request: Request, template: str, ids: Mapping[str, str], handler: Handler, now: float
    ) -> Reply:
        reply = self._answer(request, template, ids, handler, now)
        self.ledger.note(
            Entry(at=now, method=request.method, template=template, ids=ids, status=reply.status)
        )
        if reply.status == 200 and template.endswith("/imports/{run_id}"):
            self._note_reading(ids, now)
        return reply

    def _answer(
        self, request: Request, template: str, ids: Mapping[str, str], handler: Handler, now: float
    ) -> Reply:
        if request.headers.get("x-api-key") != self.key:
            return _json(401, {"error": "Invalid API key"})
        name = "*" if self._scope == "key" else f"{request.method} {template}"
        if name not in self._limits:
            self._limits[name] = self._limit()
        if not self._limits[name].allow(now):
            return _json(429, {"error": "Too many requests"})
        try:
            return handler(self, request, ids, now)
        except Refusal as refusal:
            return _json(refusal.status, {"error": refusal.text})

    def _note_reading(self, ids: Mapping[str, str], now: float) -> None:
        run = self._companies[ids["company"]].runs[ids["run"]]
        if run.ended:
            self.ledger.note_end(run.id, ended_at=run.settles_at, read_at=now)

    def storage(self, request: Request, now: float) -> Reply:
        """Answer a request to the storage's host: a PUT to a signed URL, once."""
        if "x-api-key" in request.headers:
            self.ledger.key_leaks += 1
            return _json(400, {"error": "The API key does not belong here"})
        company_id, ref = self._pending.get(request.path.removeprefix("/"), ("", ""))
        if request.method != "PUT" or not ref:
            return _json(403, {"error": "The signature is not valid"})
        upload = self._companies[company_id].uploads[ref]
        if upload.content is not None or now > upload.expires_at:
            return _json(403, {"error": "The URL has expired"})
        if request.headers.get("content-type") != upload.content_type or len(request.body) != upload.size:
            return _json(403, {"error": "Content-Type or size is not what was signed"})
        upload.content = request.body
        return Reply(status=200, body=b"", content_type="text/plain")

    # Routes

    def list_sources(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        return _json(
            200,
            {
                "sources": [
                    {"id": each, "name": name, "logo_url": None} for each, name in self.sources.items()
                ]
            },
        )

    def list_templates(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        return _json(200, {"templates": [_describe(schema) for schema in self.schemas.values()]})

    def create_company(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        body = _body(request)
        name, source, external_id = _text(body, "name"), _text(body, "source"), body.get("external_id")
        if source not in self.sources:
            raise Refusal(404, "Source not found")
        if external_id is not None and not (
            isinstance(external_id, str) and _EXTERNAL_ID.fullmatch(external_id)
        ):
            raise Refusal(400, "external_id is malformed")
        for other in self._companies.values():
            if external_id is not None and other.external_id == external_id:
                raise Refusal(409, "A company with this external_id exists")
            if (other.name, other.source) == (name, source):
                raise Refusal(400, "A company of this name exists for the source")
        wanted = body.get("template_ids") or list(self.schemas)
        if not isinstance(wanted, list) or not all(each in self.schemas for each in wanted):
            raise Refusal(400, "template_ids names a template that does not exist")
        schemas = [self.schemas[each] for each in wanted]
        tables = [
            Table(sheet_id=self._id(), name=s.name, schema=s, header=[c.name for c in s.columns])
            for s in schemas
        ]
        company = _Company(
            id=self._id(),
            name=name,
            source=source,
            external_id=external_id if isinstance(external_id, str) else None,
            schemas=schemas,
            tables=tables,
        )
        self._companies[company.id] = company
        sheets = [
            {"id": table.sheet_id, "name": table.name, "template_id": schema.id}
            for table, schema in zip(tables, schemas, strict=True)
        ]
        shown = {
            "id": company.id,
            "name": name,
            "external_id": external_id,
            "created_at": "2026-01-01T00:00:00Z",
        }
        return _json(
            201,
            {
                "company": shown,
                "workbook_id": self._id(),
                "sheets": sheets,
                "connections": [],
                "magic_link_url": f"https://app.invalid/magic/{self._id()}",
            },
        )

    def create_upload(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        company, body = self._company(ids), _body(request)
        size = body.get("size")
        if not isinstance(size, int) or size <= 0:
            raise Refusal(400, "size must be a positive number of bytes")
        ref, token = self._id(), self._id()
        company.uploads[ref] = _Upload(
            name=_text(body, "name"),
            content_type=_text(body, "content_type"),
            size=size,
            expires_at=now + _UPLOAD_LIVES,
        )
        self._pending[token] = (company.id, ref)
        return _json(201, {"upload_url": f"{self.storage_url}/{token}", "upload_ref": ref})

    def start_import(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        company, body = self._company(ids), _body(request)
        key = _text(body, "idempotency_key")
        payload = json.dumps({name: body.get(name) for name in ("files", "rows")}, sort_keys=True)
        if key in company.keys:
            known, run_id = company.keys[key]
            if known != payload:
                raise Refusal(409, "The idempotency key was used with another payload")
            return self._started(company, company.runs[run_id], now, status=200)
        if any(run.status(now) and not run.ended for run in company.runs.values()):
            raise Refusal(409, "Another import is running")
        run = self._new_run(company, body, now)
        company.runs[run.id] = run
        company.keys[key] = (payload, run.id)
        return self._started(company, run, now, status=201)

    def _new_run(self, company: _Company, body: Json, now: float) -> ImportRun:
        if bool(body.get("files")) == bool(body.get("rows")):
            raise Refusal(400, "Give either files or rows")
        failure, inserted = None, []
        try:
            for header, records, name in _contents(company, body):
                inserted.append(self._place(company, header, records, name))
        except Unreadable as error:
            failure, inserted = str(error), []
        return ImportRun(
            id=self._id(),
            created_at=now,
            tables=company.tables,
            failure=failure,
            inserted=inserted,
            pace=self._pace,
            rng=self.rng,
        )

    def _place(
        self, company: _Company, header: list[str], records: list[list[str]], name: str
    ) -> tuple[Table, list[list[str]]]:
        schema, header, rows = to_table(header, records, company.schemas)
        for table in company.tables:
            if schema is not None and table.schema is schema:
                return table, rows
        table = Table(sheet_id=self._id(), name=name.rsplit(".", 1)[0], schema=None, header=header)
        company.tables.append(table)
        return table, rows

    def _started(self, company: _Company, run: ImportRun, now: float, *, status: int) -> Reply:
        path = f"{_PREFIX}/companies/{company.id}/imports/{run.id}"
        return _json(status, {"run_id": run.id, "status": run.status(now), "poll_url": path})

    def read_import(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        return _json(200, self._run(ids).describe(now))

    def list_imports(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        runs = list(reversed(self._company(ids).runs.values()))
        described = [{"run_id": run.id, **run.describe(now)} for run in runs]
        if request.query.get("status") == "active":
            active = [shown for shown, run in zip(described, runs, strict=True) if not run.ended]
            return _json(200, active[0] if active else {"run": None})
        return _json(200, {"imports": described})

    def decide(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        run, body = self._run(ids), _body(request)
        decision = body.get("decision")
        if decision not in ("approve", "reject"):
            raise Refusal(400, "decision must be approve or reject")
        if run.status(now) != "needs_attention":
            raise Refusal(409, "The run is not waiting for a decision")
        answers = body.get("answers") or []
        if not isinstance(answers, list):
            raise Refusal(400, "answers must be a list")
        run.decide(decision == "approve", {answer["question_id"]: answer for answer in answers}, now)
        return self._started(self._company(ids), run, now, status=200)

    def download(self, request: Request, ids: Mapping[str, str], now: float) -> Reply:
        company = self._company(ids)
        only_valid = request.query.get("filter", "valid") != "all"
        sheet_id = request.query.get("sheet_id")
        if sheet_id is None:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
                for table in company.tables:
                    content.writestr(f"{table.name}.csv", _render(company, table, only_valid))
            return Reply(status=200, body=archive.getvalue(), content_type="application/zip")
        for table in company.tables:
            if table.sheet_id == sheet_id:
                return Reply(status=200, body=_render(company, table, only_valid), content_type="text/csv")
        raise Refusal(404, "Sheet not found")

    # What routes share

    def _company(self, ids: Mapping[str, str]) -> _Company:
        company = self._companies.get(ids["company"])
        if company is None:
            raise Refusal(404, "Company not found")
        return company

    def _run(self, ids: Mapping[str, str]) -> ImportRun:
        run = self._company(ids).runs.get(ids["run"])
        if run is None:
            raise Refusal(404, "Run not found")
        return run

    def _id(self) -> str:
        text = f"{self.rng.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def parked(self, external_id: str) -> bool:
        """Return whether an import of this customer has ever waited for a decision."""
        companies = [each for each in self._companies.values() if each.external_id == external_id]
        return any(run.attention is not None for company in companies for run in company.runs.values())


def _describe(schema: Schema) -> Json:
    return {
        "id": schema.id,
        "name": schema.name,
        "description": None,
        "columns": [
            {
                "name": column.name,
                "description": "",
                "required": column.required,
                "unique": column.unique,
                "desiredRule": "strict" if column.pattern else "link" if column.link else "none",
                "strictRule": column.pattern,
                "linkRule": [{"templateId": column.link[0], "columnName": column.link[1]}]
                if column.link
                else None,
            }
            for column in schema.columns
        ],
    }


def _body(request: Request) -> Json:
    try:
        body = json.loads(request.body)
    except ValueError:
        raise Refusal(400, "The body is not JSON") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body is not an object")
    return body


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"{name} is required")
    return value


def _contents(company: _Company, body: Json) -> Iterable[tuple[list[str], list[list[str]], str]]:
    """Yield header, records and name of each file of an import, or of its rows."""
    rows, files = body.get("rows"), body.get("files")
    if isinstance(rows, list):
        header = list(dict.fromkeys(name for row in rows for name in row))
        yield header, [[str(row.get(name, "")) for name in header] for row in rows], "Rows"
    for file in files if isinstance(files, list) else ():
        upload = company.uploads.get(file.get("upload_ref"))
        if upload is None:
            raise Refusal(400, "upload_ref is not known")
        if upload.content is None:
            raise Unreadable(f"{upload.name}: its bytes never arrived")
        yield *read_csv(upload.name, upload.content), upload.name


def _render(company: _Company, table: Table, only_valid: bool) -> bytes:
    bad: set[int] = set()
    if only_valid:
        bad = {n for flaw in find_flaws(company.tables) if flaw.sheet_id == table.sheet_id for n in flaw.rows}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.header)
    writer.writerows(row for n, row in enumerate(table.rows) if n not in bad)
    return text.getvalue().encode()


_RUN = f"{_COMPANY}/imports/(?P<run>[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], str, Handler]] = [
    (method, re.compile(pattern), template, handler)
    for method, pattern, template, handler in (
        ("GET", f"{_RUN}", "/companies/{id}/imports/{run_id}", World.read_import),
        ("GET", f"{_COMPANY}/imports", "/companies/{id}/imports", World.list_imports),
        ("GET", f"{_COMPANY}/export[.]csv", "/companies/{id}/export.csv", World.download),
        ("POST", f"{_PREFIX}/companies", "/companies", World.create_company),
        ("POST", f"{_COMPANY}/uploads", "/companies/{id}/uploads", World.create_upload),
        ("POST", f"{_COMPANY}/imports", "/companies/{id}/imports", World.start_import),
        ("POST", f"{_RUN}/decisions", "/companies/{id}/imports/{run_id}/decisions", World.decide),
        ("GET", f"{_PREFIX}/sources", "/sources", World.list_sources),
        ("GET", f"{_PREFIX}/templates", "/templates", World.list_templates),
    )
]
