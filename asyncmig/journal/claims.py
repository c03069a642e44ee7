"""The claim store: claims, writes and releases inside a transaction, in SQL that SQLite and PostgreSQL share.

A task of this process holds a customer if two conditions are true. The customer's row names this journal's instance.
And the row's token is one that `ClaimStore` gave to a task that has not released it.

If only the first is true, the claim is *orphaned*: its release failed, or the answer to its commit was lost, or the
database lost the release (a lagging standby was promoted). This journal can claim the customer of an orphaned claim
at once, and its next heartbeat releases orphaned claims for all other processes.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, final

from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.journal.lease import Holder, Lease, mark_closed, mark_open
from asyncmig.journal.ports import Instruction

__all__ = ["ClaimStore", "ClaimedRow", "Row", "StatementResult", "WriteOp"]

_log = logging.getLogger("asyncmig.journal")
Row = tuple[object, ...]
_CUSTOMER = "SELECT id, token, {state}, holder FROM companies WHERE external_id = ?"
_HOLDER = "SELECT {holder} FROM holders WHERE instance = ?"
# The external id is compared as well: a database that lost its latest commits may reuse the number of a row.
_INSERT = "INSERT INTO companies (external_id) VALUES (?) ON CONFLICT DO NOTHING"
_WRITE = "UPDATE companies SET state = ? WHERE id = ? AND external_id = ? AND token = ? AND holder = ?"
_RELEASE = "UPDATE companies SET holder = NULL WHERE id = ? AND external_id = ? AND token = ? AND holder = ?"
_INSTRUCT = "UPDATE companies SET wanted = ?, instruction = ? WHERE external_id = ?"
_FULFILLED = """UPDATE companies SET wanted = NULL, instruction = NULL
    WHERE external_id = ? AND wanted = ? AND instruction = ?"""
_FORGET = "DELETE FROM companies WHERE id = ? AND external_id = ? AND token = ? AND holder = ?"


@final
@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """The row of a claimed customer, with the token that a write must present."""

    external_id: str
    row: int
    token: int
    state: bytes | None


class WriteOp(Protocol):
    """One operation of a transaction. Operations of several callers share a transaction."""

    def attempt(self) -> None:
        """Run inside the transaction, and keep the result."""
        ...

    def fail(self, error: JournalError) -> None:
        """Keep the error: the operation had no effect."""
        ...


class StatementResult(Protocol):
    """The result of a statement, as the cursors of both databases offer it."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Row | None: ...
    def fetchall(self) -> Sequence[Row]: ...


