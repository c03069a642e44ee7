"""What a person or a function decides about a parked customer: a tagged union, each case a frozen struct."""

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
    """Go on with what is proposed."""

    answers: Mapping[str, str | Custom] | None = None
    """Answers that replace the proposed ones, by question id: the id of an option, or `Custom` text."""


class Reject(_Case, frozen=True):
    """Do not go on: the run ends as failed."""


class Answer(_Case, frozen=True):
    """Answer the questions of a run."""

    answers: Mapping[str, str | Custom]
    """By question id: the id of an option, or `Custom` text."""


class Credentials(HidesSecrets, _Case, frozen=True):
    """Sign in to the customer's live source. The values are secrets: no repr, error, log or journal shows them."""

    credentials: Mapping[str, object]
    """By field, as the run's request names them."""


class Change(_Case, frozen=True):
    """Change the proposed result."""

    message: str
    """What to change, in words for the provider's agent."""


class Cancel(_Case, frozen=True):
    """Cancel the run."""


Decision = Approve | Reject | Answer | Credentials | Change | Cancel
"""What to do with a parked run. Which cases an API generation supports: `Generation.supported_decisions`."""


def checked_decision(decision: object, supported: Iterable[type[Decision]], api: str) -> Decision:
    """Return a decision. Raises `InvalidInput` for another object, and for a case that the API generation lacks."""
    if not isinstance(decision, Decision):
        raise InvalidInput("decision", decision, "must be a Decision, such as Approve() or Reject()")
    if not isinstance(decision, tuple(supported)):
        names = ", ".join(sorted(case.__name__ for case in supported))
        kind = type(decision).__name__
        raise InvalidInput(
            "decision", kind, f"is not supported by the API generation {api!r}, which has {names}"
        )
    return decision
