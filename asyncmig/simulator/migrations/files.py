"""Routes that give a migration its data: create, uploads, connections; and the storage's PUT."""

import re
from pathlib import PurePosixPath
from typing import Annotated, cast

import msgspec

from asyncmig.simulator.migrations.account import Account, File, Ids, Migration
from asyncmig.simulator.migrations.scripts import Script
from asyncmig.simulator.migrations.tables import XLSX_HINT, can_read
from asyncmig.simulator.server.messages import (
    ExternalId,
    Filled,
    Json,
    Refusal,
    Reply,
    Request,
    json_reply,
    read_body,
)

__all__ = [
    "create_migration",
    "create_uploads",
    "delete_connection",
    "find_existing",
    "list_files",
    "put_bytes",
    "read_connection",
    "save_connection",
]

_TYPES = (
    "text/csv",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.ms-excel",
    "application/pdf",
    "application/msword",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/octet-stream",
    "application/sql",
    "text/plain",
)


class _MigrationIn(msgspec.Struct, kw_only=True):
    name: Filled
    source: str | None = None
    external_id: ExternalId | None = None
    templates: list[str] | None = None


class _FileIn(msgspec.Struct, kw_only=True):
    name: Filled
    content_type: str | None = None


class _FilesIn(msgspec.Struct, kw_only=True):
    files: Annotated[list[_FileIn], msgspec.Meta(min_length=1, max_length=25)]


class _ConnectionIn(msgspec.Struct, kw_only=True):
    source_key: Annotated[str, msgspec.Meta(pattern="^[^A-Z]+$")]
    profile_id: str | msgspec.UnsetType | None = msgspec.UNSET
    config: Json | msgspec.UnsetType = msgspec.UNSET
    selected_streams: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    stream_state: Json | msgspec.UnsetType = msgspec.UNSET
    credentials: Json | msgspec.UnsetType = msgspec.UNSET


def find_existing(account: Account, request: Request) -> Migration | None:
    """Return the migration whose external id a create request has."""
    try:
        wanted = msgspec.json.decode(request.body, type=_MigrationIn).external_id
    except msgspec.DecodeError:
        return None
    found = [each for each in account.migrations.values() if wanted and each.external_id == wanted]
    return found[0] if found else None


