"""The lives of import runs and destination exports, computed from `now` at each read, without timers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeAlias, cast, final

import msgspec

from asyncmig.simulator.companies.tables import Flaw, Table, apply_action, bad_rows, find_flaws
from asyncmig.simulator.companies.variants import Variants
from asyncmig.simulator.server.messages import Filled, Json, Refusal
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.simulator.server.tables import Rows

__all__ = ["Ask", "DecisionIn", "ExportRun", "Fails", "ImportRun", "Parks", "Script"]

PARKS_ABOVE = 0.05
"""A run parks when more than this share of its rows would be dropped or duplicated."""
_PROPOSED = {"unique": "dedup_keep_first", "required": "delete_invalid_rows"}
"""What the patch does, by the kind of flaw; otherwise `keep`."""


class AnswerIn(msgspec.Struct, kw_only=True):
    question_id: Filled
    option_id: str | None = None
    custom: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question of a parked import. `destructive`: the proposed patch deletes rows."""

    prompt: str
    options: tuple[str, ...] = ("Do as proposed", "Leave it as it is")
    allow_custom: bool = False
    destructive: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """The options by their ids: `a`, `b` and so on."""
        return {chr(ord("a") + n): label for n, label in enumerate(self.options)}

    def describe(self, number: int, target: Json) -> Json:
        """Return the question as a read of the run shows it."""
        return {
            "id": f"fq{number}",
            "prompt": self.prompt,
            "target": target,
            "options": [{"id": option_id, "label": label} for option_id, label in self.labels.items()],
            "allow_custom": self.allow_custom,
        }

    def allows(self, answer: AnswerIn) -> bool:
        """Return whether an answer is one of the options, or text of one's own where that is allowed."""
        return self.allow_custom if answer.custom is not None else answer.option_id in self.labels


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


@final
@dataclass(frozen=True, slots=True)
class Fails:
    """The customer's imports fail with this text: the first `times` of them, or all."""

    error: str
    times: int | None = None


Script: TypeAlias = Parks | Fails
"""What the imports of one customer do, whatever its files contain: for the tests of a service."""


class DecisionIn(msgspec.Struct, kw_only=True):
    decision: Literal["approve", "reject"]
    answers: list[AnswerIn] = []


