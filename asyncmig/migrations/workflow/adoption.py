"""Link a customer to an existing migration: the journal was lost, or somebody else created the migration."""

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig.customers.ids import checked_id
from asyncmig.customers.outcome import Failed
from asyncmig.customers.spec import check_external_id
from asyncmig.errors import InvalidInput
from asyncmig.journal import JournalPort
from asyncmig.migrations.workflow.record import read_record

__all__ = ["adopt"]

_MIGRATION = ("migrations",)


@checked_call
async def adopt(journal: JournalPort, external_id: str, migration_id: str) -> str:
    """Link a customer to a migration; see `Generation.adopt`.

    The next `migrate` reads its log first: it waits for a run in progress, delivers an executed one without repeating
    it, uses a preview as it is, and reports a failed run as failed.
    """
    external_id = check_external_id(external_id.strip())
    migration_id = checked_id("migration_id", migration_id, _MIGRATION)
    async with await journal.claim(external_id) as claim:
        record = read_record(external_id, claim.state)
        if not record.is_readable and isinstance(record.outcome, Failed):
            raise InvalidInput("external_id", external_id, record.outcome.error)
        if record.migration_id not in (None, migration_id):
            reason = f"is not the one that the journal has: {record.migration_id}"
            raise InvalidInput("migration_id", migration_id, reason)
        for other, state in (await journal.states()).items():
            if other != external_id and read_record(other, state).migration_id == migration_id:
                raise InvalidInput("migration_id", migration_id, f"is that of another customer: {other}")
        adopted = msgspec.structs.replace(
            record, migration_id=migration_id, create_sent=False, existed=True, outcome=None
        )
        await claim.write(
            "adopt", msgspec.json.encode({"migration_id": migration_id}), msgspec.json.encode(adopted)
        )
    return migration_id
