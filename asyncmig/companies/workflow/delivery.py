"""Deliver an import that has ended: download its sheets, and export its rows to the destination."""

from functools import partial
from pathlib import Path
from typing import final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig.companies.company import Company, known_sheets
from asyncmig.companies.expected import Expected
from asyncmig.companies.exports import ExportRun, in_stages, summary_of
from asyncmig.companies.workflow.record import ExportStep, Record, export_key
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import (
    Delivered,
    Downloaded,
    ExportMode,
    ExportSummary,
    Failed,
    ImportReport,
    Outcome,
)
from asyncmig.customers.status import wall_clock
from asyncmig.errors import BadRequest, Conflict, NotFound, RunError, UnknownOutcome
from asyncmig.records.record import are_in, is_delivered
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["Delivery"]

_REFUSED = (BadRequest, Conflict, NotFound)
_TIMES = 8
"""The maximum number of repeats of a download whose completeness cannot be checked."""


@final
class Delivery:
    """The last steps of one migration. `folder` gets the sheets."""

    __slots__ = ("_folder", "_keeper", "_options")

    def __init__(self, keeper: RecordKeeper[Record], folder: Path, options: MigrationOptions) -> None:
        self._keeper, self._folder, self._options = keeper, folder, options

    def is_done(self, outcome: Outcome | None) -> bool:
        """Return whether the sheets and exports that the options ask for were delivered."""
        if not is_delivered(outcome, self._folder, self._options.row_filter):
            return False
        return {each.mode for each in outcome.exports}.issuperset(self._options.exports)

    def is_salvaged(self, failed: Failed) -> bool:
        """Return whether all rows that the server still has of a failed import were delivered."""
        wanted = self._options.deliver_rejected and self._was_rejected(failed)
        return are_in(self._folder, failed.files) and (bool(failed.files) or not wanted)

    async def deliver(self, company: Company, report: ImportReport | None) -> Outcome:
        """Download and verify the sheets; then export to the destination, if the options ask for it."""
        keeper = self._keeper
        keeper.begin("downloading")
        if not company.sheets:  # of an adopted company: no create response listed them
            company.sheets = tuple(known_sheets((), report))
        files = await self._download(company, report)
        try:
            reason = await self._export(company)
        except (RunError, *_REFUSED) as error:
            reason = f"the destination export failed: {getattr(error, 'text', '') or error}"
        exports = self._exported()
        if reason:
            return Failed(
                **keeper.outcome_fields(),
                error=reason,
                step=keeper.step,
                report=report,
                files=tuple(files),
                exports=exports,
            )
        return Delivered(
            **keeper.outcome_fields(),
            files=tuple(files),
            row_filter=self._options.row_filter,
            report=report,
            exports=exports,
        )

    async def salvage(self, company: Company, failed: Failed) -> Failed:
        """Download what the server still returns of a rejected import, if the options ask for it."""
        if not (self._options.deliver_rejected and self._was_rejected(failed)):
            return failed
        self._keeper.tell("downloading", "what is left of the rejected import")
        try:
            files = await self._download(company, None)
        except _REFUSED as error:
            self._keeper.note(f"nothing is left of the rejected import: {error}")
            return failed
        return msgspec.structs.replace(failed, files=tuple(files))

    def _was_rejected(self, failed: Failed) -> bool:
        """Return whether the import was rejected, by us or in the dashboard: other failed imports have no report."""
        return failed.step == "running" and (self._keeper.record.rejected or failed.report is not None)

    async def _download(self, company: Company, report: ImportReport | None) -> list[Downloaded]:
        """Download the rows that `report` counts, and those of other imports of the company.

        A proxy may truncate a download. If the report does not say how many rows to expect, the download is repeated
        until two results are equal, not smaller than any before, and have at least the reported rows.
        """
        row_filter = self._options.row_filter
        alone = None if self._keeper.record.has_other_rows else report
        fewest, largest = Expected(report, row_filter).total or 0, 0  # other imports may have added more
        files: list[Downloaded] = []
        for repeat in range(1 + _TIMES):
            before, attempts = files, self._keeper.while_away()
            while True:
                async with attempts:
                    files = await company.download(
                        to=self._folder, filter=row_filter, report=alone, rank=self._keeper.rank
                    )
                    break
            if not repeat and Expected(alone, row_filter).is_exact(company.sheets):
                return files
            largest = max(largest, _size(files))
            if repeat and files == before and _size(files) == largest and _rows(files) >= fewest:
                return files
        self._keeper.note(
            f"the sheets may have been cut short: at last {_rows(files)} rows came, in {_size(files)} bytes; "
            f"at least {fewest} rows were reported, and {largest} bytes came at most"
        )
        return files

    async def _export(self, company: Company) -> str | None:
        """Make the missing exports. Return why the last one was not started, or None."""
        stopped = await in_stages(self._options.exports, partial(self._exported_once, company))
        if stopped is None:
            self._keeper.notes += [each.trouble for each in self._exported() if not each.reported]
        return stopped

    async def _exported_once(self, company: Company, mode: ExportMode) -> ExportSummary:
        self._keeper.begin("exporting", mode)
        step = next((each for each in self._keeper.record.exports if each.mode == mode), None)
        if step is None:
            key = export_key(self._keeper.record, mode)
            step = ExportStep(mode=mode, idempotency_key=key)
            await self._keeper.write("export", exports=self._with(step))
        if step.run_id is None:
            run = await self._keeper.retry_while_away(partial(_started, company, step, self._keeper.rank))
            step = msgspec.structs.replace(step, run_id=run.id, started_at=wall_clock())
            await self._keeper.keep("export started", exports=self._with(step))
        if step.result is None:
            assert step.run_id is not None
            run = company.exports.open(step.run_id, age=wall_clock() - step.started_at)
            state = await run.wait()
            step = msgspec.structs.replace(step, result=summary_of(mode, run.id, state.report))
            await self._keeper.keep("exported", exports=self._with(step))
        assert step.result is not None
        return step.result

    def _with(self, step: ExportStep) -> tuple[ExportStep, ...]:
        return (*(each for each in self._keeper.record.exports if each.mode != step.mode), step)

    def _exported(self) -> tuple[ExportSummary, ...]:
        return tuple(step.result for step in self._keeper.record.exports if step.result is not None)


async def _started(company: Company, step: ExportStep, rank: float) -> ExportRun:
    try:
        return await company.exports.start(mode=step.mode, idempotency_key=step.idempotency_key, rank=rank)
    except UnknownOutcome as error:
        if isinstance(error.__cause__, TRANSIENT):
            raise error.__cause__ from error  # the journal has the idempotency key
        raise


def _size(files: list[Downloaded]) -> int:
    return sum(file.size for file in files)


def _rows(files: list[Downloaded]) -> int:
    return sum(file.rows for file in files)