@final
@dataclass(slots=True, kw_only=True)
class ImportRun:
    """One import. `tables`: the company's tables, which it changes when it completes; `failure`: why it cannot
    complete.
    """

    id: str
    created_at: float
    tables: list[Table]
    failure: str | None
    pace: RunDurations
    rng: Random
    variants: Variants = field(default_factory=Variants)
    parks_with: Parks | None = None
    """The questions that it asks once, instead of those about bad cells."""
    inserted: list[tuple[Table, Rows]] = field(default_factory=list[tuple[Table, Rows]])
    digest: str = ""
    """Of the rows that came."""
    parks: int = 0
    """How often it was parked."""
    decided: int = 0
    answers: Mapping[str, AnswerIn] = field(default_factory=dict[str, AnswerIn])
    """The answers of the last decision, by question id."""
    rejected: bool = False
    canceled: bool = False
    runs_from: float = 0.0
    settles_at: float = 0.0
    _settled: str | None = None
    _rows_before: list[tuple[Table, Rows]] = field(default_factory=list[tuple[Table, Rows]])
    """The rows of each table before this import."""
    _asks: list[Ask] = field(default_factory=list[Ask])
    """The last questions."""
    _proposals: list[tuple[Flaw, dict[str, str]]] = field(default_factory=list[tuple[Flaw, dict[str, str]]])
    """What questions about bad cells are about, and what the patch does."""

    def __post_init__(self) -> None:
        fate = self.rng.random()
        if fate < self.variants.zombies:
            self.failure = "Import timed out"
        self.canceled = self.variants.zombies <= fate < self.variants.zombies + self.variants.canceled
        queued, running = self.pace.draw(sum(len(rows) for _, rows in self.inserted), self.rng)
        self.runs_from = self.created_at + queued
        self.settles_at = self.runs_from + running

    def status(self, now: float) -> str:
        """Return the status at `now`, after applying everything that happened until then."""
        if self._settled is None and now >= self.settles_at:
            self._settle()
        lasts = self.variants.park_lasts
        if self._settled == "needs_attention" and lasts is not None and now >= self.settles_at + lasts:
            self._fail("Nobody decided in time")
        if self._settled is not None:
            return self._settled
        return "queued" if now < self.runs_from else self.variants.strange_status or "running"

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._settled in ("completed", "failed", "canceled")

    def _settle(self) -> None:
        if self.failure is not None or self.canceled:
            self._settled = "canceled" if self.canceled else "failed"
            return
        if not self.decided:
            self._insert()
        if self.rejected:
            self._fail("Rejected by a person", keeps_rows=self.variants.rejected_keeps)
        elif self._parks_now():
            self._settled = "needs_attention"
            self.parks += 1
            self._propose()
        else:
            self._settled = "completed"

    def _insert(self) -> None:
        self._rows_before = [(table, table.rows) for table in self.tables]
        for table in self.tables:
            table.rows = [] if self.variants.second_import == "replaces" else [*table.rows]
        for table, rows in self.inserted:
            if table not in self.tables:
                self.tables.append(table)
            table.rows.extend(rows)

    def _fail(self, why: str, *, keeps_rows: bool = False) -> None:
        self._settled, self.failure = "failed", why
        if not keeps_rows:
            self.tables[:] = [table for table, _ in self._rows_before]
            for table, rows in self._rows_before:
                table.rows = rows

    def _parks_now(self) -> bool:
        if self.parks_with is not None:
            return not self.decided
        total, bad = self._counts()
        if self.decided:
            return self.variants.parks_twice and self.decided < 2 and bad > 0
        return bad > PARKS_ABOVE * max(1, total)

    def _propose(self) -> None:
        if self.parks_with is not None:
            self._asks = list(self.parks_with.asks)
            return
        flaws = find_flaws(self.tables)
        self._proposals = [(flaw, self._action(flaw)) for flaw in flaws]
        self._asks = [
            Ask(
                prompt=f"{len(flaw.rows)} cells of {flaw.column} break the rule '{flaw.kind}'. "
                "What shall be done?",
                allow_custom=flaw.kind == "strict",
            )
            for flaw in flaws
        ]

    def _table(self, sheet_id: str) -> Table:
        return next(table for table in self.tables if table.sheet_id == sheet_id)

    def _action(self, flaw: Flaw) -> dict[str, str]:
        schema = self._table(flaw.sheet_id).schema
        assert schema is not None
        column = next(column for column in schema.columns if column.name == flaw.column)
        action = {
            "sheet_id": flaw.sheet_id,
            "column": flaw.column,
            "action": _PROPOSED.get(flaw.kind, "keep"),
        }
        if flaw.kind == "strict" and column.fallback is not None:
            return {**action, "action": "set_value", "value": column.fallback}
        if flaw.kind == "unique":
            action["key_column"] = action.pop("column")
        return action

    def decide(self, approve: bool, answers: Mapping[str, AnswerIn], now: float) -> None:
        """Apply a decision. The patch is applied at once, and the run continues for a while.

        Raises `Refusal` for an answer that no question allows.
        """
        asked = {f"fq{n}": ask for n, ask in enumerate(self._asks)}
        for question_id, given in answers.items():
            if question_id not in asked or not asked[question_id].allows(given):
                raise Refusal(
                    400, f"{question_id}: there is no such question, or it does not allow this answer"
                )
        if approve:
            for n, (flaw, action) in enumerate(self._proposals):
                answer = answers.get(f"fq{n}")
                if answer is not None or not answers or self.variants.unanswered == "proposed":
                    self._apply(flaw, action, answer)
        else:
            self.rejected = True
        self.decided += 1
        self.answers = answers
        self._settled = None
        self.runs_from, self.settles_at = now, now + (self.settles_at - self.created_at) / 2

    def answered(self) -> dict[str, str]:
        """Return the answers of the last decision: label or text by the question's prompt."""
        given = [(ask, self.answers.get(f"fq{n}")) for n, ask in enumerate(self._asks)]
        return {
            ask.prompt: answer.custom or ask.labels.get(answer.option_id or "", "")
            for ask, answer in given
            if answer is not None
        }

    def _apply(self, flaw: Flaw, action: Mapping[str, str], answer: AnswerIn | None) -> None:
        if answer is not None and answer.option_id == "b":
            return
        if answer is not None and answer.custom is not None:
            action = {"action": "set_value", "value": answer.custom}
        what = (flaw.sheet_id, flaw.column, flaw.kind)
        same = [each for each in find_flaws(self.tables) if (each.sheet_id, each.column, each.kind) == what]
        for each in same:  # rows may have gone, and numbers changed, by the actions before
            apply_action(self._table(each.sheet_id), each, action)

    def describe(self, now: float) -> Json:
        """Return the run as a read shows it."""
        status = self.status(now)
        shown: Json = {"status": status}
        if status == "needs_attention":
            rows, bad = self._counts()
            shown["report"] = {"inserted": rows - bad, "invalidCellCount": bad}
            shown["needs_attention"] = self._attention()
        elif status == "canceled":
            shown["error"] = "Canceled by a person"
        elif status == "failed":
            shown["error"] = self.failure
            if self.rejected:
                shown["report"] = {"inserted": 0, "perSheet": [], "invalidCellCount": 0}
        elif status == "completed":
            per_sheet = [
                {"templateName": table.name, "sheetId": table.sheet_id, "rowCount": len(table.rows)}
                for table in self.tables
            ]
            rows, bad = self._counts()
            shown["report"] = {"inserted": rows, "invalidCellCount": bad, "perSheet": per_sheet}
        else:
            done = (now - self.created_at) / max(1.0, self.settles_at - self.created_at)
            is_queued = status == "queued"
            shown["progress_message"] = "Waiting to start" if is_queued else f"Mapping, {done:.0%} done"
        return shown

    def _counts(self) -> tuple[int, int]:
        """Return how many rows the company has, and how many of them have a bad cell."""
        return sum(len(t.rows) for t in self.tables), sum(bad_rows(find_flaws(self.tables)).values())

    def _attention(self) -> Json:
        """Return the questions and the proposed patch, as a read of the parked run shows them."""
        if self.parks_with is not None:
            sheet_id = self.tables[0].sheet_id
            actions = [
                {"action": "delete_invalid_rows" if ask.destructive else "keep", "sheet_id": sheet_id}
                for ask in self._asks
            ]
            questions = [ask.describe(n, {"sheet_id": sheet_id}) for n, ask in enumerate(self._asks)]
            summary = f"{len(questions)} questions"
        else:
            actions = [action for _, action in self._proposals]
            questions = [self._question(n, flaw) for n, (flaw, _) in enumerate(self._proposals)]
            summary = f"{len(actions)} kinds of bad cells"
        return {"questions": questions, "proposed_patch": {"summary": summary, "actions": actions}}

    def _question(self, n: int, flaw: Flaw) -> Json:
        table = self._table(flaw.sheet_id)
        place = table.header.index(flaw.column)
        target: Json = {
            "sheet_id": flaw.sheet_id,
            "column": flaw.column,
            "affected_count": len(flaw.rows),
            "sample_values": [table.rows[row][place] for row in flaw.rows[:5]],
            "error": flaw.kind,
        }
        about = {"context": f"Sheet {table.name}", "relevant_columns": [flaw.column]}
        return {**self._asks[n].describe(n, target), **about}


