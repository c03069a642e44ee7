"""Upload files: request a signed URL, send the bytes to it, and request a new URL if that fails."""

import hashlib
import mimetypes
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from asyncmig._io.attempts import Attempts, RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.caller import Caller
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import run_all
from asyncmig._io.reply import is_html, retry_after
from asyncmig._io.storage import PutReply, storage_error
from asyncmig._io.threads import in_thread
from asyncmig._io.transport import Answer, Lost
from asyncmig.companies import routes
from asyncmig.companies.state import ClientState
from asyncmig.companies.wire import UploadBody, UploadTarget
from asyncmig.customers.files import size_of
from asyncmig.errors import AsyncmigError, BadRequest, InvalidInput, NoAnswer, UnexpectedReply
from asyncmig.transfers.content import BinaryFile, Content, Progress, Stream, content_of

__all__ = ["ToUpload", "Uploaded", "content_type_of", "digest_of", "upload", "upload_all"]

_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+( *; *[!-~ ]+)?", re.ASCII)
_FINAL = frozenset({405, 411, 413, 414, 415, 501})
_FINAL_CODES = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "MaxMessageLengthExceeded", "RequestBodyTooLarge"}
)
"""Storage error codes that a new URL does not change."""
_PASSING = frozenset({408, 425, 429})
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
    }
)
"""Storage error codes for a busy storage or a broken transfer. S3 sends some of them with status 400."""
_SAME, _REFUSALS = 3, 6
"""Number of refusals of one kind, or of any kind, after which a new URL will not help."""
_REFUSED = "the storage refused the bytes"
_TYPES = {  # what the platform's own table may lack
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".json": "application/json",
    ".txt": "text/plain",
}


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file. `upload_ref` names it in an import."""

    name: str
    upload_ref: str
    size: int
    """Bytes."""
    sha256: str


def content_type_of(name: str) -> str:
    """Return the content type for a file's name, `application/octet-stream` where it says nothing."""
    known = _TYPES.get(Path(name).suffix.lower())
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"


ToUpload = Path | Uploaded | tuple[str, bytes]
"""A path, an uploaded file, or a name with bytes."""


