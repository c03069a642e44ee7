"""Keeps the record of one migration: writes it to the journal before and after each change, and emits events.

Most responses of the server cannot be requested again. So they are kept in memory until the journal has them, also
while the journal is unavailable. The next claim of the customer in this session writes what an earlier one could not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, NamedTuple, TypedDict, TypeVar, final

import msgspec

from asyncmig._core.retry import FINAL, TRANSIENT
from asyncmig._io.attempts import TimedAttempts
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import loop_speed
from asyncmig._io.failures import Failures, Owner
from asyncmig.customers.options import RETRY_SECONDS
from asyncmig.customers.status import LastFailure, wall_clock
from asyncmig.errors import (
    ApiError,
    AuthError,
    CustomerHeld,
    JournalError,
    JournalUnavailable,
    SessionClosed,
    TruncatedDownload,
)
from asyncmig.events import AttemptFailed, MigrationChanged, Recovered
from asyncmig.journal import ClaimPort
from asyncmig.records.record import BaseRecord
from asyncmig.steps import Entry, OutcomeName, Step

__all__ = ["OutcomeFields", "RecordKeeper", "seconds_since"]

T = TypeVar("T")
R = TypeVar("R", bound=BaseRecord)
_log = logging.getLogger("asyncmig")
_PAUSE = 1.0
"""Seconds between attempts to write. A journal may also wait within each attempt."""
_STOPPED = frozenset[Entry]({"failed", "pending", "unknown"})
"""Entries after which the last failure may be the reason why the migration stopped."""


class OutcomeFields(TypedDict):
    """The fields of every outcome."""

    external_id: str
    name: str
    ids: Mapping[str, str]
    seconds: float


class _UnwrittenEntry(NamedTuple):
    """The arguments of one write to a claim."""

    kind: Entry
    detail: bytes
    state: bytes


@final
class _Unwritten(dict[str, tuple[bytes | None, tuple[_UnwrittenEntry, ...]]]):
    """The entries that could not be written and the state before them, by external id. Each session has one."""


@final
class RecordKeeper(Generic[R]):
    """The record of one migration, while this process holds the claim of the customer."""

    __slots__ = (
        "_claim",
        "_context",
        "_kind",
        "_missing",
        "_retry_seconds",
        "_started",
        "_writing",
        "notes",
        "record",
        "step",
    )

    def __init__(
        self,
        context: SessionContext,
        claim: ClaimPort,
        kind: type[R],
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`retry_seconds`: see `MigrationOptions`."""
        self._context, self._claim, self._kind, self._retry_seconds = context, claim, kind, retry_seconds
        self._started = asyncio.get_running_loop().time()
        self._writing = asyncio.Lock()
        before, entries = context.kept(_Unwritten).pop(claim.external_id, (None, ()))
        states = [before, *(entry.state for entry in entries)]
        self._missing = entries[states.index(claim.state) :] if claim.state in states else ()
        """The responses that the journal does not have yet; none of them if another process has written since."""
        self.record: R = kind.read(
            claim.external_id, self._missing[-1].state if self._missing else claim.state
        )
        """The customer's record, with all responses."""
        self.notes: list[str] = []
        """Notes for the outcome."""
        self.step: Step = "checking"
        """The step that started last."""

    @property
    def is_new(self) -> bool:
        """Whether the journal has no record of the customer yet."""
        return self._claim.state is None

    @property
    def rank(self) -> float:
        """The order among waiting requests: the largest customers go first."""
        return -float(sum(file.size for file in self.record.files))

    def note(self, text: str) -> None:
        """Add a note for the outcome, once."""
        if text not in self.notes:
            self.notes.append(text)

    async def write(self, kind: Entry, **changes: object) -> None:
        """Write an intent and the changed record to the journal. Raises `JournalError`."""
        async with self._writing:
            record = self._changed(kind, changes)
            await self._claim.write(kind, msgspec.json.encode(changes), msgspec.json.encode(record))
            self.record = record

    async def keep(self, kind: Entry, **changes: object) -> None:
        """Write a response of the server and the changed record; while the journal is unavailable, wait for it.

        Raises `JournalError` if it is unavailable for `retry_seconds` seconds, or if the session was closed
        meanwhile; `CustomerHeld` if another process took over the customer.
        """
        async with self._writing:
            self.record = self._changed(kind, changes)
            state = msgspec.json.encode(self.record)
            self._missing += (_UnwrittenEntry(kind, msgspec.json.encode(changes), state),)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Write the responses that the journal does not have yet. Raises as `keep` does."""
        loop = asyncio.get_running_loop()
        until, failed = loop.time() + self._retry_seconds, False
        failures = Failures(self._context.events, until=until, owner=Owner(self._claim.external_id))
        try:
            while self._missing:
                entry = self._missing[0]
                try:
                    await self._claim.write(entry.kind, entry.detail, entry.state)
                    self._missing = self._missing[1:]
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
            unwritten = self._context.kept(_Unwritten)
            unwritten[self._claim.external_id] = self._claim.state, self._missing
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
        if not self._missing:
            return None
        written = self._kind.read(self._claim.external_id, self._claim.state).ids
        missing = [f"{kind} {each}" for kind, each in self.record.ids.items() if written.get(kind) != each]
        text = f"the journal does not have {' and '.join(missing) or 'what the server answered'} yet"
        resource = next(iter(self.record.ids), None)  # a run belongs to the first one
        if resource is None or resource in written:
            return text
        adopted = f"`asyncmig adopt {self.record.external_id} {self.record.ids[resource]}`"
        return f"{text}: once it can be written, {adopted}"

    def _changed(self, kind: Entry, changes: dict[str, object]) -> R:
        record = self.record
        known = type(record).__struct_fields__
        if record.last_failure is not None and kind not in _STOPPED:
            over = msgspec.structs.replace(record.last_failure, is_over=True)
            record = msgspec.structs.replace(record, last_failure=over)
        return msgspec.structs.replace(
            record, **{name: value for name, value in changes.items() if name in known}
        )

    def owner(self) -> Owner:
        """Return the owner of the requests of this migration; it records their failures."""
        return Owner(self.record.external_id, self._note_attempt)

    async def _note_attempt(self, event: AttemptFailed | Recovered) -> None:
        """Write a failed attempt, or its later success, to the journal for `status` and `show`.

        Nothing is written while another entry is being written or waits for the journal. A journal error does not
        end the attempt: the next step needs the journal and reports the error.
        """
        if self._writing.locked() or self.unwritten:
            return
        try:
            if isinstance(event, AttemptFailed):
                await self.write("retrying", last_failure=LastFailure.of(event))
            else:
                await self.write("recovered", attempts=event.attempts)
        except JournalError as error:
            _log.warning("%s: a failed attempt is not in the journal: %s", self.record.external_id, error)

    def begin(self, step: Step, detail: str = "") -> None:
        """Set the present step and emit it as an event."""
        self.step = step
        self.tell(step, detail)

    def tell(self, step: Step | OutcomeName, detail: str = "") -> None:
        """Emit the step as an event of the session."""
        event = MigrationChanged(
            at=asyncio.get_running_loop().time(),
            external_id=self.record.external_id,
            ids=self.record.ids,
            step=step,
            detail=detail,
        )
        self._context.events.emit(event)

    def outcome_fields(self) -> OutcomeFields:
        """Return the fields of every outcome."""
        return {
            "external_id": self.record.external_id,
            "name": self.record.name,
            "ids": self.record.ids,
            "seconds": asyncio.get_running_loop().time() - self._started,
        }

    async def retry_while_away(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run a step that is safe to repeat; repeat it while the server is unavailable. See `while_away`."""
        attempts = self.while_away()
        while True:
            async with attempts:
                return await step()

    def while_away(self) -> TimedAttempts:
        """Return the attempts of a step that is safe to repeat, for at most `retry_seconds` seconds."""
        return TimedAttempts(
            self._context.events,
            self._kind.DOWNLOAD,
            seconds=self._retry_seconds,
            on=TRANSIENT,
            unless=self._is_final,
        )

    def _is_final(self, error: Exception) -> bool:
        """Return whether a repeat would get the same response. Each upload has a URL of its own, so it may differ."""
        if isinstance(error, TruncatedDownload):
            return error.is_final
        if not isinstance(error, ApiError) or error.endpoint == self._kind.PUT_BYTES.template:
            return False
        return error.status in FINAL


def seconds_since(at: float) -> float:
    """Return the seconds of the loop's clock since a wall-clock time, which may be of another process."""
    return max(0.0, wall_clock() - at) * loop_speed(asyncio.get_running_loop())
