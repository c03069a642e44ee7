"""What the agent asks, scripted or because of what the files contain; and what answers and updates do to rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asyncmig.simulator.migrations.tables import Sheet, find_flaws
from asyncmig.simulator.server.messages import Json
from asyncmig.simulator.server.tables import Rows

__all__ = ["DROP", "KEEP", "Block", "Question", "Script", "apply_update", "ask_about", "without_duplicates"]

KEEP, DROP = "Keep all of them", "Keep the first of each"
"""The labels of the question about duplicates. `DROP` removes rows."""
_DATE = re.compile(r"(\d\d?)/(\d\d?)/\d{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of the agent. `options`: the labels of its answers."""

    text: str
    options: tuple[str, ...] = ()
    allow_custom: bool = True
    context: str | None = None

    def describe(self, question_id: str, *, shown: str) -> Json:
        """Return the question as the API shows it. `shown`: the variant `options`."""
        options = self.options if shown == "listed" else ()
        return {
            "id": question_id,
            "question": self.text,
            **({"context": self.context} if self.context else {}),
            "options": [{"id": f"o{n}", "label": label} for n, label in enumerate(options)],
            "allowCustom": shown != "none-closed" and (self.allow_custom or not options),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Something that a run waits for: answers to `questions`, or credentials with the fields of `credentials`."""

    questions: tuple[Question, ...] = ()
    credentials: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens to one customer. `blocks` and `fails` are by kind: generate, update, clarify, execute.

    Each operation of that kind blocks on its blocks one after the other. The first `times` operations of a kind in
    `fails` end `failed` with this text; None: all of them. `fails` may also have `export`, for export jobs.
    """

    blocks: Mapping[str, Sequence[Block]] = field(default_factory=dict[str, Sequence[Block]])
    fails: Mapping[str, str] = field(default_factory=dict[str, str])
    times: int | None = 1


def ask_about(sheets: Sequence[Sheet], tables: Sequence[tuple[list[str], Rows]]) -> list[Question]:
    """Return the questions that contents raise: duplicates in a unique column, dates that can be read in two ways."""
    found: list[Question] = []
    for sheet in sheets:
        for place, column in enumerate(sheet.schema.columns):
            values = [text for row in sheet.rows if (text := row[place].strip().casefold())]
            doubles = len(values) - len(set(values))
            if column.unique and doubles:
                found.append(_duplicates_question(sheet, column.name, doubles))
    for header, rows in tables:
        for place, name in enumerate(header):
            dates = [m for row in rows if place < len(row) and (m := _DATE.fullmatch(row[place].strip()))]
            if dates and all(int(m[1]) <= 12 and int(m[2]) <= 12 for m in dates):
                found.append(
                    Question(
                        text=f"Is {dates[0][0]} in the column {name} day first or month first?",
                        options=("Day first", "Month first"),
                        context=f"{len(dates)} dates can be read in both ways.",
                    )
                )
    return found


def _duplicates_question(sheet: Sheet, column: str, doubles: int) -> Question:
    """Return the question about rows that share a value."""
    return Question(
        text=f"{doubles} rows of {sheet.schema.name} repeat a value of {column}. Which shall be kept?",
        options=(KEEP, DROP),
        allow_custom=False,
    )


def without_duplicates(sheet: Sheet, decisions: Mapping[str, str]) -> Rows:
    """Return the rows of a sheet after the answers about duplicates."""
    rows = sheet.rows
    for place, column in enumerate(sheet.schema.columns):
        values = [row[place].strip().casefold() for row in rows]
        doubles = len([v for v in values if v]) - len({v for v in values if v})
        text = _duplicates_question(sheet, column.name, doubles).text
        if column.unique and decisions.get(text) == DROP:
            rows = [row for n, row in enumerate(rows) if not values[n] or values[n] not in values[:n]]
    return rows


def apply_update(request: str, sheets: list[Sheet]) -> None:
    """Do what an update asks for: "drop bad rows", or "set COLUMN to VALUE" in every bad cell of a column."""
    flaws = find_flaws(sheets)
    change = re.search(r"set (.+?) to (.+)", request, re.IGNORECASE)
    for sheet in sheets:
        bad = [flaw for flaw in flaws if flaw.slug == sheet.schema.slug]
        if change:
            for flaw in bad:
                if sheet.header[flaw.column].lower() == change[1].strip().lower():
                    sheet.rows[flaw.row][flaw.column] = change[2].strip()
        elif re.search(r"\bdrop\b", request, re.IGNORECASE):
            gone = {flaw.row for flaw in bad}
            sheet.rows = [row for n, row in enumerate(sheet.rows) if n not in gone]
