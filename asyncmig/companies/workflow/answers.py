"""What the server answered, kept until the journal has it: most answers cannot be asked for again."""

import asyncio
import logging
from typing import final

import msgspec

from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Failures, Owner
from asyncmig._io.unwritten import UnwrittenEntries, UnwrittenEntry
from asyncmig.companies.workflow.record import Record, read_record
from asyncmig.customers.steps import Entry
from asyncmig.errors import AuthError, CustomerHeld, JournalError, JournalUnavailable, SessionClosed
from asyncmig.journal import ClaimPort

__all__ = ["Answers"]

_log = logging.getLogger("asyncmig")
_PATIENCE = 900.0
"""Seconds for which a journal that is away is waited for."""
_PAUSE = 1.0
"""Seconds between attempts; a journal may have a patience of its own for each."""


@final
class Answers:
    """The answers about one customer, while it is claimed; first those that an earlier claim could not write."""

    __slots__ = ("_claim", "_context", "_entries", "record")

    def __init__(self, context: SessionContext, claim: ClaimPort) -> None:
        self._context, self._claim = context, claim
        earlier = context.unwritten.pop(claim.external_id, None)
        self._entries = list(earlier.missing(claim.state)) if earlier else []
        self.record: Record = read_record(
            claim.external_id, self._entries[-1].state if self._entries else claim.state
        )
        """The customer's record with all answers."""

    async def keep(self, kind: Entry, detail: bytes, record: Record) -> None:
        """Write an answer, and the record as it now is; while the journal is away, wait for it.

        Raises `JournalError` if it stays away for 15 minutes, or if the session was closed meanwhile, and
        `CustomerHeld` if another process took the customer over. The next claim of this customer for this session
        begins with what could not be written.
        """
        self.record = record
        self._entries.append(UnwrittenEntry(kind, detail, msgspec.json.encode(record)))
        await self.catch_up()

    async def catch_up(self) -> None:
        """Write what the journal does not have yet. Raises as `keep` does."""
        loop = asyncio.get_running_loop()
        until, failed = loop.time() + _PATIENCE, False
        failures = Failures(self._context.events, until=until, owner=Owner(self._claim.external_id))
        try:
            while self._entries:
                entry = self._entries[0]
                try:
                    await self._claim.write(entry.kind, entry.detail, entry.state)
                    del self._entries[0]
                except JournalError as error:
                    if not failed:
                        _log.warning("%s: %s; %s", self._claim.external_id, error, self.unwritten)
                    failed = True
                    if isinstance(error, CustomerHeld):
                        raise
                    if loop.time() >= until or self.must_end:
                        kind = JournalUnavailable if isinstance(error, JournalUnavailable) else JournalError
                        raise kind(error.path, f"{error.reason}; {self.unwritten}") from error
                    await failures.failed(error, endpoint="journal", ids={})
                    await asyncio.sleep(_PAUSE)
            await failures.succeeded()
        except BaseException:
            left = UnwrittenEntries(self._claim.state, tuple(self._entries))
            self._context.unwritten[self._claim.external_id] = left
            if failed:
                _log.error("%s: %s", self._claim.external_id, self.unwritten)
            raise

    @property
    def must_end(self) -> bool:
        """Whether the session was closed: nothing more can be done than say what is known."""
        try:
            self._context.check_open()
        except (AuthError, SessionClosed):
            return True
        return False

    @property
    def unwritten(self) -> str | None:
        """What the journal does not have, and what to do if this process ends; None if it has everything."""
        if not self._entries:
            return None
        written, known = read_record(self._claim.external_id, self._claim.state), self.record
        ids = [("company", written.company_id, known.company_id), ("run", written.run_id, known.run_id)]
        missing = [f"{what} {new}" for what, old, new in ids if new and new != old]
        text = f"the journal does not have {' and '.join(missing) or 'what the server answered'} yet"
        if not known.company_id or known.company_id == written.company_id:
            return text
        return f"{text}: once it can be written, `asyncmig adopt {known.external_id} {known.company_id}`"
