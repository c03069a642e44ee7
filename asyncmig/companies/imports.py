"""The imports of a company: start one, list them, and find one whose id was lost."""

import logging
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TypeAlias, cast, final

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.decode import Unreadable, convert
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.reply import Reply, unreadable
from asyncmig._io.threads import in_thread
from asyncmig.companies import routes
from asyncmig.companies.import_run import ImportRun, active_import
from asyncmig.companies.pages import Page, read_page
from asyncmig.companies.rows import checked_rows, to_csv, to_json
from asyncmig.companies.uploads import ToUpload, Uploaded, upload_all
from asyncmig.companies.wire import (
    ActiveImport,
    FileRef,
    ImportBody,
    ImportState,
    ListedImport,
    RunStarted,
)
from asyncmig.customers.catalog import checked_id
from asyncmig.customers.paths import Inputs
from asyncmig.errors import ApiError, BadRequest, InvalidInput

__all__ = ["Imports", "import_body", "key_or_new"]

_log = logging.getLogger("asyncmig")
_PAGES = 1000
"""Maximum number of pages of a list, because a server could name a next page forever."""
_NO_LIST = frozenset({400, 404, 405, 501})
"""The statuses of a server that has no list of imports."""
# Inside `Imports`, `list` is a method, so annotations there cannot use the type `list`.
_Runs: TypeAlias = MutableSequence[ImportRun]
_Arrived: TypeAlias = dict[str, list[Uploaded]]


@final
class Imports:
    """The imports of one company, as `company.imports`."""

    __slots__ = ("_arrived", "_company_id", "_context", "_inputs", "_started")

    def __init__(self, context: SessionContext, company_id: str, inputs: Inputs) -> None:
        self._context, self._company_id, self._inputs = context, company_id, inputs
        self._started: _Runs = []
        self._arrived: _Arrived = {}
        """The uploads by idempotency key: a repeat must send the same references."""

    @property
    def started(self) -> Sequence[ImportRun]:
        """The imports that this handle has started."""
        return self._started

    @checked_call
    async def start(
        self,
        *,
        files: Sequence[Path | str | Uploaded] | Path | str | Uploaded | None = (),
        rows: Iterable[Mapping[str, object]] | None = (),
        idempotency_key: str | None = None,
        max_inline_rows: int = 500,
        max_inline_bytes: int = 256_000,
    ) -> ImportRun:
        """Upload `files` in parallel and start an import of them, or start an import of `rows`.

        ```python
        first = await company.imports.start(files=[Path("contacts.csv"), Path("deals.csv")])
        await first.wait()
        second = await company.imports.start(rows=[{"Email": "ada@example.com", "Last Name": "Lovelace"}])
        await second.wait()
        ```

        - `files`: paths, or uploads from `company.upload`.
        - `rows`: mappings of column to value. They are sent in the request, or as a CSV file if there are more
          than `max_inline_rows`, if they take more than `max_inline_bytes`, or if the server refuses them in the
          request. In the file, None is an empty cell, and any other value is the text of its JSON form: numbers,
          `true`, ISO 8601 dates.
        - `idempotency_key`: starting again with the same key and payload returns the same run; this handle then
          sends the references of the first uploads again. Random by default.

        Raises `InvalidInput` before a request is spent: if not exactly one of files and rows is given, for a
        missing or empty file, a column without a name, and a value without a JSON form. Raises `Conflict` if
        another import of the company runs, or if the key was used with another payload (`recover()` tells which).
        """
        given, listed = _checked_files(files), [] if rows is None else list(rows)
        if bool(given) == bool(listed):
            raise InvalidInput("files", given, "give files or rows, and not both")
        key = key_or_new(self._context, idempotency_key)
        self._inputs.add(file for file in given if isinstance(file, Path))
        known = [] if idempotency_key is None else self._arrived.setdefault(key, [])
        if not listed:
            return await self._start_files(key, given, known)
        checked = await in_thread(checked_rows, listed)
        inline = await in_thread(to_json, checked, most_rows=max_inline_rows, most_bytes=max_inline_bytes)
        # Both forms use the same key, because a refusal creates no run and does not use up the key. If the response
        # to the inline form was lost and only its repeat was refused, the rows may already be imported: then the
        # shared key makes the file a 409, and a key of its own would import the rows twice.
        if inline is not None:
            try:
                return await self.post(msgspec.json.encode(ImportBody(idempotency_key=key, rows=inline)))
            except BadRequest as error:  # 400 or 413: the limit of this form is not documented
                _log.info(
                    "%d inline rows were refused (%d): sending them as a file", len(checked), error.status
                )
        return await self._start_files(key, [("rows.csv", await in_thread(to_csv, checked))], known)

    async def _start_files(self, key: str, files: Sequence[ToUpload], known: "list[Uploaded]") -> ImportRun:
        uploaded = await upload_all(self._context, self._company_id, files, known=known)
        return await self.post(import_body(key, uploaded))

    async def post(self, body: bytes, *, rank: float = 0.0, group: Hashable = None) -> ImportRun:
        """Start an import with this exact body; use it to repeat a start whose response was lost.

        `rank`: among waiting requests, the one with the lowest rank is sent first. `group`: runs with the same
        group are expected to take about the same time.
        """
        call = Call(
            endpoint=routes.START_IMPORT,
            ids={"id": self._company_id},
            body=body,
            rank=rank,
            loggable_body=body.decode(),
        )
        started = await self._context.caller.call(call, RunStarted)
        run = ImportRun(self._context, self._company_id, started.run_id, group=group, status=started.status)
        if run.id not in [known.id for known in self._started]:
            self._started.append(run)
        return run

    @checked_call
    def open(self, run_id: str, *, age: float | None = None, group: Hashable = None) -> ImportRun:
        """Return the handle of an import run with a known id, without a request.

        ```python
        state = await session.companies.open(company.id).imports.open(run.id).wait()
        ```

        `age`: seconds since the run started, if known; older runs are polled less often. `group`: as in `post`.
        Raises `InvalidInput` if it is not an id.
        """
        checked = checked_id("run_id", run_id, "imports", "runs")
        return ImportRun(self._context, self._company_id, checked, age=age, group=group)

    async def active(self, *, rank: float = 0.0) -> ImportState | None:
        """Return the newest import that has not ended, or None. Its `run_id` may be missing.

        ```python
        if await company.imports.active() is None:
            started = await company.imports.start(files=[Path("contacts.csv")])
        ```
        """
        reply = await self._context.caller.call(active_import(self._company_id, rank), ActiveImport)
        return reply.state()

    async def recover(self, *, rank: float = 0.0) -> ImportRun | None:
        """Return the handle of the running import, or None: use it when the id of a run was lost.

        ```python
        try:
            run = await company.imports.start(files=[Path("contacts.csv")], idempotency_key="acme-1")
        except asyncmig.Conflict:
            if (recovered := await company.imports.recover()) is not None:
                run = recovered
        ```

        Its `id` is empty if the server names the run neither here nor in the list. Such a run cannot be read; wait
        until `active` returns None.
        """
        state = await self.active(rank=rank)
        if state is None:
            return None
        if not (state.run_id or state.id):
            try:
                async for listed in self.list(rank=rank):
                    if listed.status not in routes.IMPORT.terminal:
                        state = listed
                        break
            except ApiError as error:
                if error.status not in _NO_LIST:
                    raise
        return self.found(state)

    def found(self, state: ImportState) -> ImportRun:
        """Return the handle of an import from `list`, `pages` or `active`."""
        run_id = state.run_id or state.id or ""
        return ImportRun(self._context, self._company_id, run_id, age=None, status=state.status)

    async def list(self, *, rank: float = 0.0) -> AsyncIterator[ImportState]:
        """Yield each import of the company once, newest first, from all pages.

        ```python
        completed = [state async for state in company.imports.list() if state.status == "completed"]
        ```

        The API does not document its pagination. All common forms are understood; if the reply has none, it counts
        as the only page. A page without new items ends the list. A missing field of an import is None; a missing
        status is "".
        """
        async for states, is_cut in self.pages(rank=rank):
            for state in states:
                yield state
            if is_cut:
                _log.warning("company %s has more imports than the server lists", self._company_id)

    async def pages(self, *, rank: float = 0.0) -> AsyncIterator[tuple[Sequence[ImportState], bool]]:
        """Yield the imports page by page. The second value: whether the server has more and does not list them."""
        query: Mapping[str, str] = {}
        asked: set[frozenset[tuple[str, str]]] = set()
        seen: set[str] = set()
        while len(asked) < _PAGES:
            asked.add(frozenset(query.items()))
            call = Call(endpoint=routes.LIST_IMPORTS, ids={"id": self._company_id}, query=query, rank=rank)
            reply = await self._context.caller.reply(call)
            page, listed = await in_thread(_read_listing, reply)
            states = [state for state in listed if _mark(state) not in seen]
            seen.update(map(_mark, states))
            is_last = not states or page.next is None or frozenset(page.next.items()) in asked
            yield states, page.cut or (is_last and len(seen) < (page.total or 0))
            if is_last or page.next is None:
                return
            query = page.next


