"""Upload files: list what is there, request signed URLs for the rest, and send the bytes to them.

Files belong to a migration and cannot be removed, and a second file of the same name is imported as well. So a file
that is there with the same name and size is not sent again, and after a lost response the files are listed first. The
server may list a file under another name. Its storage path, which is noted before the bytes are sent, identifies it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from asyncmig._io.attempts import Attempts
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import run_all
from asyncmig.errors import InvalidInput, UnexpectedReply
from asyncmig.migrations import routes
from asyncmig.migrations.state import once_known, state_of
from asyncmig.migrations.wire import (
    FileBody,
    FilesBody,
    StoredFile,
    StoredFiles,
    UploadTarget,
    UploadTargets,
)
from asyncmig.transfers.content import Content, Progress, content_of
from asyncmig.transfers.uploads import PutTarget, content_type_of, send_content

__all__ = [
    "Item",
    "ToUpload",
    "Uploaded",
    "check_limits",
    "checked_items",
    "default_type",
    "list_files",
    "upload_contents",
]

_MOST_FILES, _MOST_DOCUMENTS = 400, 5
"""How many files, and how many of them PDF or Word documents, one run may read."""
_LISTED_AFTER = 10.0
"""Seconds before a file is looked for again that the list lacks: a read may lag behind a write."""
_AT_ONCE = 25
"""The most URLs of one request."""
_DOCUMENTS = frozenset({".pdf", ".doc", ".docx"})
_OCTETS = frozenset({".sql", ".bak"})
_ODD = re.compile(r"[^a-z0-9]+")


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a migration."""

    name: str
    storage_path: str
    size: int
    """Bytes."""
    sha256: str | None = None
    """None for a file that was there before."""

    @property
    def is_new(self) -> bool:
        """Whether this call has sent it. False if the file was there before."""
        return self.sha256 is not None


ToUpload = Path | str | tuple[str, bytes]
"""A path, or a name with bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file to upload."""

    content: Content
    content_type: str
    progress: Progress | None = None


def default_type(name: str) -> str:
    """Return the content type that this API expects for a file's name."""
    return "application/octet-stream" if Path(name).suffix.lower() in _OCTETS else content_type_of(name)


def check_limits(names: Iterable[str]) -> None:
    """Raise `InvalidInput` for more files than one run may read."""
    found = list(names)
    if len(found) > _MOST_FILES:
        raise InvalidInput("files", len(found), f"are more than the {_MOST_FILES} files that a run may read")
    documents = sum(Path(name).suffix.lower() in _DOCUMENTS for name in found)
    if documents > _MOST_DOCUMENTS:
        reason = f"are more than the {_MOST_DOCUMENTS} PDF or Word documents that a run may read"
        raise InvalidInput("files", documents, reason)


def checked_items(files: Sequence[ToUpload]) -> list[Item]:
    """Return the files to upload. Raises `InvalidInput` for a value that is not a file, and for too many files."""
    items: list[Item] = []
    for file in cast("Sequence[object]", files):
        if isinstance(file, tuple):
            name, source = cast("tuple[str, bytes]", file)
            content = content_of(source, name=name, size=None)
        elif isinstance(file, Path | str):
            content = content_of(file, name=None, size=None)
        else:
            raise InvalidInput("files", file, "must be a path, or a name with bytes")
        items.append(Item(content=content, content_type=default_type(content.name)))
    check_limits(item.content.name for item in items)
    return items


async def list_files(context: SessionContext, migration_id: str) -> tuple[StoredFile, ...]:
    """Return the files that have arrived; one request."""
    call = Call(endpoint=routes.LIST_FILES, ids={"id": migration_id})
    shared = state_of(context, migration_id)
    read = partial(context.caller.call, call, StoredFiles)
    return (await once_known(read, until=shared.known_by)).files


async def _list_as_sent(context: SessionContext, migration_id: str) -> list[StoredFile]:
    """Return the files that have arrived, with the names that were sent as far as they are known; one request."""
    names = state_of(context, migration_id).sent_names
    return [
        msgspec.structs.replace(file, name=names.get(file.storage_path, file.name))
        for file in await list_files(context, migration_id)
    ]