class ClaimStore(ABC):
    """The claims of a journal in a database. Subclasses add the SQL dialect, the transaction and the clock.

    It has the only connection of the journal that writes. `read` and `lease_in` may run in any thread, all other
    methods in the writer's thread only.
    """

    __slots__ = ("_holder", "_is_registered", "_label", "_new", "_owned", "_taken_over", "place")
    DIALECT: ClassVar[Mapping[str, str]]
    """The parts of queries in which the databases differ.

    - `state`, `detail`: these columns as bytes.
    - `at`: the time of an event as text.
    - `holder`: the columns of a holder for `lease_in`; the first one is its instance.
    - `limit`: the parameter of `LIMIT`; None means all rows.
    - `events_of`: the join of a customer and its events, which reads no event of another customer.
    """
    _DATABASE_ERRORS: ClassVar[tuple[type[Exception], ...]]
    """Errors that fail the whole transaction; includes `JournalError`."""
    _OP_ERRORS: ClassVar[tuple[type[Exception], ...]]
    """Errors that fail one operation. The others of the transaction continue."""

    def __init__(self, place: str, label: str) -> None:
        """`place`: the journal's name in errors. `label`: the name of this process in the errors of other
        processes."""
        self.place: str = place
        self._label = label
        self._holder = Holder.here(label)
        self._owned: dict[str, int] = {}
        """The token of each customer that a task of this process holds."""
        self._new: dict[str, int] = {}
        """The tokens of the current transaction; `_owned` gets them after the commit."""
        self._taken_over: dict[str, Holder | None] = {}
        """The former holders of customers that the current transaction takes over; None for an unknown one."""
        self._is_registered = False
        """Whether the current transaction has registered this holder."""

    # The dialect

    @abstractmethod
    def open(self) -> None:
        """Connect, and create or upgrade the tables. Raises `JournalError`."""

    @abstractmethod
    def close(self) -> None:
        """Release all claims and disconnect; does nothing if the store is closed."""

    @abstractmethod
    def read(self, sql: str, *values: object) -> Sequence[Row]:
        """Run a query on a connection of its own, which does not block writers. Raises `JournalError`."""

    @staticmethod
    @abstractmethod
    def lease_in(row: Row) -> Lease:
        """Return the holder in the columns `holder` of `DIALECT`, with the present age of its heartbeat."""

    @abstractmethod
    def renew(self) -> None:
        """Renew this holder's lease if that is due. Does nothing if the store is closed."""

    @abstractmethod
    def _commit(self, ops: Sequence[WriteOp]) -> None:
        """Call `_apply` in a transaction, renew the lease if that is due, and commit."""

    @abstractmethod
    def _savepoint(self) -> AbstractContextManager[object]:
        """Return a context that undoes its statements if it ends with an error."""

    @abstractmethod
    def _run(self, sql: str, *values: object) -> StatementResult:
        """Run a statement whose parameters are written as `?`."""

    @abstractmethod
    def _explain(self, error: Exception) -> JournalError:
        """Return the error that callers see: `JournalUnavailable` if the same call may succeed later."""

    @abstractmethod
    def _register_holder(self) -> None:
        """Ensure that the database has a record of this holder."""

    @abstractmethod
    def _append(self, held: ClaimedRow, kind: str, detail: bytes) -> None:
        """Append an event."""

    @abstractmethod
    def _delete_events(self, held: ClaimedRow) -> None:
        """Delete the events of a customer. Their numbers are not used again."""

    # Transactions

    def transact(self, ops: Sequence[WriteOp]) -> None:
        """Run all operations in one transaction.

        An operation that fails by itself has no effect, and the others are committed. If the transaction fails, no
        operation has an effect, and all of them fail with `JournalError`.
        """
        try:
            self._commit(ops)
        except self._DATABASE_ERRORS as error:
            failure = self._explain(error)
            for op in ops:  # one error for each, because their callers raise them in different tasks
                op.fail(type(failure)(self.place, failure.reason))
            if not ops:
                _log.warning("journal %s: the lease was not renewed: %s", self.place, failure.reason)
        else:
            self._owned.update(self._new)
            for external_id, before in self._taken_over.items():
                _log.warning(
                    "journal %s: %s is taken over from %s",
                    self.place,
                    external_id,
                    before or "an unknown holder",
                )

    def _apply(self, ops: Sequence[WriteOp]) -> None:
        """Run each operation; one that fails by itself has no effect."""
        self._new.clear()
        self._taken_over.clear()
        self._attempt(ops)

    def _attempt(self, ops: Sequence[WriteOp]) -> None:
        """Run operations together, and if one of them fails, again each by itself."""
        new, self._is_registered = self._new.copy(), False
        try:
            with self._savepoint():
                for op in ops:
                    op.attempt()
        except self._OP_ERRORS as error:
            self._new = new
            if len(ops) == 1:
                ops[0].fail(self._explain(error))
            else:
                for op in ops:
                    self._attempt([op])

    # Operations

    def claim(self, external_id: str) -> ClaimedRow:
        """Claim a customer, known or new. Raises `CustomerHeld`."""
        self._run(_INSERT, external_id)
        found = self._find(external_id)
        assert found is not None
        row, token, state, holder = found
        self._check_free(external_id, holder)
        if not self._is_registered:
            self._register_holder()
            self._is_registered = True
        self._run(
            "UPDATE companies SET token = ?, holder = ? WHERE id = ?", token + 1, self._holder.instance, row
        )
        self._new[external_id] = token + 1
        return ClaimedRow(external_id, row, token + 1, state)

    def write(self, held: ClaimedRow, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state. Raises `CustomerHeld` if the customer was taken over."""
        self._run_once(held, _WRITE, state)
        self._append(held, kind, detail)

    def instruct(self, external_id: str, instruction: Instruction) -> None:
        """Set the instruction about a customer, known or new."""
        self._run(_INSERT, external_id)
        self._run(_INSTRUCT, instruction.wanted, instruction.detail, external_id)

    def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        """Delete the instruction about a customer, unless another one has replaced it."""
        self._run(_FULFILLED, external_id, instruction.wanted, instruction.detail)

    def forget(self, held: ClaimedRow) -> None:
        """Delete a customer and its events. Raises `CustomerHeld` if the customer was taken over."""
        self._run_once(held, _FORGET)
        self._delete_events(held)
        self.mark_released(held)

    def release(self, held: ClaimedRow) -> None:
        """Release a customer if the claim still holds it."""
        self.mark_released(held)
        self._run(_RELEASE, *self._claim_values(held))

    def mark_released(self, held: ClaimedRow) -> None:
        """Record that no task of this process holds the customer any more, whatever its row says."""
        for tokens in (self._owned, self._new):
            if tokens.get(held.external_id) == held.token:
                del tokens[held.external_id]

    # For subclasses

    def _start_holding(self) -> None:
        """Begin as a new holder, because a forked process must not use the holder of its parent."""
        self._holder = Holder.here(self._label)
        self._owned.clear()
        mark_open(self._holder)

    def _stop_holding(self) -> None:
        """Let other journals of this process take over the claims at once, even if they cannot be released."""
        mark_closed(self._holder)

    def _release_orphans(self) -> None:
        """Release each orphaned claim; see the module's docstring."""
        held = self._run(
            "SELECT id, external_id, token FROM companies WHERE holder = ?", self._holder.instance
        )
        for row, external_id, token in held.fetchall():
            if token not in (self._owned.get(str(external_id)), self._new.get(str(external_id))):
                self._run("UPDATE companies SET holder = NULL WHERE id = ?", row)

    def _release_all(self) -> None:
        """Release every customer and delete this holder."""
        self._run("UPDATE companies SET holder = NULL WHERE holder = ?", self._holder.instance)
        self._run("DELETE FROM holders WHERE instance = ?", self._holder.instance)

    def _warn_not_released(self, error: Exception) -> None:
        reason = self._explain(error).reason
        _log.warning("journal %s: its claims were not released and must expire: %s", self.place, reason)

    def _check_free(self, external_id: str, instance: str | None) -> None:
        if instance is not None and instance != self._holder.instance:
            lease = self._lease_of(instance)
            if lease is not None and not lease.is_over:
                raise CustomerHeld(self.place, external_id, str(lease))
            self._taken_over[external_id] = None if lease is None else lease.holder
        # A claim of this journal stays valid even if the whole process was suspended beyond its own lease.
        if external_id in self._owned or external_id in self._new:
            raise CustomerHeld(self.place, external_id, "another task of this journal")

    def _current_holder(self, held: ClaimedRow) -> str:
        found = self._find(held.external_id)
        instance = found and found[3]
        if instance == self._holder.instance:
            return "another task of this journal"
        lease = None if instance is None else self._lease_of(instance)
        return "no process now; another one took it over" if lease is None else str(lease)

    def _lease_of(self, instance: str) -> Lease | None:
        row = self._run(_HOLDER.format_map(self.DIALECT), instance).fetchone()
        return None if row is None else self.lease_in(row)

    def _find(self, external_id: str) -> tuple[int, int, bytes | None, str | None] | None:
        found = self._run(_CUSTOMER.format_map(self.DIALECT), external_id).fetchone()
        return cast("tuple[int, int, bytes | None, str | None] | None", found)

    def _run_once(self, held: ClaimedRow, sql: str, *values: object) -> None:
        """Run a statement that changes a claimed row. Raises `CustomerHeld` if the customer was taken over."""
        if self._run(sql, *values, *self._claim_values(held)).rowcount != 1:
            raise CustomerHeld(self.place, held.external_id, self._current_holder(held))

    def _claim_values(self, held: ClaimedRow) -> tuple[object, ...]:
        return held.row, held.external_id, held.token, self._holder.instance
