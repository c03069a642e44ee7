"""Print what a parked run waits for: its questions, credentials, its preview, and what the server proposes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from asyncmig.cli.output import clean, counted, say
from asyncmig.customers.previews import PreviewSheet
from asyncmig.customers.questions import Action, CredentialRequest, NeedsAttention, Question
from asyncmig.customers.status import CustomerRecord

__all__ = ["describe", "print_parked"]

_SAMPLES = 5


def print_parked(
    console: Console,
    record: CustomerRecord,
    attention: NeedsAttention,
    *,
    place: str = "",
    page: Path | None = None,
) -> None:
    """Print what a parked run waits for. `place`: printed first, such as `[1 of 3] `. `page`: its preview."""
    head = f"\n{place}{record.external_id}  {clean(record.name, 100)}: {_title(attention)}"
    say(console, head, "bold")
    sheets, is_patch = record.sheets, attention.kind == "patch"
    for question in attention.questions:
        for line in _question(question, sheets, shows_ids=is_patch):
            say(console, f"  {line}".rstrip())
    lines = _proposal(attention, sheets) if is_patch else ((line, False) for line in _wanted(attention, page))
    for line, destroys in lines:
        say(console, f"  {line}".rstrip(), "red" if destroys else "")


def _title(attention: NeedsAttention) -> str:
    match attention.kind:
        case "credentials":
            return "waits for credentials"
        case "preview":
            return "waits for the approval of its preview"
        case _:
            return counted(len(attention.questions), "question")


def _wanted(attention: NeedsAttention, page: Path | None) -> Iterator[str]:
    """Yield lines about what a run waits for besides answers."""
    if attention.kind == "questions" and not attention.questions:
        why = attention.reason or "the server does not say why"
        yield ""
        yield f"It waits, and shows no question ({clean(why, 300)}): cancel the run, or ask the provider."
    if attention.kind == "credentials":
        yield from _credentials(attention.credentials or CredentialRequest())
    if attention.preview is not None:
        yield ""
        for sheet in attention.preview.sheets:
            yield from _sheet(sheet)
        if not attention.preview.sheets:
            yield "The preview has no sheet."
        if page is not None:
            yield f"All of it: {page}"


def _credentials(request: CredentialRequest) -> Iterator[str]:
    yield ""
    name = request.source_name or request.source_key or "the source"
    yield f"for {clean(name, 100)}{_because(request.reason)}"
    if request.fields:
        yield f"  fields: {', '.join(clean(field, 60) for field in request.fields)}"
    if (guidance := request.guidance) is None:
        return
    if guidance.summary:
        yield f"  {clean(guidance.summary, 500)}"
    for number, step in enumerate(guidance.steps, 1):
        yield f"  {number}. {clean(step, 500)}"
    for link in guidance.links:
        yield f"  {clean(link.label or 'see', 100)}: {clean(link.url or '', 500)}"


def _sheet(sheet: PreviewSheet) -> Iterator[str]:
    name = clean(sheet.sheet.name or sheet.sheet.id, 100)
    flagged = sheet.invalid_cells
    yield f"{name}: {counted(len(sheet.rows), 'row')} in the sample, {counted(len(flagged), 'flagged cell')}"
    reasons = Counter((cell.column or "", cell.reason or "flagged, without a reason") for cell in flagged)
    for (column, reason), count in reasons.most_common(_SAMPLES):
        yield f"  {clean(column, 60)}{': ' if column else ''}{clean(reason, 200)} ({counted(count, 'cell')})"
    if len(reasons) > _SAMPLES:
        yield f"  and {counted(len(reasons) - _SAMPLES, 'other reason')}"


def describe(action: Action, sheets: Mapping[str, str] | None = None) -> str:
    """Return what an action does, in the server's words. `sheets`: names of sheets by id."""
    sheet = (sheets or {}).get(action.sheet_id or "", action.sheet_id if sheets is not None else None)
    where = [clean(part, 60) for part in (sheet, action.column) if part]
    key = f" by {clean(action.key_column, 60)}" if action.key_column else ""
    value = f" = {clean(action.value, 60)!r}" if action.value is not None else ""
    name = clean(action.action or "an action without a name", 60)
    return f"{name}{' on ' if where else ''}{' · '.join(where)}{key}{value}"


def _question(question: Question, sheets: Mapping[str, str], *, shows_ids: bool) -> Iterator[str]:
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
        label = clean(option.label or "", 200)
        named = f"{clean(option.id, 60)}  {label}" if shows_ids or not label else label
        yield f"    {number}) {named}".rstrip()
    if question.allow_custom and (question.options or shows_ids):
        yield "    or your own text"
    elif not question.options and not shows_ids:
        yield "    in your own words"


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
