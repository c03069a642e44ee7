"""Upload a file: ask for a signed URL, put the bytes there, and ask for a fresh one when that fails."""

import hashlib
import mimetypes
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import BytesIO
from pathlib import Path
from typing import IO, Self, final

import msgspec

from asyncmig._io.caller import Call
from asyncmig._io.engine import Engine
from asyncmig._io.threads import in_thread
from asyncmig.companies import routes
from asyncmig.companies.wire import UploadBody, UploadTarget
from asyncmig.errors import AsyncmigError, InvalidInput, NoAnswer, UnexpectedReply, api_error

__all__ = ["Uploaded", "content_type_of", "digest_of", "size_of", "upload"]

_CHUNK = 256 * 1024
_TYPES = {  # what the platform's own table may lack
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".json": "application/json",
    ".txt": "text/plain",
}


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """A file that has arrived: `upload_ref` names it in an import."""

    name: str
    upload_ref: str
    size: int
    """Bytes."""
    sha256: str


def content_type_of(name: str) -> str:
    """Return the content type for a file's name, `application/octet-stream` where it says nothing."""
    known = _TYPES.get(Path(name).suffix.lower())
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"


def size_of(path: Path) -> int:
    """Return a file's size in bytes; raise `InvalidInput` if it is missing, unreadable or empty."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InvalidInput("files", str(path), error.strerror or type(error).__name__) from error
    if not path.is_file():
        raise InvalidInput("files", str(path), "is not a file")
    if size == 0:
        raise InvalidInput("files", str(path), "is empty")
    return size


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Blocks: call it in a thread."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@final
class _Bytes:
    """The bytes of one attempt, with what was seen of them on the way; open while its block runs.

    aiohttp cancels its writer as soon as the server has answered, so no clean-up may be left to `chunks`.
    """

    __slots__ = ("_file", "_hash", "_size", "failure")

    def __init__(self, source: Path | bytes, size: int) -> None:
        self._file: IO[bytes] = source.open("rb") if isinstance(source, Path) else BytesIO(source)
        self._size = size
        self.failure: OSError | None = None
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    async def chunks(self) -> AsyncGenerator[bytes]:
        left = self._size
        try:
            while left:
                chunk = await in_thread(self._file.read, min(_CHUNK, left))
                if not chunk:
                    raise OSError(f"changed while it was read (it had {self._size} bytes)")
                left -= len(chunk)
                self._hash.update(chunk)
                yield chunk
        except OSError as error:
            self.failure = error  # the transport would take it for a broken connection
            raise

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


async def upload(
    engine: Engine,
    company_id: str,
    source: Path | bytes,
    *,
    name: str | None = None,
    content_type: str | None = None,
    rank: float = 0.0,
) -> Uploaded:
    """Upload `source` and return its reference; a URL that failed, expired or was used is replaced.

    Raises `InvalidInput` for a missing or empty source, or one that changes while it is read.
    """
    if isinstance(source, bytes):
        if name is None:
            raise InvalidInput("name", name, "bytes need a file name")
        if not source:
            raise InvalidInput("files", name, "is empty")
        size = len(source)
    else:
        name = name or source.name
        size = size_of(source)
    body = UploadBody(name=name, content_type=content_type or content_type_of(name), size=size)
    tries = engine.caller.tries(routes.PUT_BYTES)
    async with engine.uploads:
        while True:
            try:
                return await _attempt(engine, company_id, source, body, rank)
            except (NoAnswer, UnexpectedReply) as error:
                trouble = error
            await tries.failed(trouble)


async def _attempt(
    engine: Engine, company_id: str, source: Path | bytes, body: UploadBody, rank: float
) -> Uploaded:
    call = Call(
        endpoint=routes.CREATE_UPLOAD,
        ids={"id": company_id},
        body=msgspec.json.encode(body),
        rank=rank,
    )
    target = await engine.caller.call(call, UploadTarget)
    headers = {"Content-Type": body.content_type, "Content-Length": str(body.size)}
    try:
        content = _Bytes(source, body.size)
    except OSError as error:
        raise _unreadable(body.name, error) from error
    try:
        with content:
            async with aclosing(content.chunks()) as chunks:
                status = await engine.caller.put(target.upload_url, chunks, headers)
    except NoAnswer as error:
        raise (_unreadable(body.name, content.failure) if content.failure else error) from error
    if content.failure:
        raise _unreadable(body.name, content.failure)
    if not 200 <= status < 300:
        raise _refused(status)
    return Uploaded(name=body.name, upload_ref=target.upload_ref, size=body.size, sha256=content.sha256)


def _unreadable(name: str, error: OSError) -> InvalidInput:
    return InvalidInput("files", name, f"cannot be read: {error.strerror or error}")


def _refused(status: int) -> AsyncmigError:
    error = api_error(
        routes.PUT_BYTES.method, routes.PUT_BYTES.template, status, "the upload URL refused the bytes"
    )
    return UnexpectedReply(*error.args)
