"""The request bodies of the contract. Anything else is a 400."""

import msgspec

__all__ = ["CompanyIn", "DecisionIn", "ExportIn", "ImportIn", "UploadIn"]


class CompanyIn(msgspec.Struct, kw_only=True):
    name: str
    source: str
    external_id: str | None = None
    template_ids: list[str] | None = None
    connections: dict[str, msgspec.Raw] | None = None


class UploadIn(msgspec.Struct, kw_only=True):
    name: str
    content_type: str
    size: int


class FileIn(msgspec.Struct, kw_only=True):
    name: str
    upload_ref: str


class ImportIn(msgspec.Struct, kw_only=True):
    idempotency_key: str
    files: list[FileIn] | None = None
    rows: list[dict[str, str | int | float | bool | None]] | None = None

    def payload(self) -> bytes:
        """Return the payload that an idempotency key identifies."""
        return msgspec.json.encode([self.files, self.rows], order="deterministic")


class AnswerIn(msgspec.Struct, kw_only=True):
    question_id: str
    option_id: str | None = None
    custom: str | None = None


class DecisionIn(msgspec.Struct, kw_only=True):
    decision: str
    answers: list[AnswerIn] = []


class SelectionIn(msgspec.Struct, kw_only=True):
    template_ids: list[str] | None = None
    row_filter: str | None = None


class ExportIn(msgspec.Struct, kw_only=True):
    mode: str
    idempotency_key: str
    selection: SelectionIn | None = None

    def payload(self) -> bytes:
        """Return what an idempotency key stands for."""
        return msgspec.json.encode([self.mode, self.selection], order="deterministic")
