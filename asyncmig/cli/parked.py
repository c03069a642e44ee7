"""Print what a parked run asks: its questions, and the server's proposal."""

from collections.abc import Iterator, Mapping

from rich.console import Console

from asyncmig.cli.output import clean, counted, say
from asyncmig.customers.questions import Action, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord

__all__ = ["describe", "print_parked"]


_SAMPLES = 5


def print_parked(
    console: Console, record: CustomerRecord, attention: NeedsAttention, *, place: str = ""
) -> None:
    """Print the questions and the proposal of a parked import. `place`: printed first, such as `[1 of 3] `."""
    count = counted(len(attention.questions), "question")
    say(console, f"\n{place}{record.external_id}  {clean(record.name, 100)}: {count}", "bold")
    sheets = record.sheets
    for question in attention.questions:
        for line in _question(question, sheets):
            say(console, f"  {line}".rstrip())
    for line, destroys in _proposal(attention, sheets):
        say(console, f"  {line}".rstrip(), "red" if destroys else "")


def describe(action: Action, sheets: Mapping[str, str] | None = None) -> str:
    """Return what an action does, in the server's words. `sheets`: names of sheets by id."""
    sheet = (sheets or {}).get(action.sheet_id or "", action.sheet_id if sheets is not None else None)
    where = [clean(part, 60) for part in (sheet, action.column) if part]
    key = f" by {clean(action.key_column, 60)}" if action.key_column else ""
    value = f" = {clean(action.value, 60)!r}" if action.value is not None else ""
    name = clean(action.action or "an action without a name", 60)
    return f"{name}{' on ' if where else ''}{' · '.join(where)}{key}{value}"


def _question(question: Question, sheets: Mapping[str, str]) -> Iterator[str]:
    target = question.target
    where = ""
    if target is not None:
        parts = (sheets.get(target.sheet_id or "", target.sheet_id), target.column)
        where = " · ".join(clean(part, 60) for part in parts if part)
    yield ""
    yield f"{clean(question.id, 40)}  {where}{': ' if where else ''}{clean(question.prompt or '(no text)', 500)}"
    if question.context:
        yield f"    {clean(question.context, 500)}"
    if target is not None:
        if target.affected_count is not None:
            yield f"    affects {counted(target.affected_count, 'row')}{_because(target.error)}"
        if target.sample_values:
            samples = ", ".join(repr(clean(value, 60)) for value in target.sample_values[:_SAMPLES])
            more = len(target.sample_values) - _SAMPLES
            yield f"    for example {samples}{f' and {more} more' if more > 0 else ''}"
    for number, option in enumerate(question.options, 1):
        yield f"    {number}) {clean(option.id, 60)}  {clean(option.label or '', 200)}".rstrip()
    if question.allow_custom:
        yield "    or your own text"


def _because(error: str | None) -> str:
    return f": {clean(error, 200)}" if error else ""


def _proposal(attention: NeedsAttention, sheets: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    patch = attention.proposed_patch
    yield "", False
    if patch is None:
        yield "The server's proposal cannot be read: the effect of an approval is unknown.", True
        return
    yield f"Proposed: {clean(patch.summary or 'without a summary', 500)}", False
    for action in patch.actions:
        mark = "!" if action.is_destructive else " "
        note = "   (destroys rows, or may)" if action.is_destructive else ""
        yield f"  {mark} {describe(action, sheets)}{note}", action.is_destructive
