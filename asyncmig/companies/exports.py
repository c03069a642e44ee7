"""Destination exports: write a company's rows to the system that the customer moves to, its *destination*."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, final
from urllib.parse import urlsplit

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.secrets import json_secrets
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.imports import key_or_new
from asyncmig.companies.runs import Run
from asyncmig.companies.wire import ExportBody, ExportReport, ExportState, RunStarted, Selection, Template
from asyncmig.customers.catalog import checked_id
from asyncmig.customers.outcome import ExportMode, ExportSummary
from asyncmig.customers.spec import Connections, checked_templates
from asyncmig.errors import BadRequest, Conflict, InvalidInput, RunFailed

__all__ = [
    "Destination",
    "ExportOutcome",
    "ExportRun",
    "ExportStage",
    "Exports",
    "checked_connections",
    "in_stages",
    "summary_of",
]

_DESTINATION_FIELDS = {"auth", "base_url"}
_NO_REASON = "no reason given; a company that was created without `connections` has no destination"
_DUPLICATES = (
    "The full export writes every row, also those that the canary wrote, and a later export writes all of them "
    "again. No idempotency key prevents duplicate records at the destination: only the natural key of its writer "
    "does, and the API does not show whether the writer has one."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The system that a company's rows are exported to: the address of its API, and the credentials for it.

        Destination(base_url="https://api.crm.example", auth={"token": os.environ["CRM_TOKEN"]})

    `auth` is a secret: the server never returns it, and no repr, error, log, event or journal contains it.
    """

    base_url: str
    auth: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)


def checked_connections(connections: Connections) -> dict[str, dict[str, object]]:
    """Return the connections as the API takes them: `{"destination": {"base_url": ..., "auth": ...}}`.

    Raises `InvalidInput`, which contains no value, for anything else than a `Destination`, or a mapping with its
    fields, under `destination`.
    """
    kinds = _mapping(connections)
    if kinds is None or set(kinds) != {"destination"}:
        raise InvalidInput("connections", "***", "must be {'destination': Destination(...)}")
    destination = kinds["destination"]
    if isinstance(destination, Destination):
        destination = {"base_url": destination.base_url, "auth": destination.auth}
    given = _mapping(destination)
    if given is None or not set(given) <= _DESTINATION_FIELDS:
        raise _wrong("", f"must have {' and '.join(sorted(_DESTINATION_FIELDS))} and nothing else")
    auth = _mapping(given.get("auth", {}))
    if auth is None:
        raise _wrong(".auth", "must be a mapping with the fields that the destination's writer expects")
    secrets = json_secrets("connections.destination.auth", auth)
    return {"destination": {"base_url": _checked_url(given.get("base_url")), "auth": secrets}}


