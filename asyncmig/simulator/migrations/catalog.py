"""Routes of sources, templates, and knowledge."""

from datetime import datetime
from typing import Annotated, cast

import msgspec

from asyncmig.simulator.migrations.account import Account, Ids, Knowledge, Source
from asyncmig.simulator.migrations.tables import Column, Schema
from asyncmig.simulator.server.messages import Filled, Json, Refusal, Reply, Request, read_body

__all__ = [
    "list_sources",
    "list_templates",
    "migration_knowledge",
    "pin_source",
    "read_template",
    "source_knowledge",
    "update_source",
    "update_template",
    "write_migration_knowledge",
    "write_source_knowledge",
]


class _SourceIn(msgspec.Struct, kw_only=True):
    name: Filled | None = None
    auth_url: str | None = None


class _PinIn(msgspec.Struct, kw_only=True):
    run_id: str | None


class _KnowledgeIn(msgspec.Struct, kw_only=True):
    knowledge: str | None
    if_unmodified_since: str | None = None


class _ColumnIn(msgspec.Struct, kw_only=True):
    name: Filled
    description: str | None = None
    required: bool = False
    unique: bool = False
    desiredRule: str | None = None
    strictRule: str | None = None
    schema: Json | msgspec.UnsetType | None = msgspec.UNSET
    linkRule: list[Json] | None = None


class _TemplateIn(msgspec.Struct, kw_only=True):
    name: Filled | None = None
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    grouping: str | msgspec.UnsetType | None = msgspec.UNSET
    columns: Annotated[list[_ColumnIn], msgspec.Meta(min_length=1)] | None = None


def _source(account: Account, ids: Ids) -> Source:
    source = account.sources.get(ids["source"])
    if source is None:
        raise Refusal(404, "Source not found")
    return source


def list_sources(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /sources`."""
    return account.shown(200, {"sources": [{"name": name, "logo_url": None} for name in account.sources]})


def update_source(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `PATCH /sources/{source}`."""
    source, body = _source(account, ids), read_body(request.body, _SourceIn)
    if body.name is None and body.auth_url is None:
        raise Refusal(400, "Give a name or an auth_url")
    if body.name is not None and body.name != source.name:
        if body.name in account.sources:
            raise Refusal(409, "A source of this name exists")
        account.sources[body.name] = account.sources.pop(source.name)
        for migration in account.migrations.values():
            migration.source = body.name if migration.source == source.name else migration.source
        source.name = body.name
    source.auth_url = body.auth_url or source.auth_url
    shown = {"name": source.name, "logo_url": None, "auth_url": source.auth_url}
    return account.shown(200, {"source": shown})


def pin_source(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /sources/{source}/pin`."""
    source, body = _source(account, ids), read_body(request.body, _PinIn)
    if body.run_id is not None:
        runs = {run.id: run for each in account.migrations.values() for run in each.runs}
        run = runs.get(body.run_id)
        if run is None:
            raise Refusal(404, "Run not found")
        if not any((phase.outcome or {}).get("ok") for phase in run.phases):
            raise Refusal(409, "The run reached no preview")
    source.pinned = body.run_id
    return account.shown(200, {"source": source.name, "pinned_recipe_run_id": source.pinned})


def _describe_knowledge(account: Account, knowledge: Knowledge) -> Json:
    at = knowledge.updated_at
    return {
        "knowledge": knowledge.text,
        "updated_at": None if at is None else account.time_text(at),
    }


def _write(account: Account, knowledge: Knowledge, request: Request, *, held: bool, now: float) -> None:
    body = read_body(request.body, _KnowledgeIn)
    if held:
        raise Refusal(409, "A run holds this text")
    current = _describe_knowledge(account, knowledge)["updated_at"]
    if body.if_unmodified_since is not None and not _same_time(body.if_unmodified_since, current):
        raise Refusal(412, "The text has changed", fields={"updated_at": current})
    knowledge.text, knowledge.updated_at = body.knowledge or None, now


def _same_time(text: str, other: object) -> bool:
    try:
        return other is not None and datetime.fromisoformat(text) == datetime.fromisoformat(str(other))
    except ValueError:
        raise Refusal(400, "if_unmodified_since is no time") from None


def source_knowledge(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /sources/{source}/knowledge`."""
    source = _source(account, ids)
    account.require_unique(source.name)
    return account.shown(200, {"source": source.name, **_describe_knowledge(account, source.knowledge)})


def write_source_knowledge(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `PATCH /sources/{source}/knowledge`."""
    source = _source(account, ids)
    account.require_unique(source.name)
    held = any(migration.source == source.name for migration, _ in account.in_progress())
    _write(account, source.knowledge, request, held=held, now=now)
    return source_knowledge(account, request, ids, now)


def migration_knowledge(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/knowledge`."""
    migration = account.find(ids, now)
    shown = {"migration_id": migration.id, **_describe_knowledge(account, migration.knowledge)}
    return account.shown(200, shown)


def write_migration_knowledge(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `PATCH /migrations/{id}/knowledge`."""
    migration = account.find(ids, now)
    _write(account, migration.knowledge, request, held=migration.active is not None, now=now)
    return migration_knowledge(account, request, ids, now)


def list_templates(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /templates`."""
    active = [schema.describe() for schema in account.schemas.values() if not schema.archived]
    return account.shown(200, {"templates": active})


def _schema(account: Account, ids: Ids) -> Schema:
    schema = account.schemas.get(ids["slug"])
    if schema is None or schema.archived:
        raise Refusal(404, "Template not found")
    return schema


def read_template(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /templates/{slug}`."""
    return account.shown(200, _schema(account, ids).describe())


def update_template(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `PATCH /templates/{slug}`.

    `columns` replaces all columns: an omitted `schema` is kept, an omitted `linkRule` is lost.
    """
    schema, body = _schema(account, ids), read_body(request.body, _TemplateIn)
    given = cast("Json", msgspec.to_builtins(body))
    if not any(name in given and (given[name] is not None or name == "description") for name in given):
        raise Refusal(400, "Give at least one of name, description, grouping and columns")
    if any(schema in migration.schemas for migration, _ in account.in_progress()):
        raise Refusal(409, "A run uses this template")
    old = {column.name: column for column in schema.columns}
    changed = Schema(
        slug=schema.slug,
        name=body.name or schema.name,
        description=schema.description if body.description is msgspec.UNSET else body.description,
        columns=schema.columns
        if body.columns is None
        else tuple(_changed(column, old.get(column.name)) for column in body.columns),
    )
    account.schemas[schema.slug] = changed
    for migration in account.migrations.values():
        migration.schemas = [changed if each is schema else each for each in migration.schemas]
    return account.shown(200, changed.describe())


def _changed(column: _ColumnIn, old: Column | None) -> Column:
    kept = old.schema if old is not None else None
    return Column(
        name=column.name,
        description=column.description or "",
        required=column.required,
        unique=column.unique,
        strict_rule=column.strictRule,
        schema=kept if column.schema is msgspec.UNSET else column.schema,
        link_rule=tuple(column.linkRule or ()),
        synonyms=old.synonyms if old is not None else (),
    )
