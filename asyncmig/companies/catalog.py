"""The catalogue of an account, and its companies: provision one, or open one by its id."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, final

import msgspec

from asyncmig._io.caller import Call
from asyncmig._io.engine import Engine
from asyncmig.companies import routes
from asyncmig.companies.downloads import Downloaded, RowFilter, download
from asyncmig.companies.exports import Exports
from asyncmig.companies.imports import Imports
from asyncmig.companies.uploads import Uploaded, upload
from asyncmig.companies.wire import (
    CompanyBody,
    CompanyCreated,
    ImportReport,
    Sheet,
    Source,
    Sources,
    Template,
    Templates,
)
from asyncmig.errors import InvalidInput

__all__ = ["Companies", "Company", "check_external_id", "find"]

_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_Named = TypeVar("_Named", Source, Template)


@final
class Companies:
    """The first generation of the API: one company for each customer's migration."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def sources(self) -> tuple[Source, ...]:
        """Return the account's sources. Raises `NotFound` where the server does not list them: use ids."""
        return (await self._engine.caller.call(Call(endpoint=routes.LIST_SOURCES), Sources)).sources

    async def templates(self) -> tuple[Template, ...]:
        """Return the account's templates. Raises `NotFound` where the server does not list them: use ids."""
        return (await self._engine.caller.call(Call(endpoint=routes.LIST_TEMPLATES), Templates)).templates

    async def create(
        self,
        *,
        name: str,
        source: str,
        external_id: str | None = None,
        template_ids: Sequence[str] | None = None,
        connections: Mapping[str, object] | None = None,
        rank: float = 0.0,
    ) -> "Company":
        """Provision a company of the source with id `source`.

        `external_id`: your own id of the customer, unique in the account. `template_ids`: all if not given.
        `connections`: secrets of the destination, shown in no repr or error.

        Raises `InvalidInput` before a request is spent; `Conflict` if the external id is taken, `BadRequest` if the
        name is; `UnknownOutcome` if an answer was lost and nobody can tell whether the company is ours.
        """
        body = _checked(name, source, external_id, template_ids, connections)
        call = Call(
            endpoint=routes.CREATE_ANONYMOUS if external_id is None else routes.CREATE_COMPANY,
            body=msgspec.json.encode(body),
            rank=rank,
            sent=msgspec.json.encode(msgspec.structs.replace(body, connections=msgspec.UNSET)).decode(),
        )
        created = await self._engine.caller.call(call, CompanyCreated)
        return Company(
            self._engine,
            created.company.id,
            external_id=external_id,
            sheets=created.sheets,
            magic_link_url=created.magic_link_url,
            created=True,
        )

    def open(
        self, company_id: str, *, external_id: str | None = None, sheets: Sequence[Sheet] = ()
    ) -> "Company":
        """Return the handle of a company that is known by its id; no request is made."""
        if not company_id:
            raise InvalidInput("company_id", company_id, "is empty")
        return Company(self._engine, company_id, external_id=external_id, sheets=sheets)


@final
class Company:
    """One customer's migration: its ids, its sheets, and what can be done with them."""

    __slots__ = ("_created", "_engine", "exports", "external_id", "id", "imports", "magic_link_url", "sheets")

    def __init__(
        self,
        engine: Engine,
        company_id: str,
        *,
        external_id: str | None = None,
        sheets: Sequence[Sheet] = (),
        magic_link_url: str | None = None,
        created: bool = False,
    ) -> None:
        self._engine, self._created = engine, created
        self.id: str = company_id
        self.external_id: str | None = external_id
        self.sheets: tuple[Sheet, ...] = tuple(sheets)
        self.magic_link_url: str | None = magic_link_url
        self.imports: Imports = Imports(engine, company_id)
        self.exports: Exports = Exports(engine, company_id)

    def __repr__(self) -> str:
        return f"<Company {self.id}: external_id={self.external_id!r}, {len(self.sheets)} sheets>"

    async def upload(
        self,
        source: Path | bytes,
        *,
        name: str | None = None,
        content_type: str | None = None,
        rank: float = 0.0,
    ) -> Uploaded:
        """Upload a file for an import; the content type goes by its name if not given.

        Raises `InvalidInput` for a missing or empty file, or one that changes while it is read.
        """
        return await upload(self._engine, self.id, source, name=name, content_type=content_type, rank=rank)

    async def download(
        self,
        *,
        to: Path | str,
        filter: RowFilter = "valid",  # noqa: A002 - the API's own word
        report: ImportReport | None = None,
        rank: float = 0.0,
    ) -> list[Downloaded]:
        """Bring every sheet to `to/SHEET.csv`; a file is whole, or not there at all.

        `filter="valid"` drops every row that has one bad cell, `"all"` keeps them. `report`: of the only import
        that the company has had (known without saying, if this handle created the company and started the import);
        what came is compared with it, and a download that was cut short is repeated. Raises `TruncatedDownload` when
        they still disagree at the last attempt.
        """
        if filter not in ("valid", "all"):
            raise InvalidInput("filter", filter, "is neither 'valid' nor 'all'")
        return await download(
            self._engine,
            self.id,
            self.sheets,
            Path(to),
            row_filter=filter,
            report=report or self._only_report(),
            rank=rank,
        )

    def _only_report(self) -> ImportReport | None:
        """Return the report of the only import, where there can have been no other."""
        if not self._created or len(self.imports.started) != 1:
            return None
        state = self.imports.started[0].state
        return state.report if state is not None and state.status == "completed" else None


def check_external_id(external_id: str) -> str:
    """Return `external_id`, or raise `InvalidInput` if the API would refuse it."""
    if not _EXTERNAL_ID.fullmatch(external_id):
        raise InvalidInput("external_id", external_id, "must be 1 to 255 of A-Z, a-z, 0-9, _ and -")
    return external_id


def _checked(
    name: str,
    source: str,
    external_id: str | None,
    template_ids: Sequence[str] | None,
    connections: Mapping[str, object] | None,
) -> CompanyBody:
    if not name.strip():
        raise InvalidInput("name", name, "is empty")
    if not source.strip():
        raise InvalidInput("source", source, "is empty")
    if template_ids is not None and (
        isinstance(template_ids, str) or not all(template_ids) or not template_ids
    ):
        raise InvalidInput("template_ids", template_ids, "must be a sequence of ids, none of them empty")
    return CompanyBody(
        name=name,
        source=source,
        external_id=msgspec.UNSET if external_id is None else check_external_id(external_id),
        template_ids=msgspec.UNSET if template_ids is None else tuple(template_ids),
        connections=msgspec.UNSET if connections is None else dict(connections),
    )


def find(field: str, wanted: str, among: Sequence[_Named]) -> str:
    """Return the id of the source or template that `wanted` names, by id or by name.

    Raises `InvalidInput` naming `field` if there is none, or more than one of that name.
    """
    if any(each.id == wanted for each in among):
        return wanted
    ids = [each.id for each in among if each.name == wanted]
    if len(ids) == 1:
        return ids[0]
    if ids:
        raise InvalidInput(field, wanted, f"is the name of {len(ids)} of them: use an id of {ids}")
    raise InvalidInput(field, wanted, f"is not known; there are {sorted(each.name for each in among)}")
