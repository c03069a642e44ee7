"""The journal record of one customer: its input, and the state of its migration."""

import hashlib
from collections.abc import Mapping
from functools import partial

import msgspec

from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.wire import Sheet
from asyncmig.customers.options import RETRY_SECONDS
from asyncmig.customers.outcome import ExportMode, ExportSummary
from asyncmig.customers.spec import Spec
from asyncmig.journal import ClaimPort
from asyncmig.records.record import BaseRecord, decoded_record, unreadable_outcome
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["API", "ExportStep", "Record", "export_key", "import_key", "keeper_of", "read_record", "with_spec"]

_VERSION = 1
API = "companies"
"""The name of this API generation in journal records."""
_UNREADABLE = 0


class ExportStep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One export to the destination. It is written before the export starts, and after each change."""

    mode: ExportMode
    idempotency_key: str
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    result: ExportSummary | None = None


class Record(BaseRecord, frozen=True, kw_only=True, gc=False):
    """The state of one migration, as the journal holds it. It is written before and after each change."""

    version: int = _VERSION
    api: str = API
    """The API generation that wrote the record."""
    source: str
    template_ids: tuple[str, ...] | None = None
    epoch: int = 0
    """The number of earlier imports of this company that this customer's migration made."""
    create_sent: bool = msgspec.field(name="creating", default=False)
    """Whether the create request may have been sent without a recorded response."""
    company_id: str | None = None
    sheets: tuple[Sheet, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    uploaded_at: float = 0.0
    """Wall-clock time of the first of `uploads`."""
    import_body: str | None = None
    """The exact body that starts the import, from before the first request until the run is known."""
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    adopted: bool = False
    """Whether a person linked the company. Its earlier imports must be read first."""
    has_other_rows: bool = msgspec.field(name="foreign", default=False)
    """Whether the company may hold rows of another import, for example of one that was rejected or canceled. The row
    counts of this import's report then say nothing about the downloads."""
    retried: int = 0
    """How often a failed import or export was started again since the files last changed."""
    exported_again: int = 0
    """How often the exports of the present import were started again."""
    rejected: bool = False
    """Whether we rejected the patch of the import, or were about to."""
    decided: str = ""
    """The mark of the questions that were decided last, or were about to be. A delayed read may show them again."""
    decided_at: float = 0.0
    """Wall-clock time of that decision."""
    exports: tuple[ExportStep, ...] = ()

    @property
    def ids(self) -> Mapping[str, str]:
        """The server's ids that are known, by kind."""
        return _ids(self.company_id, self.run_id)

    @property
    def import_requested(self) -> bool:
        """Whether the import may have started."""
        return not self.is_readable or self.import_body is not None or self.run_id is not None

    @property
    def is_readable(self) -> bool:
        """Whether the journal's bytes could be decoded. If not, `outcome` has the reason, and they must be kept."""
        return self.version != _UNREADABLE


class _Ids(msgspec.Struct, kw_only=True):
    """The fields that are shown of a record that cannot be decoded completely."""

    name: str = ""
    company_id: str | None = None
    run_id: str | None = None


def read_record(external_id: str, state: bytes | None) -> Record:
    """Return the record that a journal holds for a customer; a new one if `state` is None.

    A state that this version cannot decode gives a stand-in that is not `is_readable`, and whose outcome is `Failed`
    with the reason.
    """
    if state is None:
        return Record(external_id=external_id, name="", source="")
    record = decoded_record(
        state, Record, api=API, version=_VERSION, stand_in=partial(_stand_in, external_id, state)
    )
    if (
        record.outcome is not None and not record.outcome.ids
    ):  # an earlier version wrote `company_id` and `run_id`
        return msgspec.structs.replace(
            record, outcome=msgspec.structs.replace(record.outcome, ids=record.ids)
        )
    return record


def _ids(company: str | None, run: str | None) -> Mapping[str, str]:
    return {kind: each for kind, each in (("company", company), ("run", run)) if each}


def _stand_in(external_id: str, state: bytes, reason: str) -> Record:
    try:
        ids = msgspec.json.decode(state, type=_Ids)
    except (ValueError, TypeError, RecursionError):
        ids = _Ids()
    return Record(
        version=_UNREADABLE,
        external_id=external_id,
        name=ids.name,
        source="",
        company_id=ids.company_id,
        run_id=ids.run_id,
        outcome=unreadable_outcome(external_id, ids.name, _ids(ids.company_id, ids.run_id), reason),
    )


def keeper_of(
    context: SessionContext, claim: ClaimPort, *, retry_seconds: float = RETRY_SECONDS
) -> RecordKeeper[Record]:
    """Return the keeper of a claim's record."""
    return RecordKeeper(
        context,
        claim,
        read_record,
        endpoint=routes.DOWNLOAD,
        uploads=routes.PUT_BYTES.template,
        retry_seconds=retry_seconds,
    )


def with_spec(record: Record, spec: Spec) -> Record:
    """Return the record with the name, source and templates of `spec`."""
    return msgspec.structs.replace(record, name=spec.name, source=spec.source, template_ids=spec.templates)


def import_key(record: Record) -> str:
    """Return the idempotency key of an import. It is the same for the same input in every process."""
    return _derived(record.external_id, "import", str(record.epoch), *(file.sha256 for file in record.files))


def export_key(record: Record, mode: ExportMode) -> str:
    """Return the idempotency key of an export. It is the same for the same import, even if the journal was lost."""
    return _derived(record.external_id, f"export {mode}", str(record.run_id), str(record.exported_again))


def _derived(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