def _read_listing(reply: Reply) -> tuple[Page, tuple[ListedImport, ...]]:
    """Return a page and its imports. Blocks. Raises `UnexpectedReply` for a page that cannot be decoded."""
    page = read_page(reply.json(), reply.headers.get("link", ""))
    try:
        return page, convert(list(page.items), tuple[ListedImport, ...])
    except Unreadable as error:
        raise unreadable(reply.method, reply.endpoint, reply.status, reply.content, error) from error


def _checked_files(files: object) -> list[Path | Uploaded]:
    if isinstance(files, Path | str | Uploaded):
        files = [files]
    if files is not None and (not isinstance(files, Sequence) or isinstance(files, bytes)):
        raise InvalidInput("files", files, "must be a sequence of paths and uploads")
    checked: list[Path | Uploaded] = []
    for file in cast("Sequence[object]", files or ()):
        if not isinstance(file, Path | str | Uploaded):
            raise InvalidInput(
                "files", file, "is neither a path nor an Uploaded: pass it to company.upload(...) first"
            )
        checked.append(Path(file) if isinstance(file, str) else file)
    return checked


def key_or_new(context: SessionContext, key: str | None, field: str = "idempotency_key") -> str:
    """Return `key`, or a new random key if it is None. Raises `InvalidInput`, naming `field`, for a wrong key."""
    return f"{context.rng.getrandbits(128):032x}" if key is None else checked_text(field, key)


def import_body(key: str, files: Iterable[Uploaded]) -> bytes:
    """Return the body that starts an import of `files`."""
    refs = tuple(FileRef(name=file.name, upload_ref=file.upload_ref) for file in files)
    return msgspec.json.encode(ImportBody(idempotency_key=key, files=refs))


def _mark(state: ImportState) -> str:
    """Return what identifies an import: its id, or all its fields if it has none."""
    return state.run_id or state.id or msgspec.json.encode(state).decode()
