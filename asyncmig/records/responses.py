"""Keep the server's responses until the journal has them. Most responses cannot be requested again."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, final

import msgspec

from asyncmig._io.context import SessionContext, UnwrittenEntries, UnwrittenEntry
from asyncmig._io.failures import Failures, Owner
from asyncmig.errors import AuthError, CustomerHeld, JournalError, JournalUnavailable, SessionClosed
from asyncmig.journal import ClaimPort
from asyncmig.records.record import BaseRecord
from asyncmig.steps import Entry

__all__ = ["Reader", "Responses"]

_log = logging.getLogger("asyncmig")
_PAUSE = 1.0
"""Seconds between attempts to write. A journal may also wait within each attempt."""
R = TypeVar("R", bound=BaseRecord)
Reader = Callable[[str, bytes | None], R]
"""Returns the record in a customer's state; a new one for None."""


@final
class Responses(Generic[R]):
    """The responses for a customer that the journal lacks, including those that an earlier claim could not write."""

    __slots__ = ("_claim", "_context", "_entries", "_read", "_retry_seconds", "record")

    def __init__(
        self, context: SessionContext, claim: ClaimPort, read: Reader[R], retry_seconds: float
    ) -> None:
        """`retry_seconds`: how long to wait for a journal that is unavailable, in seconds."""
        self._claim, self._context, self._retry_seconds = claim, context, retry_seconds
        self._read = read
        earlier = context.unwritten.pop(claim.external_id, None)
        self._entries = earlier.missing(claim.state) if earlier else ()
        self.record: R = read(claim.external_id, self._entries[-1].state if self._entries else claim.state)
        """The customer's record, with all responses."""

    async def keep(self, kind: Entry, detail: bytes, record: R) -> None:
        """Write a response and the changed record; while the journal is unavailable, wait for it.

        Raises `JournalError` if it is unavailable for `retry_seconds` seconds, or if the session was closed
        meanwhile; `CustomerHeld` if another process took over the customer. The next claim of this customer
        in this session writes the missing entries first.
        """
        self.record = record
        self._entries += (UnwrittenEntry(kind, detail, msgspec.json.encode(record)),)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Write the entries that the journal does not have yet. Raises as `keep` does."""
        loop = asyncio.get_running_loop()
        until, failed = loop.time() + self._retry_seconds, False
        failures = Failures(self._context.events, until=until, owner=Owner(self._claim.external_id))
        try:
            while self._entries:
                entry = self._entries[0]
                try:
                    await self._claim.write(entry.kind, entry.detail, entry.state)
                    self._entries = self._entries[1:]
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
            left = UnwrittenEntries(self._claim.state, self._entries)
            self._context.unwritten[self._claim.external_id] = left
            if failed:
                _log.error("%s: %s", self._claim.external_id, self.unwritten)
            raise

    @property
    def must_end(self) -> bool:
        """Whether the session was closed, so that waiting must end."""
        try:
            self._context.check_open()
        except (AuthError, SessionClosed):
            return True
        return False

    @property
    def unwritten(self) -> str | None:
        """What the journal lacks, and what to do if this process ends; None if the journal has everything."""
        if not self._entries:
            return None
        written = self._read(self._claim.external_id, self._claim.state).ids
        missing = new_ids(self.record.ids, written)
        text = f"the journal does not have {' and '.join(missing) or 'what the server answered'} yet"
        resource = next(iter(self.record.ids), None)  # a run belongs to the first one
        if resource is None or resource in written:
            return text
        adopted = f"`asyncmig adopt {self.record.external_id} {self.record.ids[resource]}`"
        return f"{text}: once it can be written, {adopted}"


def new_ids(known: Mapping[str, str], written: Mapping[str, str]) -> list[str]:
    """Return the ids that a journal lacks, as text."""
    return [f"{kind} {each}" for kind, each in known.items() if written.get(kind) != each]
