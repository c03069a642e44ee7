"""One company on the server: its sheets, uploads and runs, the idempotency keys, and what an import inserts.

The structs `...In` are the request bodies of the contract.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import final

import msgspec

from asyncmig.simulator.companies.runs import ExportRun, ImportRun
from asyncmig.simulator.companies.tables import Schema, Table
from asyncmig.simulator.companies.webhooks import Workbook
from asyncmig.simulator.server.messages import Json, Refusal
from asyncmig.simulator.server.tables import Unreadable, read_csv, to_table

__all__ = ["Company", "CompanyIn", "ImportIn", "Upload", "UploadIn", "take_in"]


class CompanyIn(msgspec.Struct, kw_only=True):
    name: str
    source: str
    external_id: str | None = None
    template_ids: list[str] | None = None
    connections: dict[str, msgspec.Raw] | None = None


class UploadIn(msgspec.Struct, kw_only=True):
    name: str
    content_type: str
    size: int


class FileIn(msgspec.Struct, kw_only=True):
    name: str
    upload_ref: str


class ImportIn(msgspec.Struct, kw_only=True):
    idempotency_key: str
    files: list[FileIn] | None = None
    rows: list[dict[str, str | int | float | bool | None]] | None = None

    def payload(self) -> bytes:
        """Return the payload that an idempotency key identifies."""
        return msgspec.json.encode([self.files, self.rows], order="deterministic")


@final
@dataclass(slots=True, kw_only=True)
class Upload:
    """One signed URL, and the bytes that came to it."""

    name: str
    content_type: str
    size: int
    expires_at: float
    content: bytes | None = None


@final
@dataclass(slots=True, kw_only=True)
class Company:
    """The state of one company."""

    id: str
    name: str
    source: str
    external_id: str | None
    schemas: list[Schema]
    tables: list[Table]
    sheets: list[Json] = field(default_factory=list[Json])
    connected: bool = False
    workbook_id: str = ""
    uploads: dict[str, Upload] = field(default_factory=dict[str, Upload])
    runs: dict[str, ImportRun] = field(default_factory=dict[str, ImportRun])
    exports: dict[str, ExportRun] = field(default_factory=dict[str, ExportRun])
    keys: dict[str, tuple[bytes, str]] = field(default_factory=dict[str, tuple[bytes, str]])
    """Idempotency keys of imports and exports (under `i` and `e`): payload and run id."""

    @classmethod
    def made(cls, body: CompanyIn, schemas: Iterable[Schema], new_id: Callable[[], str]) -> "Company":
        """Return a new company with an empty sheet for each template."""
        schemas = list(schemas)
        tables = [
            Table(sheet_id=new_id(), name=s.name, schema=s, header=[c.name for c in s.columns])
            for s in schemas
        ]
        return cls(
            id=new_id(),
            name=body.name,
            source=body.source,
            external_id=body.external_id,
            schemas=schemas,
            tables=tables,
            sheets=[
                {"id": table.sheet_id, "name": table.name, "template_id": schema.id}
                for table, schema in zip(tables, schemas, strict=True)
            ],
            connected=bool(body.connections),
        )

    def describe(self) -> Json:
        """Return the company as the response to its creation."""
        return {
            "id": self.id,
            "name": self.name,
            "external_id": self.external_id,
            "created_at": "2026-01-01T00:00:00Z",
        }

    def known(self, key: str, payload: bytes) -> str | None:
        """Return the run of an idempotency key; refuse another payload."""
        known, run_id = self.keys.get(key, (payload, None))
        if known != payload:
            raise Refusal(409, "The idempotency key was used with another payload")
        return run_id

    def workbook(self) -> Workbook:
        """Return the company's workbook, as webhooks deliver it."""
        return Workbook(
            id=self.workbook_id, company_name=self.name, external_id=self.external_id, tables=self.tables
        )


def take_in(
    company: Company, body: ImportIn, new_id: Callable[[], str]
) -> list[tuple[Table, list[list[str]]]]:
    """Return the rows of `body` by table, with a new table of the company for files that fit no template.

    Raises `Unreadable` for bytes that are not CSV or never arrived, and `Refusal` for an unknown upload.
    """
    return [
        _place(company, header, records, name, new_id) for header, records, name in _contents(company, body)
    ]


def _place(
    company: Company, header: list[str], records: list[list[str]], name: str, new_id: Callable[[], str]
) -> tuple[Table, list[list[str]]]:
    schema, header, rows = to_table(header, records, company.schemas)
    for table in company.tables:
        if schema is not None and table.schema is schema:
            return table, rows
    table = Table(sheet_id=new_id(), name=name.rsplit(".", 1)[0], schema=None, header=header)
    company.tables.append(table)
    return table, rows


def _contents(company: Company, body: ImportIn) -> Iterator[tuple[list[str], list[list[str]], str]]:
    """Yield header, records and name of each file of an import, or of its rows."""
    if body.rows:
        header = list(dict.fromkeys(name for row in body.rows for name in row))
        yield (
            header,
            [["" if row.get(n) is None else str(row[n]) for n in header] for row in body.rows],
            "Rows",
        )
    for file in body.files or ():
        upload = company.uploads.get(file.upload_ref)
        if upload is None:
            raise Refusal(400, "upload_ref is not known")
        if upload.content is None:
            raise Unreadable(f"{upload.name}: its bytes never arrived")
        yield *read_csv(upload.name, upload.content), upload.name