@final
@dataclass(slots=True, kw_only=True)
class ExportRun:
    """One export. Like an import it is computed from `now`, without timers."""

    id: str
    created_at: float
    mode: str
    tables: list[Table]
    connected: bool
    rng: Random
    variants: Variants
    settles_at: float = 0.0
    _results: list[Json] | None = None

    def __post_init__(self) -> None:
        rows = sum(len(table.rows) for table in self.tables)
        self.settles_at = self.created_at + 5.0 + (1.0 if self.mode == "canary" else 0.1 * rows)

    def status(self, now: float) -> str:
        """Return the status at `now`."""
        if now < self.settles_at:
            return self.variants.strange_status or "running"
        return "completed" if self.connected else "failed"

    def describe(self, now: float) -> Json:
        """Return the run as a read shows it."""
        status = self.status(now)
        if now < self.settles_at:
            return {"status": status, "progress_message": "Writing"}
        if status == "failed":
            return {"status": status, "error": "No destination is connected"}
        if self._results is None:
            self._results = [self._write(table) for table in self.tables for _ in self._chosen(table)]
        failed = sum(not result["ok"] for result in self._results)
        report = {
            "mode": self.mode,
            "total": len(self._results),
            "succeeded": len(self._results) - failed,
            "failed": failed,
            "results": self._results[: self.variants.listed_writes],
        }
        return {"status": status, "report": report}

    def _chosen(self, table: Table) -> list[list[str]]:
        return table.rows[:1] if self.mode == "canary" else table.rows

    def _write(self, table: Table) -> Json:
        fate, odds = self.rng.random(), self.variants
        fails = fate < odds.failed_writes
        hollow = not fails and fate < odds.failed_writes + odds.hollow_writes
        unread = fails or (not hollow and fate > 1.0 - odds.unread_writes)
        return {
            "template_id": table.schema.id if table.schema else None,
            "path": f"/{table.name.lower()}",
            "status": 422 if fails else 201,
            "ok": not fails,
            "error": "the destination refused the record" if fails else None,
            "fields_confirmed": None if unread else not hollow,
        }
