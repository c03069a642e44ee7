"""Upload files for imports: request a signed URL for each file and send the bytes to it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from asyncmig._io.attempts import Attempts
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import run_all
from asyncmig._io.threads import in_thread
from asyncmig.companies import routes
from asyncmig.companies.wire import UploadBody, UploadTarget
from asyncmig.customers.files import size_of
from asyncmig.transfers.content import BinaryFile, Progress, Stream, content_of
from asyncmig.transfers.uploads import (
    PutTarget,
    checked_content_type,
    content_type_of,
    digest_of,
    send_content,
)

__all__ = ["ToUpload", "Uploaded", "upload", "upload_all"]


class Uploaded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An uploaded file. `upload_ref` names it in an import."""

    name: str
    upload_ref: str
    size: int
    """Bytes."""
    sha256: str


ToUpload = Path | Uploaded | tuple[str, bytes]
"""A path, an uploaded file, or a name with bytes."""


async def upload(
    context: SessionContext,
    company_id: str,
    source: Path | str | bytes | BinaryFile | Stream,
    *,
    name: str | None = None,
    size: int | None = None,
    content_type: str | None = None,
    progress: Progress | None = None,
    rank: float = 0.0,
) -> Uploaded:
    """Upload `source` and return its reference; see `Company.upload`."""
    content = content_of(source, name=name, size=size)
    kind = content_type_of(content.name) if content_type is None else checked_content_type(content_type)
    body = UploadBody(name=content.name, content_type=kind, size=content.size)
    ids = {"id": company_id}
    call = Call(endpoint=routes.CREATE_UPLOAD, ids=ids, body=msgspec.json.encode(body), rank=rank)

    async def request_target(attempts: Attempts) -> PutTarget[str]:
        target = await context.caller.attempt(call, UploadTarget, attempts)
        return PutTarget(url=target.upload_url, content_type=kind, ref=target.upload_ref)

    sent = await send_content(
        context,
        content,
        request_target=request_target,
        put=Call(endpoint=routes.PUT_BYTES, ids=ids),
        progress=progress,
    )
    return Uploaded(name=content.name, upload_ref=sent.ref, size=content.size, sha256=sent.sha256)


async def upload_all(
    context: SessionContext, company_id: str, files: Sequence[ToUpload], *, known: list[Uploaded]
) -> list[Uploaded]:
    """Upload the files that are not uploaded yet, in parallel, and return all in the order of `files`.

    `known`: earlier uploads, which are reused if name and content are the same; new uploads are added to it. All
    files are checked before the first request. If one upload fails, the others are cancelled and its error is
    raised.
    """
    for file in files:
        if isinstance(file, Path):
            size_of(file)
    done: dict[int, Uploaded] = {}

    async def one(place: int, file: ToUpload) -> None:
        done[place] = await _known_or_new(context, company_id, file, known)

    await run_all(partial(one, place, file) for place, file in enumerate(files))
    return [done[place] for place in range(len(files))]


async def _known_or_new(
    context: SessionContext, company_id: str, file: ToUpload, known: list[Uploaded]
) -> Uploaded:
    if isinstance(file, Uploaded):
        return file
    name, source = (file.name, file) if isinstance(file, Path) else file
    if again := [each for each in known if each.name == name]:
        digest = await in_thread(digest_of, source)
        if same := [each for each in again if each.sha256 == digest]:
            return same[0]
    uploaded = await upload(context, company_id, source, name=name)
    known.append(uploaded)
    return uploaded