def _mapping(value: object) -> Mapping[str, object] | None:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise _wrong(".base_url", "must be the URL of the destination's API")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _wrong(".base_url", "is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise _wrong(".base_url", "must be an absolute https URL")
    if parts.username or parts.password or parts.fragment:
        raise _wrong(".base_url", "must not contain credentials or a fragment: put secrets into auth")
    return url


def _wrong(field_name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"connections.destination{field_name}", "***", reason)


class ExportStage(msgspec.Struct, frozen=True, kw_only=True):
    """One completed stage of an export: the canary or the full export."""

    run_id: str
    idempotency_key: str
    """The idempotency key. The same key, mode and selection return this run again."""
    report: ExportReport | None
    """The report on the writes; None if the server sent none."""

    @property
    def is_clean(self) -> bool:
        """Whether there is a report without failed and hollow writes."""
        return self.report is not None and self.report.is_clean


class ExportOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `company.export()`, stage by stage."""

    canary: ExportStage | None
    """None if no canary was requested."""
    full: ExportStage | None
    """None if the full export was not started; `stopped` says why."""
    stopped: str | None = None
    """Why the full export was not started, according to the canary."""
    note: str = _DUPLICATES
    """A warning about duplicates that no client can prevent."""

    @property
    def is_clean(self) -> bool:
        """Whether everything was written, without failed or hollow writes."""
        return self.full is not None and self.full.is_clean

    @property
    def report(self) -> ExportReport:
        """The report of the last stage; an empty one if the server sent none."""
        last = self.full or self.canary
        return (last.report if last else None) or ExportReport()


@final
class Exports:
    """The destination exports of one company."""

    __slots__ = ("_company_id", "_context")

    def __init__(self, context: SessionContext, company_id: str) -> None:
        self._context, self._company_id = context, company_id

    @checked_call
    async def start(
        self,
        *,
        mode: ExportMode,
        template_ids: Sequence[str | Template] | None = None,
        row_filter: str | None = None,
        idempotency_key: str | None = None,
        rank: float = 0.0,
    ) -> "ExportRun":
        """Start an export to the destination: `"full"`, or `"canary"` for the first row of each template.

        ```python
        canary = await company.exports.start(mode="canary", idempotency_key="acme-canary")
        report = (await canary.wait()).report
        ```

        - `template_ids`, `row_filter` (in the server's own terms): limit what is written.
        - `idempotency_key`: starting again with the same key, mode and selection returns the same run. Random by
          default.

        The key makes only the start safe to repeat. Whether the destination receives a record twice depends on
        the natural key of its writer, which no client can see or set.

        Raises `InvalidInput` before a request is spent; `BadRequest` or `Conflict` if the server refuses an
        export without a connection (other servers accept it, and `wait` raises `RunFailed`); `Conflict` for a key
        that was used with another payload; `UnknownOutcome` if all responses were lost: the export may be running,
        and the same call with the key that is in `sent` returns its run.
        """
        key = key_or_new(self._context, idempotency_key)
        if mode not in ("full", "canary"):
            raise InvalidInput("mode", mode, "is neither 'full' nor 'canary'")
        selection = Selection(
            template_ids=msgspec.UNSET if template_ids is None else checked_templates(template_ids),
            row_filter=msgspec.UNSET if row_filter is None else checked_text("row_filter", row_filter),
        )
        body = ExportBody(
            mode=mode,
            idempotency_key=key,
            selection=msgspec.UNSET if selection == Selection() else selection,
        )
        encoded = msgspec.json.encode(body)
        call = Call(
            endpoint=routes.START_EXPORT,
            ids={"id": self._company_id},
            body=encoded,
            rank=rank,
            loggable_body=encoded.decode(),
        )
        try:
            started = await self._context.caller.call(call, RunStarted)
        except (BadRequest, Conflict) as error:
            if error.text:
                raise
            raise error.with_text(f"({_NO_REASON})") from error
        return ExportRun(
            self._context, ExportState, self._company_id, started.run_id, age=0.0, status=started.status
        )

    @checked_call
    def open(self, run_id: str, *, age: float | None = None) -> "ExportRun":
        """Return the handle of an export run with a known id, without a request.

        ```python
        opened = company.exports.open("5b0c3a52-0000-4000-8000-000000000000", age=120.0)
        ```

        `age`: seconds since the run started, if known. Raises `InvalidInput` if it is not an id.
        """
        checked = checked_id("run_id", run_id, "exports", "runs")
        return ExportRun(self._context, ExportState, self._company_id, checked, age=age)


@final
class ExportRun(Run[ExportState]):
    """The handle of one destination export."""

    ENDPOINT = routes.READ_EXPORT
    LIFECYCLE = routes.EXPORT
    __slots__ = ()

    async def wait(self, *, through_parks: bool = False) -> ExportState:
        """Wait until the export has ended, and return the last reading. Its `report` lists the result of each write.

        A run completes even if writes failed. Raises `RunFailed` if the run failed, for example because the
        company has no connection; some rows may have been written before. See also `Run.wait`.
        """
        try:
            return await super().wait(through_parks=through_parks)
        except RunFailed as error:
            if error.text:
                raise
            raise RunFailed(self.id, f"({_NO_REASON})") from error


async def in_stages(
    modes: Sequence[ExportMode], export: Callable[[ExportMode], Awaitable[ExportSummary]]
) -> str | None:
    """Call `export` for each mode in turn, and stop after one that is not clean. The last one may be unclean.

    Return why a mode was not exported; None if all were.
    """
    for mode in modes:
        summary = await export(mode)
        if mode != modes[-1] and not summary.is_clean:
            return f"{summary.trouble}; the full export was not started"
    return None


def summary_of(mode: ExportMode, run_id: str, report: ExportReport | None) -> ExportSummary:
    """Return the summary of a report. If it counts more losses than it lists, the count is used."""
    found = report or ExportReport()
    return ExportSummary(
        mode=mode,
        run_id=run_id,
        reported=report is not None,
        total=found.total,
        failed=len(found.failed) + found.unlisted_failures,
        hollow=len(found.hollow),
        lost=(*found.failed, *found.hollow),
    )
