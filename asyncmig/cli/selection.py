"""`--select`: which customers of a manifest a command is about."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from asyncmig.companies.workflow.record import Record
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.status import OUTCOMES, standing

__all__ = ["UNFINISHED", "only", "select", "statuses_of"]

UNFINISHED: Final = "status:failed,parked,unknown,pending"
_STATUS = "status:"


def select(text: str, manifest: Manifest, statuses: Mapping[str, str]) -> frozenset[str]:
    """Return the customers that `status:failed,parked` or a list of external ids stands for.

    A customer without a status is pending. Raises `InvalidInput` for a status or an id that
    does not exist, and for a selection of nothing.
    """
    words = [word.strip() for word in text.removeprefix(_STATUS).split(",") if word.strip()]
    if not words:
        raise InvalidInput("select", text, "selects nothing: write status:failed,parked or external ids")
    known = [customer.external_id for customer in manifest.customers]
    if not text.startswith(_STATUS):
        _check(words, known, f"is not in {manifest.path}")
        return frozenset(words)
    _check(words, OUTCOMES, f"is no status; there are {', '.join(OUTCOMES)}")
    return frozenset(each for each in known if statuses.get(each, "pending") in words)


def only(manifest: Manifest, selected: frozenset[str] | None) -> Manifest:
    """Return a manifest with the selected customers alone; None selects all of them."""
    if selected is None:
        return manifest
    chosen = tuple(customer for customer in manifest.customers if customer.external_id in selected)
    return replace(manifest, customers=chosen)


def statuses_of(records: Mapping[str, Record]) -> dict[str, str]:
    """Return the status of each customer that a journal knows."""
    return {external_id: standing(record).outcome for external_id, record in records.items()}


def _check(words: Sequence[str], known: Sequence[str], reason: str) -> None:
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            raise InvalidInput("select", word, f"{reason}; is {near[0]!r} meant?" if near else reason)
