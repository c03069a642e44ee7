"""Judge a client: what it did twice, and what it should not have done at all."""

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from hashlib import sha256

from asyncmig.simulator.migrations.migration import Migration
from asyncmig.simulator.server.ledger import Ledger

__all__ = ["Refused", "Verdict", "judge"]

_MEANINGS = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

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

    def __str__(self) -> str:
        found = [f"{_MEANINGS[name]}: {count}" for name, count in asdict(self).items() if count]
        return "; ".join(found) or "no faults"


@dataclass(slots=True)
class Refused:
    """How often requests were refused for reasons that the statuses in the ledger do not tell apart."""

    over_the_limit: int = 0
    starts_beyond_three: int = 0
    malformed: int = 0


def judge(migrations: Collection[Migration], ledger: Ledger, refusals: Refused) -> Verdict:
    """Return what a client did wrong."""
    statuses = [entry.status for entry in ledger.entries]
    refused = statuses.index(401) if 401 in statuses else len(statuses)
    names = Counter((each.name, each.source) for each in migrations)
    return Verdict(
        executed_twice=sum(_repeated(each, "execute") for each in migrations),
        generated_twice=sum(_repeated(each, "generate") for each in migrations),
        uploaded_twice=sum(_uploaded_twice(each) for each in migrations),
        duplicate_migrations=sum(count - 1 for count in names.values()),
        over_the_limit=refusals.over_the_limit,
        starts_beyond_three=refusals.starts_beyond_three,
        key_leaks=ledger.key_leaks,
        after_refusal=max(0, len(statuses) - refused - 1),
        malformed=refusals.malformed,
    )


def _repeated(migration: Migration, kind: str) -> int:
    return sum(phase.kind == kind and phase.is_repeat for run in migration.runs for phase in run.phases)


def _uploaded_twice(migration: Migration) -> int:
    digests = Counter((file.name, sha256(file.content or b"").digest()) for file in migration.arrived)
    return sum(count - 1 for count in digests.values())
