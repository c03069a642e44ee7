"""Describe the journal entries of a migration, for people."""

from collections.abc import Mapping
from typing import cast

import msgspec

from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.workflow.record import ExportStep
from asyncmig.customers.files import FileInput, files_in_words
from asyncmig.customers.outcome import Delivered, Outcome
from asyncmig.customers.status import LastFailure
from asyncmig.journal import JournalEvent

__all__ = ["words_of"]


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a journal entry: the changed fields of the record, and a decision."""

    company_id: str | None = None
    run_id: str | None = None
    epoch: int | None = None
    files: tuple[FileInput, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    decision: Mapping[str, object] | None = None
    exports: tuple[ExportStep, ...] = ()
    last_failure: LastFailure | None = None
    attempts: int | None = None
    outcome: Outcome | None = None


def words_of(event: JournalEvent) -> str:
    """Return a description of an entry. It may contain unescaped text of the server."""
    try:
        detail = msgspec.json.decode(event.detail, type=_Detail)
    except (ValueError, TypeError, RecursionError):
        detail = _Detail()  # of another version
    match event.kind:
        case "create" | "start":
            return f"asks for the {'company' if event.kind == 'create' else 'import'}"
        case "created" | "adopt":
            return f"company {detail.company_id}" + (", as a person said" if event.kind == "adopt" else "")
        case "started" | "found":
            return f"run {detail.run_id}"
        case "input":
            return files_in_words(detail.files)
        case "uploaded":
            return files_in_words(detail.uploads[-1:])
        case "export" | "export started" | "exported":
            steps = detail.exports[-1:]  # the one that the entry is about
            return "".join(f"{step.mode}, run {step.run_id}" if step.run_id else step.mode for step in steps)
        case "retrying":
            return detail.last_failure.words if detail.last_failure else ""
        case "recovered":
            return f"after {detail.attempts} attempts"
        case "decide":
            return _decision(detail.decision)
        case "new epoch":
            return f"import number {(detail.epoch or 0) + 1} of this company; {files_in_words(detail.files)}"
        case _:
            outcome = detail.outcome
            return "" if outcome is None or isinstance(outcome, Delivered) else outcome.error


def _decision(decision: Mapping[str, object] | None) -> str:
    """Return a description of a decision. Earlier versions wrote `approve` instead of a type."""
    if decision is None:
        return ""
    kind = decision.get("type") or ("approve" if decision.get("approve") else "reject")
    answers = cast("Mapping[str, object]", decision.get("answers") or {})
    given = [f"{question}={_choice(choice)}" for question, choice in answers.items()]
    return " ".join([str(kind), *given])


def _choice(choice: object) -> str:
    return (
        repr(cast("Mapping[str, object]", choice).get("text")) if isinstance(choice, Mapping) else str(choice)
    )
