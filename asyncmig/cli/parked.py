"""A parked import on the terminal: what it asks, what is proposed, and what of it destroys rows."""

from collections.abc import Iterator, Mapping

from rich.console import Console

from asyncmig.cli.terminal import clean, counted, say
from asyncmig.companies.spec import Record
from asyncmig.companies.wire import Action, NeedsAttention, Question

__all__ = ["describe", "print_parked"]

_SAMPLES = 5


def print_parked(console: Console, record: Record, attention: NeedsAttention, *, place: str = "") -> None:
    """Print all that there is to know for a decision."""
    count = counted(len(attention.questions), "question")
    say(console, f"\n{place}{record.external_id}  {clean(record.name, 100)}: {count}", "bold")
    sheets = {sheet.id: sheet.name or sheet.id for sheet in record.sheets}
    for question in attention.questions:
        for line in _question(question, sheets):
            say(console, f"  {line}".rstrip())
    for line, destroys in _proposal(attention, sheets):
        say(console, f"  {line}".rstrip(), "red" if destroys else "")


def describe(action: Action, sheets: Mapping[str, str] | None = None) -> str:
    """Return what an action does, in the server's words; sheets are named by `sheets` where it knows them."""
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
            yield f"    concerns {counted(target.affected_count, 'row')}{_because(target.error)}"
        if target.sample_values:
            samples = ", ".join(repr(clean(value, 60)) for value in target.sample_values[:_SAMPLES])
            more = len(target.sample_values) - _SAMPLES
            yield f"    for example {samples}{f' and {more} more' if more > 0 else ''}"
    for number, option in enumerate(question.options, 1):
        yield f"    {number}) {clean(option.id, 60)}  {clean(option.label or '', 200)}".rstrip()
    if question.allow_custom:
        yield "    or your own words"


def _because(error: str | None) -> str:
    return f": {clean(error, 200)}" if error else ""


def _proposal(attention: NeedsAttention, sheets: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    patch = attention.proposed_patch
    yield "", False
    if patch is None:
        yield "The server proposes nothing that can be read: what an approval does, nobody knows.", True
        return
    yield f"Proposed: {clean(patch.summary or 'without a summary', 500)}", False
    for action in patch.actions:
        mark = "!" if action.is_destructive else " "
        note = "   (destroys rows, or may)" if action.is_destructive else ""
        yield f"  {mark} {describe(action, sheets)}{note}", action.is_destructive
