"""Questions to whoever sits at the terminal."""

import signal
from typing import Literal

from rich.console import Console

from asyncmig.cli.terminal import clean, say
from asyncmig.companies.outcome import Decision
from asyncmig.companies.review import Custom
from asyncmig.companies.wire import NeedsAttention, Question

__all__ = ["ask_decision"]

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
