"""What the imports of one customer do, whatever its files contain: for the tests of a service."""

from dataclasses import dataclass
from typing import TypeAlias, cast, final

from asyncmig.simulator.server.messages import Json

__all__ = ["Ask", "Fails", "Parks", "Script"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question of a parked import. `destructive`: the proposed patch deletes rows."""

    prompt: str
    options: tuple[str, ...] = ("Do as proposed", "Leave it as it is")
    allow_custom: bool = False
    destructive: bool = False


@final
class Parks:
    """Each import of the customer parks once, with these questions: texts, or `Ask`.

    An approval completes the import with all its rows, whatever the answers; a rejection fails it. Raises
    `ValueError` if there is no question.
    """

    __slots__ = ("asks",)

    def __init__(self, *questions: str | Ask) -> None:
        if not questions:
            raise ValueError("Parks() needs at least one question")
        if not all(isinstance(cast(object, each), str | Ask) for each in questions):
            raise ValueError(f"Parks{questions}: a question must be a text or an `Ask`")
        self.asks: tuple[Ask, ...] = tuple(
            Ask(prompt=each) if isinstance(each, str) else each for each in questions
        )

    def attention(self, sheet_id: str) -> Json:
        """Return the questions and the proposed patch, as a read of the run shows them."""
        return {
            "questions": [
                {
                    "id": f"fq{n}",
                    "prompt": ask.prompt,
                    "target": {"sheet_id": sheet_id},
                    "options": [
                        {"id": chr(ord("a") + place), "label": label}
                        for place, label in enumerate(ask.options)
                    ],
                    "allow_custom": ask.allow_custom,
                }
                for n, ask in enumerate(self.asks)
            ],
            "proposed_patch": {
                "summary": f"{len(self.asks)} questions",
                "actions": [
                    {"action": "delete_invalid_rows" if ask.destructive else "keep", "sheet_id": sheet_id}
                    for ask in self.asks
                ],
            },
        }


@final
@dataclass(frozen=True, slots=True)
class Fails:
    """The customer's imports fail with this text: the first `times` of them, or all."""

    error: str
    times: int | None = None


Script: TypeAlias = Parks | Fails
"""What the imports of one customer do."""
