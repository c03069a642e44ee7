"""Export jobs: one sheet as CSV, or several as a ZIP archive, prepared by the server and fetched from a link.

The link is a secret with a short life. It is requested without the API key, over https (or http on loopback), and is
never stored: the job is read again for a fresh one.
"""

import asyncio
import contextlib
import uuid
import zipfile
import zlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import final
from urllib.parse import urljoin

import msgspec

from asyncmig._core.arguments import checked_path
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, Watch
from asyncmig._io.reply import is_html
from asyncmig._io.threads import WriteBehind, in_thread
from asyncmig._io.transport import Response
from asyncmig.errors import (
    Conflict,
    NoAnswer,
    RunFailed,
    TruncatedDownload,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig.migrations import routes
from asyncmig.migrations.state import explained
from asyncmig.migrations.wire import ExportBody, ExportState
from asyncmig.transfers.csv_records import RecordCounter

__all__ = ["ExportJob", "LinkLost", "start_export"]

_LONGEST_WAIT = 600.0
"""Seconds for which another export of the migration may run before a start is given up."""
_REDIRECTS = 5
_LINKS = 3
"""How often a fresh link is requested after one that did not work."""
_CHUNK = 256 * 1024


async def start_export(
    context: SessionContext, migration_id: str, body: ExportBody, *, rank: float = 0.0
) -> "ExportJob":
    """Start an export job. While another one runs (409), wait for at most ten minutes.

    An export changes nothing, so a start whose response was lost is repeated once; the lost one is waited for.
    """
    call = Call(
        endpoint=routes.START_EXPORT,
        ids={"id": migration_id},
        body=msgspec.json.encode(body),
        rank=rank,
        loggable_body=msgspec.json.encode(body).decode(),
    )
    loop, pause, is_lost = asyncio.get_running_loop(), 15.0, False
    until = loop.time() + _LONGEST_WAIT
    while True:
        try:
            state = await context.caller.call(call, ExportState)
            return ExportJob(context, migration_id, state.job_id)
        except UnknownOutcome:
            if is_lost:
                raise
            is_lost = True
        except Conflict:
            if loop.time() + pause > until:
                raise
        except UnexpectedReply as error:
            raise await explained(context, error) from None
        await asyncio.sleep(pause)
        pause *= 2


@final
class LinkLost(UnexpectedReply):
    """No link of a job works. Its file may have expired: a new job may help."""


@final
class ExportJob:
    """The handle of one export job."""

    __slots__ = ("_context", "_ids", "_no_link_since", "_watch", "id")

    def __init__(self, context: SessionContext, migration_id: str, job_id: str) -> None:
        self._context = context
        self.id: str = job_id
        self._no_link_since: float | None = None
        self._ids = {"id": migration_id, "job_id": job_id}
        self._watch: Watch[ExportState] = context.poller.watch(
            (routes.READ_EXPORT.key, migration_id, job_id),
            gate=context.gate(routes.READ_EXPORT),
            read=self._read,
            lifecycle=routes.EXPORT,
            started=context.poller.now(),
            group="export job",
            ids=self._ids,
            event_ids=lambda: {"migration": migration_id, "run": job_id},
        )

    def __repr__(self) -> str:
        latest = self._watch.latest
        return f"<ExportJob {self.id}: {latest.status if latest else 'not read yet'}>"

    async def wait(self) -> ExportState:
        """Wait until the job has completed. Raises `RunFailed`. Any number of tasks share the polls."""
        state = (await self._watch.wait()).value
        if state.status == "failed":
            raise RunFailed(self.id, state.error or "")
        return state

    async def download(self, to: Path | str) -> Path:
        """Wait for the job and write its file: `to` is its path. The file is complete or does not exist.

        A ZIP archive is checked by its checksums, and the rows of all sheets are counted if the job says how many
        there are. A transfer that breaks off is repeated. Raises `TruncatedDownload` or `NoAnswer` when the attempts
        are used up; `UnexpectedReply` if no link works, for example after `expires_at`:
        then start a new job.
        """
        path = checked_path("to", to)
        state = await self.wait()
        path.parent.mkdir(parents=True, exist_ok=True)
        attempts = self._context.caller.repeated(
            routes.FETCH_EXPORT, self._ids, on=(NoAnswer, TruncatedDownload)
        )
        while True:
            async with attempts:
                await self._fetch(path, state)
                return path

    async def _fetch(self, path: Path, state: ExportState) -> None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb", buffering=0) as raw:
                async with self.opened() as answer, WriteBehind(raw) as file:
                    async for chunk in answer.chunks():
                        await file.write(chunk)
            await in_thread(_check, part, path.name, state)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Response]:
        """Open the file of a completed job. If a link does not work, the job is read again for a fresh one."""
        async with AsyncExitStack() as stack:
            for number in range(1, _LINKS + 1):
                answer = await self._follow(await self._link(), stack, number)
                if 200 <= answer.status < 300 and not is_html(answer):
                    yield answer
                    return
                if number == _LINKS:
                    raise _refused(answer.status)
                await asyncio.sleep(routes.EXPORT.shortest_floor)

    async def _link(self) -> str:
        """Read the job for a fresh link."""
        state = await self._context.caller.call(Call(endpoint=routes.READ_EXPORT, ids=self._ids), ExportState)
        if state.download_url is None:
            raise LinkLost(
                "GET", routes.READ_EXPORT.template, 200, f"the job is {state.status} and has no link"
            )
        return _joined(f"{self._context.caller.base_url}/", state.download_url)

    async def _follow(self, url: str, stack: AsyncExitStack, attempt: int) -> Response:
        call = Call(endpoint=routes.FETCH_EXPORT, ids=self._ids)
        for _ in range(_REDIRECTS + 1):
            hop = AsyncExitStack()
            answer = await hop.enter_async_context(
                self._context.caller.exchange_elsewhere(call, url, body=None, headers={}, attempt=attempt)
            )
            location = answer.headers.get("Location", "")
            if not (300 <= answer.status < 400 and location):
                stack.push_async_exit(hop)
                return answer
            await hop.aclose()
            url = _joined(url, location)
        raise _refused(310)

    async def _read(self, slot: Slot) -> Reading[ExportState]:
        call = Call(endpoint=routes.READ_EXPORT, ids=self._ids)
        state = await self._context.caller.send_once(call, ExportState, slot)
        status = "running" if self._is_early(state) else state.status
        return Reading(status=status, progress=state.progress_message, value=state)

    def _is_early(self, state: ExportState) -> bool:
        """Return whether the job has ended without a link less than `read_lag` ago: the link may still come."""
        if state.status != "completed" or state.download_url:
            return False
        now = asyncio.get_running_loop().time()
        self._no_link_since = self._no_link_since or now
        return now < self._no_link_since + routes.EXPORT.read_lag


