"""Count what a client did twice, and what it must not do."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

from asyncmig.simulator.migrations.migration import Migration
from asyncmig.simulator.server.ledger import BaseVerdict, Ledger

__all__ = ["Refused", "Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(BaseVerdict):
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    _MEANINGS: ClassVar = {
        "executed_twice": "executes of rows that were written before",
        "generated_twice": "generates although a preview of the same files was there or was executed",
        "uploaded_twice": "files uploaded twice",
        "duplicate_migrations": "migrations created twice for one customer",
        "over_the_limit": "requests over the rate limit (429)",
        "starts_beyond_three": "starts while the account's own runs took all places",
        "key_leaks": "requests that sent the API key to another host",
        "after_refusal": "requests after the API key was refused (401)",
        "malformed": "malformed requests (400)",
    }

    executed_twice: int
    """Executes after one that wrote rows, without new files or an update in between."""
    generated_twice: int
    """Generates although a preview of the same files was there or was executed."""
    uploaded_twice: int
    """Files with the name and content of an earlier one of the migration."""
    duplicate_migrations: int
    """Migrations with the name and source of another."""
    over_the_limit: int
    """Requests that were refused because of a rate limit of requests."""
    starts_beyond_three: int
    """Starts that were refused while the account's own runs took all places."""
    key_leaks: int
    """Requests that carried the API key to another host."""
    after_refusal: int
    """Requests after the first 401."""
    malformed: int
    """Requests with a 400, except those that a client cannot foresee, such as that of a refused row filter."""


@dataclass(slots=True)
class Refused:
    """How often requests were refused for reasons that the statuses in the ledger do not tell apart."""

    over_the_limit: int = 0
    starts_beyond_three: int = 0
    malformed: int = 0


def judge(migrations: Collection[Migration], ledger: Ledger, refusals: Refused) -> Verdict:
    """Return what a client did wrong."""
    names = Counter((each.name, each.source) for each in migrations)
    return Verdict(
        executed_twice=sum(_repeated(each, "execute") for each in migrations),
        generated_twice=sum(_repeated(each, "generate") for each in migrations),
        uploaded_twice=sum(_uploaded_twice(each) for each in migrations),
        duplicate_migrations=sum(count - 1 for count in names.values()),
        over_the_limit=refusals.over_the_limit,
        starts_beyond_three=refusals.starts_beyond_three,
        key_leaks=ledger.key_leaks,
        after_refusal=ledger.after_refusal,
        malformed=refusals.malformed,
    )


def _repeated(migration: Migration, kind: str) -> int:
    return sum(phase.kind == kind and phase.is_repeat for run in migration.runs for phase in run.phases)


def _uploaded_twice(migration: Migration) -> int:
    digests = Counter((file.name, sha256(file.content or b"").digest()) for file in migration.arrived)
    return sum(count - 1 for count in digests.values())
