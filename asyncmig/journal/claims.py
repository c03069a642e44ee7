"""Claims: which company this journal holds, and the SQL for it that SQLite and PostgreSQL share.

A company belongs to a task of this process if two things agree: its row names this journal's instance, and
`ClaimStore` knows the token as one that was handed out and not given back. A row of which only the first holds is a
stray: its release failed, its claim was committed without an answer, or the database lost the release (a standby
that lagged was promoted). A stray is free for this journal at once, and each heartbeat gives strays up for everybody.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, final

from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.journal.lease import Holder

__all__ = ["ClaimStore", "ClaimedRow", "Row", "Rows", "Sighting", "WriteOp"]

_log = logging.getLogger("asyncmig.journal")
Row = tuple[object, ...]
# A database that lost its latest commits may give the number of a row to another company: hence the name, too.
_WRITE = "UPDATE companies SET state = ? WHERE id = ? AND external_id = ? AND token = ? AND holder = ?"
_RELEASE = "UPDATE companies SET holder = NULL WHERE id = ? AND external_id = ? AND token = ? AND holder = ?"


@final
@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """A company that was claimed: its row, and the token that a write has to show."""

    external_id: str
    row: int
    token: int
    state: bytes | None


@final
@dataclass(frozen=True, slots=True)
class Sighting:
    """What the database knows of a holder."""

    holder: Holder
    text: str
    """The holder and when it was last seen, for an error."""
    is_alive: bool
    """Whether its lease still protects what it holds."""


class WriteOp(Protocol):
    """A part of a transaction, which somebody waits for."""

    def attempt(self) -> None:
        """Do it, inside the transaction, and keep the result."""
        ...

    def fail(self, error: JournalError) -> None:
        """It was not done."""
        ...


class Rows(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Row | None: ...
    def fetchall(self) -> Sequence[Row]: ...


class ClaimStore(ABC):
    """What is done inside a transaction: claim, write, release. A subclass adds its database's connection and clock.

    All methods run in the one thread that writes.
    """

    __slots__ = ("_holder", "_label", "_new", "_owned", "_place")
    _COMPANY: ClassVar[str]
    """The query for a company's row: its number, token, state as bytes, and holder."""

    def __init__(self, place: str, label: str) -> None:
        """`place`: what errors call the journal. `label`: what the errors of other processes call this one."""
        self._place, self._label = place, label
        self._holder = Holder.here(label)
        self._owned: dict[str, int] = {}
        """The token of each company that a task of this process holds."""
        self._new: dict[str, int] = {}
        """Tokens of the transaction under way; `_owned` gets them once it is committed."""

    @abstractmethod
    def _run(self, sql: str, *values: object) -> Rows:
        """Run a statement whose parameters are written as `?`."""

    @abstractmethod
    def _announce(self) -> None:
        """Make sure that the database knows this holder."""

    @abstractmethod
    def _append(self, held: ClaimedRow, kind: str, detail: bytes) -> None:
        """Add an event."""

    @abstractmethod
    def _look_up(self, instance: str) -> Sighting | None:
        """Return what the database knows of a holder; None if nothing."""

    # Steps

    def claim(self, external_id: str) -> ClaimedRow:
        """Take a company, whether it is known or not. Raises `CustomerHeld`. For use in a step."""
        self._run("INSERT INTO companies (external_id) VALUES (?) ON CONFLICT DO NOTHING", external_id)
        found = self._company(external_id)
        assert found is not None
        row, token, state, holder = found
        self._check_free(external_id, holder)
        self._announce()
        self._run(
            "UPDATE companies SET token = ?, holder = ? WHERE id = ?", token + 1, self._holder.instance, row
        )
        self._new[external_id] = token + 1
        return ClaimedRow(external_id, row, token + 1, state)

    def write(self, held: ClaimedRow, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state. Raises `CustomerHeld` if it was taken over. For use in a step."""
        changed = self._run(_WRITE, state, *self._proof(held))
        if changed.rowcount != 1:
            raise CustomerHeld(self._place, held.external_id, self._successor(held))
        self._append(held, kind, detail)

    def release(self, held: ClaimedRow) -> None:
        """Give a company up, if it is still held. For use in a step."""
        self.disown(held)
        self._run(_RELEASE, *self._proof(held))

    def disown(self, held: ClaimedRow) -> None:
        """Note that no task of this process holds the company any more, whatever its row says."""
        for tokens in (self._owned, self._new):
            if tokens.get(held.external_id) == held.token:
                del tokens[held.external_id]

    # For subclasses

    def _give_up_strays(self) -> None:
        """Give up every company whose row names this instance and which none of its tasks holds."""
        held = self._run(
            "SELECT id, external_id, token FROM companies WHERE holder = ?", self._holder.instance
        )
        for row, external_id, token in held.fetchall():
            if token not in (self._owned.get(str(external_id)), self._new.get(str(external_id))):
                self._run("UPDATE companies SET holder = NULL WHERE id = ?", row)

    def _give_up_all(self) -> None:
        """Give up every company, and forget this holder."""
        self._run("UPDATE companies SET holder = NULL WHERE holder = ?", self._holder.instance)
        self._run("DELETE FROM holders WHERE instance = ?", self._holder.instance)

    def _check_free(self, external_id: str, instance: str | None) -> None:
        if instance is not None and instance != self._holder.instance:
            seen = self._look_up(instance)
            if seen is not None and seen.is_alive:
                raise CustomerHeld(self._place, external_id, seen.text)
            _log.warning(
                "journal %s: %s is taken over from %s", self._place, external_id, seen and seen.holder
            )
        # What a task of this journal holds stays held, also when all of the process slept past its own lease.
        if external_id in self._owned or external_id in self._new:
            raise CustomerHeld(self._place, external_id, "another task of this journal")

    def _successor(self, held: ClaimedRow) -> str:
        found = self._company(held.external_id)
        instance = found and found[3]
        if instance == self._holder.instance:
            return "another task of this journal"
        seen = None if instance is None else self._look_up(instance)
        return "nobody now, after it was taken over" if seen is None else seen.text

    def _company(self, external_id: str) -> tuple[int, int, bytes | None, str | None] | None:
        found = self._run(self._COMPANY, external_id).fetchone()
        return cast("tuple[int, int, bytes | None, str | None] | None", found)

    def _proof(self, held: ClaimedRow) -> tuple[object, ...]:
        return held.row, held.external_id, held.token, self._holder.instance
