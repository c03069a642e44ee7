"""Ask a person at the terminal what to do about a parked run, also for credentials, without echo."""

import getpass
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, cast

import msgspec
from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.questions import CredentialRequest, Custom, NeedsAttention, Option, Question
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import credentials_in

__all__ = ["CredentialField", "ask_decision", "from_variable", "option_of"]

Ask = Callable[[str], str]
"""Prompts a person, and returns a line. Raises `EOFError` and `KeyboardInterrupt`."""
_LITERALS = {"yes": True, "true": True, "no": False, "false": False}


class CredentialField(NamedTuple):
    """One value that a request for credentials names."""

    name: str
    kind: str
    """A type of JSON Schema; other values are text."""
    is_required: bool = False
    constant: object = None
    """The only value that is allowed; then nobody is asked for it."""
    about: str = ""


def _ways_of(request: CredentialRequest) -> list[tuple[str, tuple[CredentialField, ...]]]:
    """Return the ways to sign in that a request offers: a title, and its fields. Mostly there is one."""
    is_mapping = isinstance(request.schema, Mapping)
    parts = cast("Mapping[str, object]", request.schema if is_mapping else {})
    ways = [
        cast("Mapping[str, object]", way)
        for name in ("oneOf", "anyOf")
        for way in cast("list[object]", parts.get(name) or [])
        if isinstance(way, Mapping)
    ]
    own = tuple(_fields(parts, is_plain=not ways and "properties" not in parts))
    if not ways:
        return [("", own)]
    return [
        (str(way.get("title") or f"way {number}"), (*own, *_fields(way, is_plain="properties" not in way)))
        for number, way in enumerate(ways, 1)
    ]


def _fields(schema: Mapping[str, object], *, is_plain: bool) -> Iterator[CredentialField]:
    """Yield the fields of a JSON Schema, or, if it `is_plain`, of a mapping from each field to its type."""
    rules = schema if is_plain else schema.get("properties")
    if not isinstance(rules, Mapping):
        return
    listed = schema.get("required")
    required = cast("list[object]", listed) if isinstance(listed, list) else []
    for name, rule in cast("Mapping[str, object]", rules).items():
        if isinstance(rule, Mapping):
            about = cast("Mapping[str, object]", rule)
            yield CredentialField(
                name=name,
                kind=str(about.get("type") or "string"),
                is_required=name in required,
                constant=about.get("const"),
                about=str(about.get("title") or about.get("description") or ""),
            )


def _ask_credentials(
    fields: tuple[CredentialField, ...], ask: Ask, say: Callable[[str], None]
) -> dict[str, object] | None:
    """Ask for each field with `ask`, which must not echo. Returns None if a required one is left empty."""
    values: dict[str, object] = {field.name: field.constant for field in fields if field.constant is not None}
    for field in fields:
        if field.constant is not None:
            continue
        must = field.is_required or len(fields) == 1
        prompt = f"{field.name} ({'not shown' if must else 'not shown; Enter leaves it out'}): "
        while True:
            text = ask(prompt)
            if not text and must:
                return None
            try:
                if text:
                    values[field.name] = _value(field, text)
                break
            except ValueError:
                say(f"{field.name} must be of the type {field.kind}.")
    return values or None


def _value(field: CredentialField, text: str) -> object:
    """Return typed text as a value of the field's type. Raises `ValueError`."""
    match field.kind:
        case "boolean":
            if text.lower() not in _LITERALS:
                raise ValueError
            return _LITERALS[text.lower()]
        case "integer":
            return int(text)
        case "number":
            return float(text)
        case "object" | "array":
            return cast("object", msgspec.json.decode(text))
        case _:
            return text


def from_variable(variable: str, request: CredentialRequest | None) -> dict[str, object]:
    """Return the credentials in an environment variable: a JSON object, or the text of the only field.

    Raises `InvalidInput` that shows no value.
    """
    if not variable.isidentifier():
        reason = "must be the name of an environment variable, because other users can read command lines"
        raise InvalidInput("--credentials", "***", reason)
    fields = [field for _, fields in _ways_of(request) for field in fields] if request else []
    only = fields[0].name if len(fields) == 1 else None
    return credentials_in(variable, field="--credentials", only=only)


_SKIP = ("[s]kip", "send nothing: the customer stays parked, and the next one is shown")
_QUIT = ("[q]uit", "send nothing: this customer and all that follow stay parked")
_CANCEL = ("[x] cancel", "cancel the run: the customer ends as failed, and asyncmig retry begins a new run")
_KEYS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "patch": {
        "a": (
            "[a]pprove as proposed",
            "send the approval: the server applies the proposal, and the import continues",
        ),
        "c": (
            "[c]hoose answers",
            "answer the questions one by one, then send the approval with your answers",
        ),
        "r": (
            "[r]eject",
            "send a rejection: the server discards the import, and the customer ends as failed",
        ),
        "s": _SKIP,
        "q": _QUIT,
    },
    "questions": {
        "a": ("[a]nswer", "answer all questions, then send the answers: the run continues"),
        "x": _CANCEL,
        "s": _SKIP,
        "q": _QUIT,
    },
    "credentials": {
        "e": ("[e]nter them", "type the credentials, which are not shown, and send them: the run continues"),
        "v": ("[v]ariable", "send the credentials in an environment variable that you name"),
        "x": _CANCEL,
        "s": _SKIP,
        "q": _QUIT,
    },
    "preview": {
        "a": ("[a]pprove", "the next run of the command imports what the preview shows a sample of"),
        "c": (
            "[c]hange this",
            "type what to change; the next run of the command sends it, and shows a new preview",
        ),
        "x": _CANCEL,
        "s": _SKIP,
        "q": _QUIT,
    },
}
"""The keys of the prompt for each kind of attention, each with its name and its effect."""
_SURE = "This destroys rows, or may. Type yes to send it: "