def create_migration(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations`."""
    account.require_plan()
    body = read_body(request.body, _MigrationIn)
    source = body.source or None
    if source is not None and source not in account.sources:
        raise Refusal(404, "Source not found")
    account.require_unique(source)
    if account.variants.region == "closed":
        raise Refusal(409, "The region of this account is not live")
    slugs = [slug for slug, schema in account.schemas.items() if not schema.archived]
    wanted = body.templates if body.templates is not None else slugs
    if unknown := [slug for slug in wanted if slug not in slugs]:
        raise Refusal(400, f"unknown template {unknown[0]}")
    existing = find_existing(account, request)
    if existing is None and body.external_id and account.variants.existing != "none":
        existing = _already_there(account, body, source, wanted, now)
    if existing is not None:
        if existing.source != source:
            raise Refusal(409, "A migration with this external_id has another source")
        return account.shown(200, {"migration": existing.describe()})
    migration = _new(account, body, source, wanted, now)
    return account.shown(201, {"migration": migration.describe()})


def _new(
    account: Account, body: _MigrationIn, source: str | None, wanted: list[str], now: float
) -> Migration:
    migration = Migration(
        id=account.new_id(),
        name=body.name,
        source=source,
        external_id=body.external_id,
        schemas=[account.schemas[slug] for slug in dict.fromkeys(wanted)],
        created_at=now,
        touched_at=now,
        script=account.scripts.get(body.external_id or "") or Script(),
    )
    account.migrations[migration.id] = migration
    return migration


def _already_there(
    account: Account, body: _MigrationIn, source: str | None, wanted: list[str], now: float
) -> Migration:
    """Return a migration that somebody made earlier under the same external id."""
    migration = _new(account, body, source, wanted, now - account.variants.lag)
    if account.variants.existing == "renamed":
        migration.name = f"{body.name} (old)"
    if account.variants.existing == "other-templates":
        migration.schemas = list(account.schemas.values())[:1]
    if account.variants.existing_file:
        name = "earlier.csv"
        path = f"{migration.id}/{name}"
        file = File(
            name=name, requested_name=name, content_type="text/csv", storage_path=path, expires_at=now
        )
        file.content, file.uploaded_at = b"Email,Last Name,First Name,Phone\r\n", now
        migration.files.append(file)
    return migration


def create_uploads(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/files`."""
    migration, body = account.find(ids, now), read_body(request.body, _FilesIn)
    for file in body.files:
        if (file.content_type or "text/csv") not in _TYPES:
            raise Refusal(400, f"{file.name}: files of type {file.content_type} are not supported")
        if not can_read(file.name):
            raise Refusal(400, f"{file.name}: {XLSX_HINT}")
    migration.touched_at = now
    return account.shown(201, {"files": [_signed(account, migration, file, now) for file in body.files]})


def _signed(account: Account, migration: Migration, asked: _FileIn, now: float) -> Json:
    token = account.new_id()
    name = asked.name
    if account.variants.file_names == "changed":
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lower()
    if account.variants.file_names == "replaced":
        name = token[:8] + PurePosixPath(name).suffix
    file = File(
        name=name,
        requested_name=asked.name,
        content_type=asked.content_type or "text/csv",
        storage_path=f"{migration.id}/{token[:8]}-{name}",
        expires_at=now + account.variants.url_lives,
    )
    migration.files.append(file)
    account.tokens[token] = migration, file
    return {
        "name": name,
        "storage_path": file.storage_path,
        "signed_url": f"{account.storage_url}/upload/{migration.id}?token={token}",
        "token": token,
        "content_type": file.content_type,
    }


def put_bytes(account: Account, request: Request, now: float) -> Reply:
    """Respond to a PUT to a signed URL, once."""
    migration, file = account.tokens.get(request.query.get("token", ""), (None, None))
    if migration is None or file is None or not request.path.startswith("/upload/"):
        return json_reply(403, {"error": "The signature is not valid"})
    if file.content is not None or now > file.expires_at:
        return json_reply(403, {"error": "The URL has expired"})
    if request.headers.get("content-type") != file.content_type:
        return json_reply(403, {"error": "Content-Type is not what was declared"})
    file.content, file.uploaded_at = request.body, now
    migration.inputs += 1
    return Reply(status=200, body=b"", content_type="text/plain")


def list_files(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/files`."""
    files = account.find(ids, now).arrived
    shown: list[Json] = [
        {
            "name": file.name,
            "storage_path": file.storage_path,
            "size": len(file.content or b""),
            "content_type": file.content_type,
            "uploaded_at": account.time_text(file.uploaded_at),
        }
        for file in files
    ]
    return account.shown(200, {"files": shown})


def save_connection(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/source-connection`."""
    migration, body = account.find(ids, now), read_body(request.body, _ConnectionIn)
    given = cast("Json", msgspec.to_builtins(body))
    profile = None if body.profile_id is None else str(given.get("profile_id", "default"))
    credentials = cast("Json | None", given.pop("credentials", None))
    key = (body.source_key, profile)
    known = migration.connections.get(key)
    fresh: Json = {
        "id": known["id"] if known else account.new_id(),
        "profile_id": profile,
        "source_key": body.source_key,
        "name": body.source_key.title(),
        "category": None,
        "config": {},
        "selected_streams": None,
        "stream_state": {},
        "creds_configured": bool(known and known["creds_configured"]),
        "bound_source_extractor_id": None,
        "last_snapshot": None,
        "last_sync_at": None,
    }
    base = known if known and account.variants.omitted_fields == "kept" else fresh
    connection = {**base, **given, "profile_id": profile}
    if credentials:
        connection["creds_configured"] = True
        migration.credentials[str(connection["id"])] = credentials
    migration.connections[key] = connection
    migration.touched_at, migration.inputs = now, migration.inputs + 1
    status = account.variants.update_status if known else 201
    return account.shown(status, {"source_connection": connection})


def _connection_key(migration: Migration, request: Request) -> tuple[str, str | None] | None:
    """Return the key of the connection that a query names."""
    source_key, profile = request.query.get("source_key"), request.query.get("profile_id")
    wanted = None if profile == "workbook" else profile
    for key in migration.connections:
        if source_key in (None, key[0]) and (profile is None or key[1] == wanted):
            return key
    return None


def read_connection(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/source-connection`."""
    migration = account.find(ids, now)
    key = _connection_key(migration, request)
    if key is None:
        raise Refusal(404, "No connection")
    return account.shown(200, {"source_connection": migration.connections[key]})


def delete_connection(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `DELETE /migrations/{id}/source-connection`."""
    migration = account.find(ids, now)
    key = _connection_key(migration, request)
    if key is None:
        if account.variants.delete_missing == "missing":
            raise Refusal(404, "No connection")
        return account.shown(200, {"deleted": False})
    connection = migration.connections.pop(key)
    migration.credentials.pop(str(connection["id"]), None)
    return account.shown(200, {"deleted": True})
