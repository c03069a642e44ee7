"""Judge a client: the faults in the ledger, and those that only the companies show."""

from collections import Counter
from collections.abc import Collection

from asyncmig.simulator.companies.company import Company
from asyncmig.simulator.server.ledger import Ledger, Verdict

__all__ = ["judge"]


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
    return ledger.verdict(
        duplicate_imports=duplicates,
        duplicate_companies=sum(count - 1 for count in names.values()),
        duplicate_exports=exports,
        unaccounted=unread,
    )
