"""A parked import on the terminal: what it asks, what the patch destroys; and the prompt for an answer."""

import signal
from collections.abc import Iterator, Mapping
from typing import Literal

from rich.console import Console

from asyncmig.cli.terminal import clean, counted, say
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.outcome import Decision
from asyncmig.customers.questions import Action, Custom, NeedsAttention, Question

__all__ = ["ask_decision", "describe", "print_parked"]


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


_APPROVE, _CHOOSE = "[a]pprove as proposed", "[c]hoose answers"
_OTHERS = ("[r]eject", "[s]kip", "[q]uit")
_SURE = "This destroys rows, or may. Type yes to send it: "


def ask_decision(
    words: Console, shown: NeedsAttention, *, allow_destructive: bool
) -> Decision | Literal["skip", "quit"]:
    """Ask what to do about a parked run. Ctrl-C and the end of the input are `quit`."""
    may_approve = allow_destructive or not shown.is_destructive
    if not may_approve:
        say(
            words,
            "\nThis destroys rows, or may: it can only be approved with --allow-destructive.",
            "yellow",
        )
    approvals = (_APPROVE, *([_CHOOSE] if shown.questions else [])) if may_approve else ()
    prompt = f"\n{', '.join((*approvals, *_OTHERS))}: "
    try:
        while True:
            key = _ask(prompt)[:1].lower()
            if key == "r":
                return Decision(approve=False)
            if key in ("s", "q"):
                return "skip" if key == "s" else "quit"
            if may_approve and (key == "a" or (key == "c" and shown.questions)):
                decision = Decision(approve=True, answers=_choices(words, shown) if key == "c" else None)
                if not shown.is_destructive or _ask(_SURE) == "yes":
                    return decision
    except (EOFError, KeyboardInterrupt):
        say(words, "")
        return "quit"


def _choices(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; what is not answered is left to the server."""
    answers = {question.id: _choice(words, question) for question in shown.questions}
    return {name: choice for name, choice in answers.items() if choice is not None} or None


def _choice(words: Console, question: Question) -> str | Custom | None:
    ways = [f"1 to {len(question.options)}"] if question.options else []
    ways += ["your own words"] if question.allow_custom else []
    prompt = f"{clean(question.id, 40)} ({', '.join([*ways, 'Enter leaves it to the server'])}): "
    while True:
        text = _ask(prompt)
        if not text:
            return None
        option = _option(question, text)
        if option is not None:
            return option
        if question.allow_custom:
            return Custom(text)
        say(words, f"There is no {clean(text)!r}.", "yellow")


def _option(question: Question, text: str) -> str | None:
    """Return the option that a number or an id names."""
    ids = [option.id for option in question.options]
    if text in ids:
        return text
    return ids[int(text) - 1] if text.isdecimal() and 0 < int(text) <= len(ids) else None


def _ask(prompt: str) -> str:
    """Return a line that was typed. Raises `EOFError`, `KeyboardInterrupt`.

    The loop stands still meanwhile: nothing else is under way. Its own handler of Ctrl-C would wait for the line.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt).strip()
    finally:
        signal.signal(signal.SIGINT, before)
