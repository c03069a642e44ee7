"""Count the faults of a client: those in the ledger, and those that only the companies show."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from asyncmig.simulator.companies.company import Company
from asyncmig.simulator.server.ledger import BaseVerdict, Ledger

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(BaseVerdict):
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    _MEANINGS: ClassVar = {
        "over_the_limit": "requests over the rate limit (429)",
        "key_leaks": "requests that sent the API key to the storage's host",
        "duplicate_imports": "imports of rows that the company already had",
        "duplicate_companies": "companies created twice for one customer",
        "duplicate_exports": "exports started twice",
        "polls_after_the_end": "reads of a run that was known to have ended",
        "hasty_polls": "reads of a run too soon after the one before",
        "blind_decisions": "decisions about questions that were not read",
        "after_refusal": "requests after the API key was refused (401)",
        "malformed": "malformed requests (400)",
        "unaccounted": "imports whose end was never read",
    }

    over_the_limit: int
    """The number of requests with a 429."""
    key_leaks: int
    """Requests that carried the API key to the storage's host."""
    duplicate_imports: int
    """Imports of rows that the company already had."""
    duplicate_companies: int
    duplicate_exports: int
    """Exports of a company with the mode and selection of an earlier one, under another key."""
    polls_after_the_end: int
    """Reads of a run after one that showed its end."""
    hasty_polls: int
    """Reads of a run less than `Ledger.shortest_pause` seconds after the one before."""
    blind_decisions: int
    """Decisions about a parked run that had not been read."""
    after_refusal: int
    """Requests after the first 401."""
    malformed: int
    """Requests with a 400."""
    unaccounted: int
    """Imports whose end was never read, for example because the test ended before."""


def judge(companies: Collection[Company], ledger: Ledger, now: float) -> Verdict:
    """Return the number of duplicates, of unread ends, and of the faults in the ledger."""
    unread = duplicates = exports = 0
    for company in companies:
        asked = [payload for key, (payload, _) in company.keys.items() if key.startswith("e")]
        exports += len(asked) - len(set(asked))
        good: set[str] = set()
        for run in company.runs.values():
            run.status(now)
            unread += run.ended and run.id not in ledger.detection
            inserted = run.failure is None and not run.canceled
            duplicates += inserted and run.digest in good
            good |= {run.digest} if inserted else set()
    names = Counter((company.name, company.source) for company in companies)
    shown = {(run_id, park) for run_id, readings in ledger.readings.items() for _, park in readings}
    times = [[at for at, _ in readings] for readings in ledger.readings.values()]
    return Verdict(
        over_the_limit=ledger.over_the_limit,
        key_leaks=ledger.key_leaks,
        duplicate_imports=duplicates,
        duplicate_companies=sum(count - 1 for count in names.values()),
        duplicate_exports=exports,
        polls_after_the_end=sum(
            at > ended for run_id, ended in ledger.end_read_at.items() for at, _ in ledger.readings[run_id]
        ),
        hasty_polls=sum(
            late - early < ledger.shortest_pause for reads in times for early, late in pairwise(reads)
        ),
        blind_decisions=sum(decision not in shown for decision in ledger.decisions),
        after_refusal=ledger.after_refusal,
        malformed=sum(entry.status == 400 for entry in ledger.entries),
        unaccounted=unread,
    )
