"""One company as the server keeps it: its sheets, uploads and runs, and the keys that they were asked under."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import final

from asyncmig.simulator.bodies import CompanyIn
from asyncmig.simulator.exports import ExportRun
from asyncmig.simulator.messages import Json, Refusal
from asyncmig.simulator.runs import ImportRun
from asyncmig.simulator.tables import Schema, Table
from asyncmig.simulator.webhooks import Workbook

__all__ = ["Company", "Upload"]


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
    """One company, by what requests have made of it."""

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
        """Return the company as its creation shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "external_id": self.external_id,
            "created_at": "2026-01-01T00:00:00Z",
        }

    def known(self, key: str, payload: bytes) -> str | None:
        """Return the run that an idempotency key stands for; refuse another payload."""
        known, run_id = self.keys.get(key, (payload, None))
        if known != payload:
            raise Refusal(409, "The idempotency key was used with another payload")
        return run_id

    def workbook(self) -> Workbook:
        """Return what webhooks deliver of it."""
        return Workbook(
            id=self.workbook_id, company_name=self.name, external_id=self.external_id, tables=self.tables
        )