def _joined(base: str, link: str) -> str:
    """Return the URL of a link. The error for a malformed one does not show it."""
    with contextlib.suppress(ValueError):
        return urljoin(base, link)
    route = routes.FETCH_EXPORT
    raise UnexpectedReply(route.method, route.template, 200, "the link of the export is not a URL")


def _refused(status: int) -> LinkLost:
    route = routes.FETCH_EXPORT
    return LinkLost(route.method, route.template, status, "the link of the export does not work")


def _check(part: Path, name: str, state: ExportState) -> None:
    """Raise `TruncatedDownload` unless the file is complete, as far as can be determined. Blocks."""
    rows = 0
    try:
        if state.format == "zip" or (state.format is None and zipfile.is_zipfile(part)):
            with zipfile.ZipFile(part) as archive:
                for entry in archive.namelist():
                    counter = RecordCounter()
                    with archive.open(entry) as source:
                        while chunk := source.read(_CHUNK):
                            counter.feed(chunk)
                    rows += counter.rows
        else:
            counter = RecordCounter()
            with part.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    counter.feed(chunk)
            if counter.cut:
                raise TruncatedDownload(name, "it ends inside a record")
            rows = counter.rows
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise TruncatedDownload(name, f"not a whole ZIP archive ({error})") from error
    if state.total_rows is not None and rows < state.total_rows:
        raise TruncatedDownload(name, f"{rows} rows arrived, and the job has {state.total_rows}")
