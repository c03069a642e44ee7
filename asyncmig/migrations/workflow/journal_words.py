"""Describe the journal entries of a migration, for people."""

from collections.abc import Mapping
from typing import cast

import msgspec

from asyncmig.customers.files import FileInput, files_in_words
from asyncmig.customers.outcome import Delivered, Outcome
from asyncmig.customers.status import LastFailure
from asyncmig.journal import JournalEvent
from asyncmig.migrations.uploads import Uploaded
from asyncmig.migrations.wire import Report
from asyncmig.migrations.workflow.record import OperationRecord

__all__ = ["words_of"]


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a journal entry: the changed fields of the record, and facts for people."""

    migration_id: str | None = None
    epoch: int | None = None
    files: tuple[FileInput, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    operation: OperationRecord | None = None
    answers: Mapping[str, object] = {}
    decision: Mapping[str, object] | None = None
    invalid_cells: int | None = None
    report: Report | None = None
    cancel: str = ""
    last_failure: LastFailure | None = None
    attempts: int | None = None
    outcome: Outcome | None = None


def words_of(event: JournalEvent) -> str:
    """Return a description of an entry. It may contain unescaped text of the server."""
    try:
        detail = msgspec.json.decode(event.detail, type=_Detail)
    except (ValueError, TypeError, RecursionError):
        detail = _Detail()  # of another version
    operation = detail.operation
    match event.kind:
        case "create":
            return "asks for the migration"
        case "created" | "adopt":
            return f"migration {detail.migration_id}" + (
                ", as a person said" if event.kind == "adopt" else ""
            )
        case "input" | "uploaded":
            return files_in_words(detail.files or detail.uploads)
        case "start":
            return operation.kind or "" if operation else ""
        case "started" | "found" | "waits for another import":
            return f"run {operation.run_id}" if operation and operation.run_id else ""
        case "previewed":
            cells = detail.invalid_cells or 0
            return f"{cells} invalid cell{'s' * (cells != 1)} in the sample"
        case "executed":
            rows = detail.report.inserted if detail.report else None
            return "" if rows is None else f"{rows} rows"
        case "answer":
            given = [f"{question}={_choice(choice)}" for question, choice in detail.answers.items()]
            return " ".join(given) or "credentials"
        case "decide":
            return _decision(detail.decision)
        case "cancel":
            return "to release the run slot" if detail.cancel == "slot" else detail.cancel
        case "retrying":
            return detail.last_failure.words if detail.last_failure else ""
        case "recovered":
            return f"after {detail.attempts} attempts"
        case "new epoch":
            return f"run number {(detail.epoch or 0) + 1}"
        case _:
            outcome = detail.outcome
            return "" if outcome is None or isinstance(outcome, Delivered) else outcome.error


def _choice(choice: object) -> str:
    text = cast("Mapping[str, object]", choice).get("text") if isinstance(choice, Mapping) else choice
    return repr(text)


def _decision(decision: Mapping[str, object] | None) -> str:
    if decision is None:
        return ""
    message = decision.get("message")
    return str(decision.get("type")) + (f": {message}" if message else "")