def ask_decision(
    words: Console, shown: NeedsAttention, approval: str, *, allow_destructive: bool, explain: bool
) -> Decision | Literal["skip", "quit"]:
    """Ask what to do about a parked run. Ctrl-C and the end of the input mean `quit`.

    `approval`: the command that approves a proposal that destroys rows; it is printed if this prompt may not do it.
    `explain`: print the effect of each key first. An unknown key prints it again.
    """
    keys = dict(_KEYS[shown.kind])
    if not shown.questions:
        keys.pop({"patch": "c", "questions": "a"}.get(shown.kind, ""), None)
    if shown.is_destructive and not allow_destructive:
        keys = {key: keys[key] for key in "rsq"}
        reason = "This destroys rows, or may: it can only be approved with --allow-destructive."
        say(words, f"\n{reason} The command:", "yellow")
        say(words, f"  {approval}", wrap=False)
    try:
        while True:
            if explain:
                say(words, "\n" + "\n".join(f"  {key}  {effect}" for key, (_, effect) in keys.items()))
            key = _ask(f"\n{', '.join(name for name, _ in keys.values())}: ")[:1].lower()
            explain = key not in keys
            if key == "s":
                return "skip"
            if key == "q":
                return "quit"
            if key in keys and (decision := _decision(words, shown, key)) is not None:
                return decision
    except (EOFError, KeyboardInterrupt):
        say(words, "")
        return "quit"


def _decision(words: Console, shown: NeedsAttention, key: str) -> Decision | None:
    """Return the decision of a key, after more questions if it needs them; None to ask for a key again."""
    match shown.kind, key:
        case _, "x":
            return Cancel()
        case _, "r":
            return Reject()
        case "patch", _:
            decision = Approve(_choices(words, shown) if key == "c" else None)
            return decision if not shown.is_destructive or _ask(_SURE) == "yes" else None
        case "questions", _:
            answers = _all_answers(words, shown)
            return None if answers is None else Answer(answers)
        case "credentials", _:
            values = _credentials(words, shown.credentials or CredentialRequest(), key)
            return None if values is None else Credentials(values)
        case _, "a":
            return Approve()
        case _:
            message = _ask("What to change, in your own words (Enter goes back): ")
            return Change(message) if message else None


def _choices(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; the server decides those without one."""
    answers = {
        question.id: _choice(words, question, "Enter leaves it to the server") for question in shown.questions
    }
    return {name: choice for name, choice in answers.items() if choice is not None} or None


def _all_answers(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; None if one is left out, because then the server may guess it."""
    answers: dict[str, str | Custom] = {}
    for question in shown.questions:
        choice = _choice(words, question, "Enter goes back")
        if choice is None:
            return None
        option = None if isinstance(choice, Custom) else option_of(question, choice)
        answers[question.id] = choice if option is None else option.label or option.id
    return answers


def _choice(words: Console, question: Question, on_enter: str) -> str | Custom | None:
    takes_text = question.allow_custom or not question.options
    ways = [f"1 to {len(question.options)}"] if question.options else []
    ways += ["your own text"] if takes_text else []
    prompt = f"{clean(question.id, 40)} ({', '.join([*ways, on_enter])}): "
    while True:
        text = _ask(prompt)
        if not text:
            return None
        option = option_of(question, text)
        if option is not None:
            return option.id
        if takes_text:
            return Custom(text)
        say(words, f"There is no {clean(text)!r}.", "yellow")


def option_of(question: Question, text: str) -> Option | None:
    """Return the option that an id, a label or a number means; None if it means none."""
    folded = text.strip().casefold()
    options = question.options
    return (
        next((option for option in options if option.id == text), None)
        or next((option for option in options if option.label == text), None)
        or next((option for option in options if (option.label or "").strip().casefold() == folded), None)
        or (options[int(text) - 1] if text.isdecimal() and 0 < int(text) <= len(options) else None)
    )


def _credentials(words: Console, request: CredentialRequest, key: str) -> dict[str, object] | None:
    if key == "v":
        variable = _ask("Name of the environment variable (Enter goes back): ")
        try:
            return from_variable(variable, request) if variable else None
        except InvalidInput as error:
            say(words, f"{error.value} {error.reason}.", "yellow")
            return None
    ways = _ways_of(request)
    way = 0
    if len(ways) > 1:
        for number, (title, _) in enumerate(ways, 1):
            say(words, f"    {number}) {clean(title, 200)}")
        text = _ask(f"Way to sign in (1 to {len(ways)}, Enter goes back): ")
        if not text.isdecimal() or not 0 < int(text) <= len(ways):
            return None
        way = int(text) - 1
    fields = ways[way][1]
    if not fields:
        say(words, "The request names no field: send them with [v]ariable.", "yellow")
        return None
    return _ask_credentials(fields, _ask_hidden, lambda text: say(words, text, "yellow"))


def _ask(prompt: str) -> str:
    """Return a line that a person types. Raises `EOFError`, `KeyboardInterrupt`."""
    return _interruptible(lambda: input(prompt)).strip()


def _ask_hidden(prompt: str) -> str:
    """Return a line that a person types, without echo. Raises `EOFError`, `KeyboardInterrupt`."""
    return _interruptible(lambda: getpass.getpass(prompt))


def _interruptible(read: Callable[[], str]) -> str:
    """Return what `read` reads from the terminal.

    The event loop is blocked meanwhile, and no task needs it. With the loop's own SIGINT handler, Ctrl-C would take
    effect only after the line.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return read()
    finally:
        signal.signal(signal.SIGINT, before)
