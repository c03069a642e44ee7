"""Destination exports: write a company's rows to the system that the customer moves to."""

from collections.abc import Sequence
from typing import Literal, final

import msgspec

from asyncmig._io.caller import Call
from asyncmig._io.engine import Engine
from asyncmig.companies import routes
from asyncmig.companies.imports import new_key
from asyncmig.companies.runs import Run
from asyncmig.companies.wire import ExportBody, ExportState, RunStarted, Selection
from asyncmig.errors import InvalidInput

__all__ = ["ExportRun", "Exports"]

Mode = Literal["full", "canary"]


@final
class Exports:
    """The destination exports of one company."""

    __slots__ = ("_company_id", "_engine")

    def __init__(self, engine: Engine, company_id: str) -> None:
        self._engine, self._company_id = engine, company_id

    async def start(
        self,
        *,
        mode: Mode,
        template_ids: Sequence[str] | None = None,
        row_filter: str | None = None,
        idempotency_key: str | None = None,
    ) -> "ExportRun":
        """Start writing to the destination; `canary` writes the first row of each template only.

        The key makes the start harmless to repeat, and nothing else: whether the destination gets a record twice
        hangs on the natural key that its writer was given when it was published, which no client can see or set.
        """
        if mode not in ("full", "canary"):
            raise InvalidInput("mode", mode, "is neither 'full' nor 'canary'")
        selection = Selection(
            template_ids=msgspec.UNSET if template_ids is None else tuple(template_ids),
            row_filter=msgspec.UNSET if row_filter is None else row_filter,
        )
        body = ExportBody(
            mode=mode,
            idempotency_key=idempotency_key or new_key(self._engine),
            selection=msgspec.UNSET if selection == Selection() else selection,
        )
        encoded = msgspec.json.encode(body)
        call = Call(
            endpoint=routes.START_EXPORT,
            ids={"id": self._company_id},
            body=encoded,
            sent=encoded.decode(),
        )
        started = await self._engine.caller.call(call, RunStarted)
        return ExportRun(self._engine, ExportState, self._company_id, started.run_id, age=0.0)

    def open(self, run_id: str, *, age: float | None = None) -> "ExportRun":
        """Return the handle of a run that is known by its id; `age`: seconds since it started, if known."""
        return ExportRun(self._engine, ExportState, self._company_id, run_id, age=age)


@final
class ExportRun(Run[ExportState]):
    """One destination export."""

    ENDPOINT = routes.READ_EXPORT
    LIFECYCLE = routes.EXPORT
    __slots__ = ()
