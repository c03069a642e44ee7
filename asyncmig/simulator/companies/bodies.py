"""The request bodies of the contract. Anything else is a 400."""

from typing import TypeVar

import msgspec

__all__ = ["CompanyIn", "DecisionIn", "ExportIn", "ImportIn", "Malformed", "UploadIn", "read"]

T = TypeVar("T")


class Malformed(Exception):
    """The body does not follow the contract."""


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


def read(body: bytes, kind: type[T]) -> T:
    """Return `body` as `kind`, with every text non-empty. Raises `Malformed` with the server's message."""
    try:
        value = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
    for name in getattr(kind, "__struct_fields__", ()):
        if getattr(value, name) == "":
            raise Malformed(f"{name} is required")
    return value