def digest_of(source: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes, in hexadecimal. Blocks: call it in a thread."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    kind = content_type_of(content.name) if content_type is None else _checked_type(content_type)
    body = UploadBody(name=content.name, content_type=kind, size=content.size)
    ids, refusals, pages = {"id": company_id}, _Refusals(), 0
    caller, state = context.caller, context.kept(ClientState)
    tries, asks = (caller.repeated(each, ids) for each in (routes.PUT_BYTES, routes.CREATE_UPLOAD))
    while True:
        # Some storages always respond with a page. If there is no other response, the page is accepted.
        believes = content.once or (tries.is_last and pages == tries.attempt - 1)
        try:
            async with state.uploads:  # the slot is not held during the pause before a repeat
                uploaded = await _attempt(
                    context,
                    company_id,
                    content,
                    body,
                    progress,
                    rank,
                    asks,
                    tries.attempt,
                    believe_pages=believes,
                )
        except RetryableFailure as failure:  # the request for the URL failed, and has its own attempts
            try:
                await asks.failed(failure)
                continue
            except (NoAnswer, UnexpectedReply) as error:
                trouble, pause, asks = error, 0.0, caller.repeated(routes.CREATE_UPLOAD, ids)
        except _Refused as refused:
            trouble, pause = refusals.error(refused.reply), refused.reply.retry_after
        except (NoAnswer, UnexpectedReply) as error:
            trouble, pause = error, 0.0
            pages += isinstance(error, UnexpectedReply) and 200 <= error.status < 300
        else:
            await asks.succeeded()
            await tries.succeeded()
            return uploaded
        if content.spent:
            raise _cannot_repeat(content, trouble) from trouble
        await tries.failed(RetryableFailure(trouble, retry_after=pause))


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


async def _attempt(
    context: SessionContext,
    company_id: str,
    content: Content,
    body: UploadBody,
    progress: Progress | None,
    rank: float,
    asks: Attempts,
    number: int,
    *,
    believe_pages: bool,
) -> Uploaded:
    call = Call(
        endpoint=routes.CREATE_UPLOAD,
        ids={"id": company_id},
        body=msgspec.json.encode(body),
        rank=rank,
    )
    target = await context.caller.attempt(call, UploadTarget, asks)
    put = Call(endpoint=routes.PUT_BYTES, ids=call.ids)
    headers = {"Content-Type": body.content_type, "Content-Length": str(body.size)}
    async with content.attempt(context.kept(ClientState).throttle, progress) as attempt:
        try:
            async with context.caller.exchange_elsewhere(
                put, target.upload_url, body=attempt, headers=headers, attempt=number
            ) as answer:
                reply = await _read_reply(
                    context.caller, answer, target.upload_url, believe_pages=believe_pages
                )
        except (NoAnswer, UnexpectedReply) as error:
            if attempt.failure is None:
                raise
            raise attempt.failure from error
    if attempt.failure is not None:
        raise attempt.failure
    if not 200 <= reply.status < 300:
        raise _Refused(reply)
    return Uploaded(
        name=body.name, upload_ref=target.upload_ref, size=body.size, sha256=attempt.digest.hexdigest()
    )


async def _read_reply(caller: Caller, answer: Answer, url: str, *, believe_pages: bool) -> PutReply:
    """Return the storage's response.

    Raises `UnexpectedReply` for a 200 with an HTML page, which a proxy may have sent, unless pages are accepted.
    """
    if 200 <= answer.status < 300:
        is_page = answer.status == 200 and is_html(answer) and await caller.read_refusal(answer)
        if is_page and not believe_pages:
            put = routes.PUT_BYTES
            raise UnexpectedReply(put.method, put.template, 200, "HTML instead of a storage's answer")
        return PutReply(status=answer.status)
    try:
        body = await caller.read_refusal(answer)
    except Lost:
        body = b""
    return storage_error(answer.status, body, url, retry_after=retry_after(answer.headers) or 0.0)


def _checked_type(content_type: str) -> str:
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidInput("content_type", content_type, "must be like text/csv")
    return content_type


class _Refused(Exception):
    """The storage responded and did not accept the bytes."""

    def __init__(self, reply: PutReply) -> None:
        super().__init__(reply)
        self.reply = reply


@final
class _Refusals:
    """Distinguishes a refusal that a new URL may change, such as an expired URL, from a final one."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: Counter[tuple[int, str]] = Counter()

    def error(self, reply: PutReply) -> UnexpectedReply:
        """Return the error of a refusal that a new URL may change. Raises `BadRequest` for a final one."""
        method, endpoint = routes.PUT_BYTES.method, routes.PUT_BYTES.template
        text = f"{_REFUSED}: {reply.reason}" if reply.reason else _REFUSED
        if _may_pass(reply):
            return UnexpectedReply(method, endpoint, reply.status, text)
        self._times[reply.status, reply.code] += 1
        times = self._times[reply.status, reply.code]
        if reply.status in _FINAL or reply.code in _FINAL_CODES:
            raise BadRequest(method, endpoint, reply.status, text)
        if times >= _SAME or self._times.total() >= _REFUSALS:
            raise BadRequest(method, endpoint, reply.status, f"{text} (also with a new URL)")
        return UnexpectedReply(method, endpoint, reply.status, text)


def _may_pass(reply: PutReply) -> bool:
    """Return whether this means that the storage is busy or unavailable, or that the transfer broke.

    A redirect without a code of the storage comes from a proxy in front of it.
    """
    return (
        reply.code in _PASSING_CODES
        or reply.status in _PASSING
        or (reply.status < 400 and not reply.code)
        or (reply.status >= 500 and reply.status != 501)
    )


def _cannot_repeat(content: Content, error: NoAnswer | UnexpectedReply) -> AsyncmigError:
    """Return the error of a stream that can be read only once and broke off."""
    advice = (
        f"the stream of {content.name} can be read only once, so it was not sent again; no import has seen it. "
        "Upload it again, or give a callable that opens it anew"
    )
    if isinstance(error, NoAnswer):
        return NoAnswer(error.method, error.endpoint, f"{error.reason}; {advice}")
    return UnexpectedReply(error.method, error.endpoint, error.status, f"{error.text}; {advice}")