async def upload_contents(
    context: SessionContext,
    migration_id: str,
    items: Sequence[Item],
    *,
    noted: Callable[[Mapping[str, str]], Awaitable[None]] | None = None,
    since: Mapping[str, str] | None = None,
    rank: float = 0.0,
) -> list[Uploaded]:
    """Upload what is not there yet, in parallel, and return all in the order of `items`.

    - `noted`: awaited before bytes are sent, with the sent names by storage path; a journal may keep them.
    - `since`: what `noted` received in a process that was interrupted.

    If one upload fails, the others are cancelled and its error is raised.
    """
    check_limits(item.content.name for item in items)
    shared = state_of(context, migration_id)
    shared.sent_names.update(since or {})
    there = await _list_as_sent(context, migration_id)
    found: dict[int, Uploaded] = {}
    for place, item in enumerate(items):
        match = _match(item.content, there)
        if match is not None:
            there.remove(match)
            found[place] = Uploaded(
                name=item.content.name, storage_path=match.storage_path, size=item.content.size
            )
    missing = [place for place in range(len(items)) if place not in found]
    check_limits([each.name for each in there] + [item.content.name for item in items])
    taken = {each.storage_path for each in there} | {each.storage_path for each in found.values()}

    async def note(targets: Sequence[UploadTarget], sent: Sequence[Item]) -> None:
        for target, item in zip(targets, sent, strict=True):
            taken.add(target.storage_path)
            if target.storage_path:
                shared.sent_names[target.storage_path] = item.content.name
        if noted is not None:
            await noted(shared.sent_names)

    async def send(place: int, target: UploadTarget) -> None:
        found[place] = await _send(context, migration_id, items[place], target, rank, taken, note)

    for start in range(0, len(missing), _AT_ONCE):  # URLs expire, so they are requested just before their use
        places = missing[start : start + _AT_ONCE]
        batch = [items[place] for place in places]
        request = partial(context.caller.call, _request(batch, migration_id, rank), UploadTargets)
        reply = await once_known(request, until=shared.known_by)
        targets = _in_order(reply.files, [item.content.name for item in batch])
        await note(targets, batch)
        await run_all(partial(send, place, target) for place, target in zip(places, targets, strict=True))
    return [found[place] for place in range(len(items))]


async def _send(
    context: SessionContext,
    migration_id: str,
    item: Item,
    first: UploadTarget,
    rank: float,
    taken: set[str],
    note: Callable[[Sequence[UploadTarget], Sequence[Item]], Awaitable[None]],
) -> Uploaded:
    """Send one file to its URL, and to a new one if that fails. `taken`: the places of other files in the storage."""
    ready = [first]

    async def request_target(attempts: Attempts) -> PutTarget[str]:
        if not ready:
            reply = await context.caller.attempt(
                _request([item], migration_id, rank), UploadTargets, attempts
            )
            ready.extend(_in_order(reply.files, [item.content.name]))
            await note(ready, [item])
        target = ready.pop()
        kind = target.content_type or item.content_type
        return PutTarget(url=target.signed_url, content_type=kind, ref=target.storage_path)

    async def has_arrived(storage_path: str) -> bool:
        if await is_listed(storage_path):
            return True
        await asyncio.sleep(_LISTED_AFTER)
        return await is_listed(storage_path)

    async def is_listed(storage_path: str) -> bool:
        files = await _list_as_sent(context, migration_id)
        own = [each for each in files if each.storage_path == storage_path or each.storage_path not in taken]
        match = _match(item.content, own)
        if match is not None:
            taken.add(match.storage_path)
        return match is not None

    put = Call(endpoint=routes.PUT_BYTES, ids={"id": migration_id})
    sent = await send_content(
        context,
        item.content,
        request_target=request_target,
        put=put,
        has_arrived=has_arrived,
        progress=item.progress,
    )
    return Uploaded(name=item.content.name, storage_path=sent.ref, size=item.content.size, sha256=sent.sha256)


def _request(items: Sequence[Item], migration_id: str, rank: float) -> Call:
    files = tuple(FileBody(name=item.content.name, content_type=item.content_type) for item in items)
    body = msgspec.json.encode(FilesBody(files=files))
    return Call(endpoint=routes.CREATE_UPLOADS, ids={"id": migration_id}, body=body, rank=rank)


def _in_order(targets: Sequence[UploadTarget], names: Sequence[str]) -> list[UploadTarget]:
    """Return the targets in the order of the names: by name where that is clear, otherwise by position."""
    if len(targets) != len(names):
        route = routes.CREATE_UPLOADS
        text = f"{len(targets)} upload URLs came for {len(names)} files"
        raise UnexpectedReply(route.method, route.template, 201, text)
    by_name = {target.name: target for target in targets}
    if len(by_name) == len(targets) and set(by_name) == set(names):
        return [by_name[name] for name in names]
    return list(targets)


def _match(content: Content, there: Sequence[StoredFile]) -> StoredFile | None:
    """Return the stored file with this name and size. A server may have changed the spelling of the name."""
    same = [each for each in there if each.name == content.name and each.size in (None, content.size)]
    similar = [
        each for each in there if each.size == content.size and _plain(each.name) == _plain(content.name)
    ]
    return next(iter(same or similar), None)


def _plain(name: str) -> str:
    return _ODD.sub("_", name.casefold()).strip("_")
