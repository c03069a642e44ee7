"""The client of one account: list its sources and templates, create companies, and open them by id."""

from collections.abc import Sequence
from typing import TypeVar, final

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.endpoint import Endpoint
from asyncmig._core.secrets import secrets_of
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.company import Company
from asyncmig.companies.exports import checked_connections
from asyncmig.companies.wire import (
    CompanyBody,
    CompanyCreated,
    CompanyInfo,
    Sheet,
    Source,
    Sources,
    Template,
    Templates,
)
from asyncmig.customers.catalog import checked_id, named, source_id
from asyncmig.customers.spec import Connections, check_external_id, checked_templates
from asyncmig.errors import NotFound, UnknownOutcome

__all__ = ["Companies"]

_Listed = TypeVar("_Listed", Sources, Templates)


@final
class Companies:
    """The API generation "companies", as `session.companies`: one company for each customer."""

    __slots__ = ("_context",)

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    async def sources(self) -> tuple[Source, ...]:
        """Return the account's sources; one request.

        ```python
        for source in await session.companies.sources():
            print(source.id, source.name)
        ```

        Raises `NotFound` if the server does not list sources: then use ids.
        """
        return (await self._listed(routes.LIST_SOURCES, Sources)).sources

    async def templates(self) -> tuple[Template, ...]:
        """Return the account's templates; one request.

        ```python
        required = {
            template.name: [column.name for column in template.columns if column.required]
            for template in await session.companies.templates()
        }
        ```

        Raises `NotFound` if the server does not list templates: then use ids.
        """
        return (await self._listed(routes.LIST_TEMPLATES, Templates)).templates

    @checked_call
    async def source(self, wanted: str, /) -> Source:
        """Return the source with this name or id; one request.

        ```python
        hubspot = await session.companies.source("HubSpot")
        beta = await session.companies.create(name="Beta", source=hubspot.id, external_id="beta")
        ```

        Raises `InvalidInput` that lists the known names if no source has the name, or the ids if several have it;
        `NotFound` if the server does not list its sources: then pass the id itself to `create`.
        """
        return named("source", wanted, await self.sources())

    @checked_call
    async def template(self, wanted: str, /) -> Template:
        """Return the template with this name or id; one request.

        ```python
        contacts = await session.companies.template("Contacts")
        gamma = await session.companies.create(name="Gamma", source=source.id, template_ids=[contacts.id])
        ```

        Raises the same errors as `source`.
        """
        return named("template", wanted, await self.templates())

    @checked_call
    async def create(
        self,
        *,
        name: str,
        source: str | Source,
        external_id: str | None = None,
        template_ids: Sequence[str | Template] | None = None,
        connections: Connections | None = None,
        rank: float = 0.0,
    ) -> Company:
        """Create a company of a source.

        ```python
        delta = await session.companies.create(
            name="Delta",
            source=source.id,
            external_id="delta-001",
            connections={"destination": {"base_url": "https://api.crm.example", "auth": {"token": "..."}}},
        )
        ```

        - `source`: an id, or a `Source`.
        - `external_id`: your own id of the customer, unique in the account. Without one, a create request is never
          repeated after its response was lost.
        - `template_ids`: ids or `Template`s; by default all templates.
        - `connections`: secrets of the destination. No repr, error, log or journal contains them.
        - `rank`: among waiting requests, the one with the lowest rank is sent first.

        If the server responds with a company that already has the external id, that company is returned and
        `is_new` is False.

        Raises `InvalidInput` before a request is spent; `Conflict` if the external id is taken; `BadRequest` if
        the name is taken; `UnknownOutcome` if a response was lost and the company may or may not exist, or if the
        server responds with a company that has another external id.
        """
        given = None if connections is None else checked_connections(connections)
        body = CompanyBody(
            name=checked_text("name", name),
            source=source_id("source", source),
            external_id=msgspec.UNSET if external_id is None else check_external_id(external_id),
            template_ids=msgspec.UNSET if template_ids is None else checked_templates(template_ids),
            connections=msgspec.UNSET if given is None else given,
        )
        loggable = msgspec.structs.replace(body, connections=msgspec.UNSET)
        call = Call(
            endpoint=routes.CREATE_ANONYMOUS if external_id is None else routes.CREATE_COMPANY,
            body=msgspec.json.encode(body),
            rank=rank,
            loggable_body=msgspec.json.encode(loggable).decode(),
            secrets=() if given is None else tuple(secrets_of(given["destination"]["auth"])),
        )
        status, created = await self._context.caller.call_with_status(call, CompanyCreated)
        _check_owner(call, created.company, external_id)
        return Company(
            self._context, created.company.id, external_id=external_id, created=created, is_new=status == 201
        )

    @checked_call
    def open(
        self, company_id: str, *, external_id: str | None = None, sheets: Sequence[Sheet] = ()
    ) -> Company:
        """Return the handle of a company with a known id, without a request.

        ```python
        active = await session.companies.open(company.id).imports.recover()
        ```

        `company_id` may have spaces around it, or be a URL of the dashboard. `sheets`: the sheets from `create`,
        if you kept them. Raises `InvalidInput` if it is not an id.
        """
        checked = checked_id("company_id", company_id, "companies")
        return Company(self._context, checked, external_id=external_id, sheets=sheets)

    async def _listed(self, endpoint: Endpoint, kind: type[_Listed]) -> _Listed:
        try:
            return await self._context.caller.call(Call(endpoint=endpoint), kind)
        except NotFound as error:
            advice = f"this server does not {endpoint.name}: names cannot be looked up, so use ids"
            text = f"{error.text} ({advice})" if error.text else advice
            raise error.with_text(text) from error


def _check_owner(call: Call, company: CompanyInfo, external_id: str | None) -> None:
    """Raise `UnknownOutcome` for the company of another customer: an import would mix the data of both."""
    other = company.external_id
    if external_id is not None and other and other.casefold() != external_id.casefold():
        reason = f"the response names the company {company.id}, whose external id is {other!r}"
        endpoint = call.endpoint
        raise UnknownOutcome(endpoint.method, endpoint.template, reason, call.loggable_body, endpoint.advice)
