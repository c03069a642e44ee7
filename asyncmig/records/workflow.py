"""The base class of all workflows: what the migration of a customer does in every API generation.

check the input → the steps of the generation → record the outcome → perhaps start again
"""

import logging
from abc import ABC, abstractmethod
from typing import Generic, TypeVar, cast

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.customers.files import NOT_IMPORTED_AGAIN, FileInput, FilesChanged
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import Failed, Outcome, Pending, PendingReason, Unknown
from asyncmig.errors import (
    ApiError,
    AuthError,
    InvalidInput,
    JournalError,
    RunError,
    SessionClosed,
    UnknownOutcome,
)
from asyncmig.records.record import BaseRecord, check_apart, read_inputs
from asyncmig.records.record_keeper import RecordKeeper
from asyncmig.steps import OutcomeName

__all__ = ["Workflow"]

R = TypeVar("R", bound=BaseRecord)
_log = logging.getLogger("asyncmig")


class Workflow(ABC, Generic[R]):
    """One call of `Generation.migrate`. A generation implements the abstract methods."""

    __slots__ = (
        "_context",
        "_files",
        "_inputs",
        "_keeper",
        "_options",
        "_retry_failed",
        "_spec",
        "_to",
        "_turn",
    )

    def __init__(self, context: SessionContext, keeper: RecordKeeper[R], call: MigrationCall) -> None:
        if not keeper.record.name:
            keeper.record = keeper.record.with_spec(call.spec)
        self._context, self._keeper, self._spec = context, keeper, call.spec
        self._to, self._options, self._inputs, self._turn = call.to, call.options, call.inputs, call.turn
        self._retry_failed = call.options.retry_failed and isinstance(keeper.record.outcome, Failed)
        self._files: tuple[FileInput, ...] | None = None
        """The present input files; None if they cannot be read."""

    async def migrate(self) -> Outcome:
        """Take the remaining steps, and return the outcome, which the journal has then. Raises `JournalError`."""
        keeper = self._keeper
        try:
            await keeper.catch_up()
            with keeper.owner():
                return await self._take_steps()
        except JournalError as error:
            if not (keeper.unwritten and keeper.must_end):
                raise
            return Pending(**keeper.outcome_fields(), error=str(error), reason="interrupted")

    async def _take_steps(self) -> Outcome:
        keeper = self._keeper
        while True:
            try:
                keeper.begin("checking")
                await self._take_input()
                outcome = self._finished()
                if outcome is None:
                    if self._turn is not None:
                        await self._turn()
                    outcome = await self._steps()
            except JournalError:
                raise
            except FilesChanged as error:
                keeper.tell("failed", str(error))
                return Failed(**keeper.outcome_fields(), error=str(error), step="checking")
            except Exception as error:
                outcome = self._outcome_of(error)
            outcome = self._with_notes(outcome)
            if outcome != keeper.record.outcome:
                await keeper.keep(_name_of(outcome), outcome=outcome)
            if not await self._begin_again(outcome):
                break
        outcome = self._with_notes(outcome)
        keeper.tell(_name_of(outcome), getattr(outcome, "error", ""))
        return outcome

    def _with_notes(self, outcome: Outcome) -> Outcome:
        notes = dict.fromkeys((*outcome.notes, *self._keeper.notes))
        return msgspec.structs.replace(outcome, notes=tuple(notes))

    def _outcome_of(self, error: Exception) -> Outcome:
        """Return the outcome of a customer whose steps ended with an error."""
        fields = self._keeper.outcome_fields()
        if isinstance(error, UnknownOutcome):
            return Unknown(**fields, error=str(error), sent=error.sent, advice=error.advice)
        if (reason := self._pending_reason(error)) is not None:
            return Pending(**fields, error=str(error), reason=reason)
        if isinstance(error, InvalidInput | ApiError | RunError):
            return Failed(**fields, error=str(error), step=self._keeper.step)
        _log.error("the migration of %s crashed", self._keeper.record.external_id, exc_info=error)
        return Pending(**fields, error=f"{type(error).__name__}: {error}", reason="crashed")

    def _pending_reason(self, error: Exception) -> PendingReason | None:
        """Return why a migration that stopped with `error` has not ended; None if it has failed."""
        if isinstance(error, AuthError):
            return "key_refused"
        if isinstance(error, TRANSIENT):
            return "server_away"
        return "interrupted" if isinstance(error, SessionClosed | OSError) else None

    async def _read_files(self) -> tuple[FileInput, ...] | None:
        """Read the input files. Return None if that fails and they are not needed any more, because a run has
        started.
        """
        self._files = None
        try:
            self._files = await read_inputs(self._spec.files, self._check_input)
        except InvalidInput as error:
            if not self._keeper.record.has_started:
                raise
            self._keeper.note(f"{error}; its run had started and continues without it")
        return self._files

    def _check_input(self) -> None:
        """Raise `InvalidInput` for wrong values of the spec, and for files in the output folder. Blocks."""
        self._spec.validate(root=self._options.root)
        check_apart(self._spec.files, self._to)

    def _note_not_imported(self, names: str) -> None:
        """Note that files have changed and are not imported again."""
        self._keeper.note(f"{NOT_IMPORTED_AGAIN}: {names}")
        _log.warning("%s: %s: %s", self._spec.external_id, NOT_IMPORTED_AGAIN, names)

    @abstractmethod
    async def _take_input(self) -> None:
        """Compare the input files with the recorded ones. Raises `FilesChanged`, `InvalidInput`."""

    @abstractmethod
    def _finished(self) -> Outcome | None:
        """Return the recorded outcome if no work is left, or None."""

    @abstractmethod
    async def _steps(self) -> Outcome:
        """Take the remaining steps on the server."""

    @abstractmethod
    async def _begin_again(self, outcome: Outcome) -> bool:
        """Record that a failed migration is started again, if the options ask for it. Return whether it is."""


def _name_of(outcome: Outcome) -> OutcomeName:
    return cast("OutcomeName", outcome.__struct_config__.tag)
