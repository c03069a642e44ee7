"""Ask a person at the terminal what to do about a parked run."""

import signal
from typing import Literal

from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.customers.decisions import Approve, Decision, Reject
from asyncmig.customers.questions import Custom, NeedsAttention, Question

__all__ = ["ask_decision"]


_KEYS = {
    "a": (
        "[a]pprove as proposed",
        "send the approval: the server applies the proposal, and the import continues",
    ),
    "c": ("[c]hoose answers", "answer the questions one by one, then send the approval with your answers"),
    "r": ("[r]eject", "send a rejection: the server discards the import, and the customer ends as failed"),
    "s": ("[s]kip", "send nothing: the customer stays parked, and the next one is shown"),
    "q": ("[q]uit", "send nothing: this customer and all that follow stay parked"),
}
"""The keys of the prompt, each with its name and its effect."""
_SURE = "This destroys rows, or may. Type yes to send it: "


def ask_decision(
    words: Console, shown: NeedsAttention, approval: str, *, allow_destructive: bool, explain: bool
) -> Decision | Literal["skip", "quit"]:
    """Ask what to do about a parked run. Ctrl-C and the end of the input mean `quit`.

    `approval`: the command that approves a proposal that destroys rows; it is printed if this prompt may not do it.
    `explain`: print the effect of each key first. An unknown key prints it again.
    """
    keys = dict(_KEYS)
    if not shown.questions:
        del keys["c"]
    if shown.is_destructive and not allow_destructive:
        keys = {key: keys[key] for key in "rsq"}
        reason = "This destroys rows, or may: it can only be approved with --allow-destructive."
        say(words, f"\n{reason} The command:", "yellow")
        say(words, f"  {approval}", wrap=False)
    try:
        while True:
            if explain:
                say(words, "\n" + "\n".join(f"  {key}  {effect}" for key, (_, effect) in keys.items()))
            explain = True
            key = _ask(f"\n{', '.join(name for name, _ in keys.values())}: ")[:1].lower()
            match key if key in keys else "":
                case "r":
                    return Reject()
                case "s":
                    return "skip"
                case "q":
                    return "quit"
                case "a" | "c":
                    decision = Approve(_choices(words, shown) if key == "c" else None)
                    if not shown.is_destructive or _ask(_SURE) == "yes":
                        return decision
                    explain = False
                case _:
                    pass
    except (EOFError, KeyboardInterrupt):
        say(words, "")
        return "quit"


def _choices(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; the server decides those without one."""
    answers = {question.id: _choice(words, question) for question in shown.questions}
    return {name: choice for name, choice in answers.items() if choice is not None} or None


def _choice(words: Console, question: Question) -> str | Custom | None:
    ways = [f"1 to {len(question.options)}"] if question.options else []
    ways += ["your own text"] if question.allow_custom else []
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
    """Return a line that a person types. Raises `EOFError`, `KeyboardInterrupt`.

    The event loop is blocked meanwhile, and no task needs it. With the loop's own SIGINT handler, Ctrl-C would take
    effect only after the line.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt).strip()
    finally:
        signal.signal(signal.SIGINT, before)
