"""The catalogue of an account (sources, templates), and the creation and opening of migrations."""

from collections.abc import Mapping, Sequence
from typing import cast, final

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.decode import convert
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import ColumnSpec, Link, checked_id, named
from asyncmig.customers.spec import check_external_id
from asyncmig.errors import InvalidInput, NotFound, UnexpectedReply
from asyncmig.migrations import routes
from asyncmig.migrations.knowledge import Knowledge
from asyncmig.migrations.migration import Difference, Migration
from asyncmig.migrations.runs import Run
from asyncmig.migrations.state import ClientState, explained, state_of
from asyncmig.migrations.wire import (
    MigrationBody,
    MigrationCreated,
    MigrationInfo,
    Pin,
    Sheet,
    Source,
    SourceReply,
    Sources,
    Template,
    Templates,
)

__all__ = ["Column", "Migrations"]

Column = ColumnSpec | Mapping[str, object]
"""A column of a template: a `ColumnSpec`, or a mapping with the API's own field names."""


@final
class Migrations:
    """The API generation "migrations", as `session.migrations`: one migration for each customer."""

    __slots__ = ("_context",)

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    async def aclose(self) -> None:
        """End the streams of all threads. The session calls this when it is left."""
        await self._context.kept(ClientState).aclose()

    # Sources

    async def sources(self) -> tuple[Source, ...]:
        """Return the account's sources; one request."""
        return (await self._context.caller.call(Call(endpoint=routes.LIST_SOURCES), Sources)).sources

    @checked_call
    async def source(self, wanted: str, /) -> Source:
        """Return the source with this name; one request. Raises `InvalidInput` that lists the known names."""
        return named("source", wanted, await self.sources())

    @checked_call
    async def update_source(
        self, source: str | Source, *, name: str | None = None, auth_url: str | None = None
    ) -> Source:
        """Change a source's name or sign-in address. A new name is a new address: use it from then on.

        A rename whose response was lost is confirmed under the new name.
        """
        old, changed = _name_of(source), {"name": name, "auth_url": auth_url}
        body = {field: checked_text(field, text) for field, text in changed.items() if text is not None}
        if not body:
            raise InvalidInput("name", None, "give a name or an auth_url")
        encoded = msgspec.json.encode(body)
        call = Call(endpoint=routes.UPDATE_SOURCE, ids={"source": old}, body=encoded)
        try:
            return (await self._context.caller.call(call, SourceReply)).source
        except NotFound as error:
            if not error.after_doubt or name is None:
                raise
            again = Call(endpoint=routes.UPDATE_SOURCE, ids={"source": name}, body=encoded)
            return (await self._context.caller.call(again, SourceReply)).source

    @checked_call
    async def pin(self, source: str | Source, run: str | Run | None) -> Pin:
        """Let new runs of a source start from the recipe of a run; None removes the pin.

        Raises `Conflict` for a run that never reached a preview.
        """
        run_id = run.id if isinstance(run, Run) else run
        body = {"run_id": None if run_id is None else checked_id("run", run_id, "runs")}
        call = Call(
            endpoint=routes.PIN_SOURCE, ids={"source": _name_of(source)}, body=msgspec.json.encode(body)
        )
        return await self._context.caller.call(call, Pin)

    @checked_call
    def knowledge(self, source: str | Source) -> Knowledge:
        """Return the handle of what the agent knows about a source, without a request.

        ```python
        await session.migrations.knowledge("HubSpot").update(lambda text: f"{text}\\nIds are not unique.")
        ```
        """
        ids = {"source": _name_of(source)}
        return Knowledge(self._context, routes.SOURCE_KNOWLEDGE, routes.WRITE_SOURCE_KNOWLEDGE, ids)

    # Templates

    async def templates(self) -> tuple[Template, ...]:
        """Return the account's active templates; one request."""
        return (await self._context.caller.call(Call(endpoint=routes.LIST_TEMPLATES), Templates)).templates

    @checked_call
    async def template(self, slug: str, /) -> Template:
        """Return the template with this slug; one request. Raises `NotFound`, also for an archived one."""
        return await self._context.caller.call(_read_template(slug), Template)

    @checked_call
    async def update_template(
        self,
        template: str | Template,
        *,
        name: str | None = None,
        description: str | None = None,
        grouping: str | None = None,
        columns: Sequence[Column] | None = None,
    ) -> Template:
        """Change a template. `columns` replaces the list of columns; each keeps the fields that are not given.

        ```python
        contacts = await session.migrations.template("contacts")
        await session.migrations.update_template(
            contacts, columns=[*contacts.columns, {"name": "Website", "desiredRule": "none"}]
        )
        ```

        The server would lose a link rule that is left out of a column. So the template is read first, and every field
        that a mapping leaves out, or that a `ColumnSpec` has unchanged, is sent as it is. To remove a field, give a
        mapping in which it is None. Columns are matched by name: a renamed one is a new one without
        rules, and one that is left out is deleted. An empty `description` or `grouping` removes it.

        Raises `InvalidInput` without a change, and `Conflict` while a run uses the template.
        """
        slug = template.id if isinstance(template, Template) else template
        body: dict[str, object] = {} if name is None else {"name": checked_text("name", name)}
        body |= {} if description is None else {"description": description or None}
        body |= {} if grouping is None else {"grouping": grouping or None}
        if columns is not None:
            body["columns"] = await self._merged(slug, columns)
        if not body:
            raise InvalidInput("template", slug, "give at least one change")
        call = Call(
            endpoint=routes.UPDATE_TEMPLATE, ids=_read_template(slug).ids, body=msgspec.json.encode(body)
        )
        return await self._context.caller.call(call, Template)

    async def _merged(self, slug: str, columns: Sequence[Column]) -> list[dict[str, object]]:
        """Return the columns to send: what is given, on top of what the template has."""
        names = [_column_name(column) for column in columns]
        if not names or len(set(names)) < len(names):
            raise InvalidInput("columns", names, "must not be empty, and no name may repeat")
        now = (await self._context.caller.reply(_read_template(slug))).json(_RawTemplate)
        known = {str(column.get("name")): column for column in now.columns}
        return [
            known.get(name, {}) | _changes(column, known.get(name, {}))
            for name, column in zip(names, columns, strict=True)
        ]

    # Migrations

    @checked_call
    async def create(
        self,
        *,
        name: str,
        source: str | Source | None = None,
        external_id: str | None = None,
        templates: Sequence[str | Template] | None = None,
        rank: float = 0.0,
    ) -> Migration:
        """Create a migration, or return the existing one with this external id.

        ```python
        migration = await session.migrations.create(name="Acme", source="HubSpot", external_id="acme-001")
        if not migration.is_new:
            print(migration.differences, await migration.files())
        ```

        - `source`: a name, or a `Source`; None for a migration without a source.
        - `external_id`: your own id of the customer. Without one, a create request whose response was lost can never
          be repeated.
        - `templates`: slugs or `Template`s; by default every active template.

        An existing migration may have another name or other templates than asked for: `differences` lists them.
        Its files may be there already.

        Raises `InvalidInput` before a request is spent; `Conflict` if the external id has another source;
        `BadRequest` for an unknown template; `UnknownOutcome` if a response was lost and the migration may exist.
        """
        unset = msgspec.UNSET
        body = MigrationBody(
            name=checked_text("name", name),
            source=unset if source is None else _name_of(source),
            external_id=unset if external_id is None else check_external_id(external_id),
            templates=unset if templates is None else _slugs(templates),
        )
        encoded = msgspec.json.encode(body)
        call = Call(
            endpoint=routes.CREATE_ANONYMOUS if external_id is None else routes.CREATE_MIGRATION,
            body=encoded,
            rank=rank,
            loggable_body=encoded.decode(),
        )
        try:
            status, created = await self._context.caller.call_with_status(call, MigrationCreated)
        except UnexpectedReply as error:
            raise await explained(self._context, error) from None
        info, is_new = created.migration, status == 201
        state_of(self._context, info.id).created(self._context.poller.now())
        return Migration(
            self._context,
            info.id,
            external_id=external_id,
            info=info,
            is_new=is_new,
            differences=() if is_new else _differences(body, info),
        )

    @checked_call
    def open(
        self, migration_id: str, *, external_id: str | None = None, sheets: Sequence[Sheet] = ()
    ) -> Migration:
        """Return the handle of a migration with a known id, without a request.

        `migration_id` may have spaces around it, or be a URL of the provider's app. `sheets`: the sheets from
        `create`, if you kept them. Raises `InvalidInput` if it is not an id.
        """
        checked = checked_id("migration_id", migration_id, "migrations")
        return Migration(self._context, checked, external_id=external_id, sheets=sheets)


