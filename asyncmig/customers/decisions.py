"""The decisions about a parked customer: a tagged union, each case a frozen struct."""

from collections.abc import Iterable, Mapping

import msgspec

from asyncmig._core.arguments import check_fields
from asyncmig._core.secrets import HidesSecrets
from asyncmig.customers.questions import Custom
from asyncmig.errors import InvalidInput

__all__ = [
    "Answer",
    "Approve",
    "Cancel",
    "Change",
    "Credentials",
    "Decision",
    "Reject",
    "checked_decision",
]


class _Case(msgspec.Struct, frozen=True, tag=str.lower):
    def __post_init__(self) -> None:
        """Raise `InvalidInput` for a field of the wrong type."""
        check_fields(self)


class Approve(_Case, frozen=True):
    """Accept the proposal: the run continues with it."""

    answers: Mapping[str, str | Custom] | None = None
    """Answers by question id, which replace those of the proposal: the id of an option, or `Custom` text."""


class Reject(_Case, frozen=True):
    """Refuse the proposal: the run ends as failed."""


class Answer(_Case, frozen=True):
    """Answer the questions of a run."""

    answers: Mapping[str, str | Custom]
    """By question id: the id of an option, or `Custom` text."""


class Credentials(HidesSecrets, _Case, frozen=True):
    """Credentials for the customer's live source. They are secrets: no repr, error, log or journal contains them."""

    credentials: Mapping[str, object]
    """The values by field; the run's request names the fields."""


class Change(_Case, frozen=True):
    """Have the proposed result changed."""

    message: str
    """The change to make, as text for the provider's agent."""


class Cancel(_Case, frozen=True):
    """Cancel the run."""


Decision = Approve | Reject | Answer | Credentials | Change | Cancel
"""A decision about a parked run. `Generation.supported_decisions` lists the cases that an API generation accepts."""


def checked_decision(decision: object, supported: Iterable[type[Decision]], api: str) -> Decision:
    """Return `decision`. Raises `InvalidInput` for another object, and for a case that is not in `supported`."""
    if not isinstance(decision, Decision):
        raise InvalidInput("decision", decision, "must be a Decision, such as Approve() or Reject()")
    if not isinstance(decision, tuple(supported)):
        names = ", ".join(sorted(case.__name__ for case in supported))
        kind = type(decision).__name__
        raise InvalidInput(
            "decision", kind, f"is not supported by the API generation {api!r}, which has {names}"
        )
    return decision
