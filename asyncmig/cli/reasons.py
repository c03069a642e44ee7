"""Why customers stand as they do: those of the same reason together."""

import re
from collections import defaultdict
from collections.abc import Sequence

from asyncmig.cli.report import CompanyRow
from asyncmig.cli.terminal import clean
from asyncmig.status import OUTCOMES

__all__ = ["by_reason", "reason"]

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def by_reason(companies: Sequence[CompanyRow]) -> list[list[CompanyRow]]:
    """Return customers of one outcome and reason together, the good ones first; numbers make no difference."""
    groups: defaultdict[tuple[str, str], list[CompanyRow]] = defaultdict(list)
    for company in companies:
        groups[company.outcome, _NUMBER.sub("#", reason(company))].append(company)
    return sorted(groups.values(), key=lambda group: (OUTCOMES.index(group[0].outcome), -len(group)))


def reason(company: CompanyRow) -> str:
    """Return why a customer is not delivered, as one line."""
    return "" if company.outcome == "delivered" else clean(company.error or "")