class _RawTemplate(msgspec.Struct, frozen=True):
    columns: list[dict[str, object]]


def _read_template(slug: str) -> Call:
    return Call(endpoint=routes.READ_TEMPLATE, ids={"slug": checked_id("template", slug, "templates")})


def _column_name(column: object) -> str:
    if isinstance(column, ColumnSpec):
        return column.name
    if not isinstance(column, Mapping):
        raise InvalidInput("columns", column, "must be a ColumnSpec or a mapping")
    return checked_text("columns", cast("Mapping[str, object]", column).get("name"))


def _changes(column: Column, known: Mapping[str, object]) -> dict[str, object]:
    """Return the fields in which a column differs from what the template has, under the API's names."""
    if not isinstance(column, ColumnSpec):
        return dict(column)
    before = convert({**known, "name": column.name}, ColumnSpec)
    fields = {
        field.encode_name: getattr(column, field.name)
        for field in msgspec.structs.fields(ColumnSpec)
        if getattr(column, field.name) != getattr(before, field.name)
    }
    if column.links != before.links:
        fields["linkRule"] = [_rule(link) for link in column.links]
    return {"name": column.name, **fields}


def _rule(link: Link) -> dict[str, object]:
    """Return a link rule as the API writes it."""
    rule = cast("dict[str, object]", msgspec.to_builtins(link))
    if link.template_id is not None and link.template_id.startswith("["):
        rule["templateId"] = msgspec.json.decode(link.template_id)
    return {name: value for name, value in rule.items() if value is not None}


def _name_of(source: str | Source) -> str:
    return checked_text("source", source.name if isinstance(source, Source) else source)


def _slugs(templates: Sequence[str | Template]) -> tuple[str, ...]:
    if isinstance(templates, str) or not templates:
        raise InvalidInput("templates", templates, "must be a sequence of slugs, and not empty")
    given = [each.id if isinstance(each, Template) else each for each in templates]
    return tuple(dict.fromkeys(checked_id("templates", each, "templates") for each in given))


def _differences(body: MigrationBody, info: MigrationInfo) -> list[Difference]:
    """Return how an existing migration differs from the request. What the response does not say is not compared."""
    found: list[Difference] = []
    if info.name is not None and info.name != body.name:
        found.append(Difference(field="name", requested=body.name, found=info.name))
    source = None if body.source is msgspec.UNSET else body.source
    if (info.source or None) != source:
        found.append(Difference(field="source", requested=source, found=info.source or None))
    if info.templates is not None and body.templates is not msgspec.UNSET:
        slugs = tuple(sheet.id for sheet in info.templates)
        if set(slugs) != set(body.templates):
            found.append(Difference(field="templates", requested=body.templates, found=slugs))
    return found
