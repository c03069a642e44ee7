"""The instruction about a customer in the journal, besides its record: to run it, to start it again, or to stop.

An instruction is written before a service answers "accepted". It contains the spec without secrets, so that
another process can continue. It is deleted once the migration has an outcome that a later run would not change.
"""

import hashlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import msgspec

from asyncmig import generations
from asyncmig.customers.outcome import Outcome, Pending
from asyncmig.customers.spec import CheckedSpec, Spec
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import CustomerNotFound, InvalidInput, JournalError
from asyncmig.generations import Generation
from asyncmig.journal import Instruction, JournalPort, Wanted

__all__ = [
    "KnownCustomer",
    "Secrets",
    "Work",
    "fulfil",
    "read_known",
    "read_known_of",
    "spec_with_secrets",
    "take_up",
]

_log = logging.getLogger("asyncmig")
Secrets = Callable[[Spec], Spec | Awaitable[Spec]]
"""Adds the secrets to a spec from the journal, which has none."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an instruction."""

    api: str
    spec: Spec | None = None
    """The spec without secrets; None if the customer's record is sufficient."""
    has_secrets: bool = False
    """Whether secrets were removed from the spec."""
    before: str = ""
    """The digest of the state that is to be started again. If the state is another one, that was done."""
    reject_parked: bool = False
    """Whether a parked run of a canceled customer is rejected."""

    @classmethod
    def of(cls, spec: Spec, api: str) -> Self:
        """Return the work that a spec describes."""
        live = spec.connection
        return cls(
            api=api,
            spec=msgspec.structs.replace(
                spec,
                files=tuple(path.absolute() for path in spec.files),
                connections=None,
                connection=None if live is None else msgspec.structs.replace(live, credentials={}),
            ),
            has_secrets=spec.connections is not None or bool(live and live.credentials),
        )

    def wanted(self, what: Wanted) -> Instruction:
        """Return the instruction to do `what` with this work."""
        return Instruction(what, msgspec.json.encode(self, enc_hook=str))


@final
@dataclass(frozen=True, slots=True)
class KnownCustomer:
    """What a journal knows of a customer: its record, its instruction, or both."""

    external_id: str
    state: bytes | None
    instruction: Instruction | None

    @property
    def wanted(self) -> Wanted | None:
        """The instruction that was not carried out yet; None if there is none."""
        if self.instruction is None:
            return None
        is_begun = self.work.before not in ("", digest_of_state(self.state))
        return "run" if self.instruction.wanted == "retry" and is_begun else self.instruction.wanted

    @property
    def work(self) -> Work:
        """The content of the instruction; without one, or if a newer version wrote it, what the record says."""
        if self.instruction is not None:
            with suppress(ValueError, TypeError, RecursionError):
                return msgspec.json.decode(self.instruction.detail, type=Work, dec_hook=_path)
        return Work(api=generations.DEFAULT if self.state is None else generations.api_of(self.state))

    @property
    def record(self) -> CustomerRecord | None:
        """The customer's record; None if the migration has not begun."""
        return None if self.state is None else generations.read(self.external_id, self.state)

    @property
    def name(self) -> str:
        """The customer's name; empty if it is not known."""
        if (spec := self.work.spec) is not None:
            return spec.name
        return "" if self.record is None else self.record.name

    def spec(self) -> Spec:
        """Return the spec without secrets: that of the instruction, or otherwise the one in the record.

        Raises `InvalidInput` for a record that this version cannot read.
        """
        if (spec := self.work.spec) is not None:
            return spec
        record = self.record
        if record is None or not record.is_readable:
            reason = (
                "cannot be continued without its spec: this version cannot read what the journal has of it"
            )
            raise InvalidInput("external_id", self.external_id, reason)
        return Spec(
            external_id=self.external_id,
            name=record.name,
            source=record.source,
            files=tuple(Path(file.path) for file in record.files),
            templates=record.templates,
        )

    def is_unfinished(self, api: str) -> bool:
        """Return whether there is work left for the API generation `api` without a new command or decision."""
        if self.work.api != api or self.wanted == "cancel":
            return False
        if self.wanted is not None:
            return True
        record = self.record
        if record is None or not record.is_readable:
            return False
        outcome = record.outcome
        return outcome is None or (isinstance(outcome, Pending) and outcome.reason != "canceled")

    def again(self) -> Work:
        """Return the work of starting a failed migration again."""
        return msgspec.structs.replace(self.work, before=digest_of_state(self.state))


async def spec_with_secrets(
    generation: Generation, known: KnownCustomer, secrets: Secrets | None
) -> CheckedSpec:
    """Return the spec of a customer in the journal, with its secrets, and what is wrong with it."""
    try:
        spec = known.spec()
    except InvalidInput as error:
        return Spec(external_id=known.external_id, name="", source="", files=()), error
    if secrets is not None:
        found = secrets(spec)
        spec = await found if inspect.isawaitable(found) else found
    elif known.work.has_secrets and known.state is None:
        reason = "was submitted with secrets, which no journal contains: pass `secrets=` to the Fleet"
        return spec, InvalidInput("external_id", known.external_id, reason)
    return generations.check_spec(generation, spec)


async def take_up(journal: JournalPort, external_id: str) -> Instruction | None:
    """Return the instruction that a migration carries out, for `fulfil`. It replaces an instruction to cancel.

    Raises `JournalError`.
    """
    instruction = await journal.instruction(external_id)
    if instruction is None or instruction.wanted != "cancel":
        return instruction
    await journal.delete_instruction(external_id, instruction)
    return None


async def fulfil(
    journal: JournalPort, external_id: str, instruction: Instruction | None, outcome: Outcome
) -> None:
    """Delete an instruction whose migration has an outcome that a later run would not change.

    If the journal cannot be written, the instruction stays; then a later `resume` finds the outcome.
    """
    if instruction is None or isinstance(outcome, Pending):
        return
    try:
        await journal.delete_instruction(external_id, instruction)
    except JournalError as error:
        _log.warning("%s: the journal still has the instruction to migrate it: %s", external_id, error)


async def read_known(journal: JournalPort, external_id: str) -> KnownCustomer:
    """Return what the journal knows of a customer. Raises `CustomerNotFound`, `JournalError`."""
    state, instruction = await journal.state(external_id), await journal.instruction(external_id)
    if state is None and instruction is None:
        raise CustomerNotFound("external_id", external_id, "is not in the journal")
    return KnownCustomer(external_id, state, instruction)


async def read_known_of(generation: Generation, journal: JournalPort, external_id: str) -> KnownCustomer:
    """Do what `read_known` does; raise `InvalidInput` for a customer of another API generation."""
    known = await read_known(journal, external_id)
    api = known.work.api
    if api != generation.name:
        reason = f"belongs to the API generation {api!r}, and this call uses {generation.name!r}"
        raise InvalidInput("external_id", external_id, reason)
    return known


def digest_of_state(state: bytes | None) -> str:
    """Return a digest of a state."""
    return hashlib.sha256(state or b"").hexdigest()


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
