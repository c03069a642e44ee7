"""How a person decides about a parked run: by options of the command line, or at the prompt of a terminal.

Credentials are typed without echo, or come from an environment variable, because other users can read command lines.
"""

import getpass
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, cast

import msgspec
import typer
from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.questions import (
    AttentionKind,
    CredentialRequest,
    Custom,
    NeedsAttention,
    Option,
    Question,
)
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import credentials_in

__all__ = ["DecisionFlags", "ask_decision", "sent_text"]

_WAITS: Mapping[AttentionKind, tuple[str, tuple[str, ...]]] = {
    "patch": ("the run proposes a patch", ("--approve", "--answer", "--reject")),
    "questions": ("the run asks questions", ("--answer", "--cancel", "--reject")),
    "credentials": ("the run waits for credentials", ("--credentials", "--cancel", "--reject")),
    "preview": (
        "the run waits for the approval of its preview",
        ("--approve", "--change", "--cancel", "--reject"),
    ),
}
"""What a run waits for, and the options that fit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFlags:
    """The decision that the command line gives; without one, a person at the terminal decides."""

    approve: Annotated[
        bool, typer.Option("--approve", help="Approve the server's proposal, or the preview.")
    ] = False
    reject: Annotated[
        bool, typer.Option("--reject", help="Reject the proposal: the customer ends as failed.")
    ] = False
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUESTION=OPTION",
            help="The answer to one question: an option's number, label or id, or your own text. Repeatable. With "
            "--api companies, also give --approve.",
        ),
    ] = None
    change: Annotated[
        str | None,
        typer.Option(metavar="MESSAGE", help="What to change in the preview, in your own words."),
    ] = None
    credentials: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="The credentials that the run waits for: an environment variable that holds a JSON object.",
        ),
    ] = None
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="Cancel the run: the customer ends as failed, and `retry` begins a new run."
        ),
    ] = False
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Permit an approval that destroys rows, or that may.")
    ] = False

    @property
    def given(self) -> list[str]:
        """The options that decide."""
        names = ("approve", "reject", "answer", "change", "credentials", "cancel")
        return [f"--{name}" for name in names if getattr(self, name)]

    def check(self, external_ids: Sequence[str]) -> None:
        """Raise `InvalidInput` for options that contradict each other, and for a decision without customers."""
        given = self.given
        if len(given) > 1 and given != ["--approve", "--answer"]:
            raise InvalidInput(given[1], True, f"cannot be combined with {given[0]}")
        if given and not external_ids:
            raise InvalidInput("EXTERNAL_ID", "", "is missing: name the customers to decide about")

    def decision(self, shown: NeedsAttention) -> Decision:
        """Return the decision about a run. Raises `InvalidInput` for one that does not fit what was `shown`."""
        if self.reject:
            return Reject()
        if self.cancel:
            return Cancel()
        waits, fitting = _WAITS[shown.kind]
        if unfit := next((name for name in self.given if name not in fitting), None):
            raise InvalidInput(unfit, True, f"does not fit: {waits}. Give one of {', '.join(fitting)}")
        if self.change is not None:
            return Change(self.change)
        if self.credentials is not None:
            return Credentials(_from_variable(self.credentials, shown.credentials))
        if self.answer and shown.kind == "questions":
            return Answer(dict(_answer(each, shown) for each in self.answer))
        if not self.approve:
            raise InvalidInput("--answer", (self.answer or [""])[0], "requires --approve")
        if shown.is_destructive and not self.allow_destructive:
            reason = "requires --allow-destructive, because the proposal destroys rows, or may"
            raise InvalidInput("--approve", True, reason)
        return Approve(dict(_answer(each, shown) for each in self.answer or ()) or None)


def _answer(text: str, shown: NeedsAttention) -> tuple[str, str | Custom]:
    name, equals, choice = text.partition("=")
    if not equals:
        raise InvalidInput("--answer", text, "must look like QUESTION=OPTION")
    ids = [question.id for question in shown.questions]
    if name not in ids:
        raise InvalidInput("--answer", name, f"is not a question of this run, which asks {ids}")
    for question in shown.questions:
        if question.id != name:
            continue
        if (option := _option_of(question, choice)) is not None:
            return name, sent_text(option, shown.kind)
        if question.allow_custom or (shown.kind == "questions" and not question.options):
            return name, Custom(choice)
    return name, choice


def sent_text(option: Option, kind: AttentionKind) -> str:
    """Return how an answer names an option: about a patch by its id, otherwise by its label."""
    return option.id if kind == "patch" else option.label or option.id


def _option_of(question: Question, text: str) -> Option | None:
    """Return the option that an id, a label or a number means; None if it means none."""
    folded = text.strip().casefold()
    options = question.options
    return (
        next((option for option in options if option.id == text), None)
        or next((option for option in options if option.label == text), None)
        or next((option for option in options if (option.label or "").strip().casefold() == folded), None)
        or (options[int(text) - 1] if text.isdecimal() and 0 < int(text) <= len(options) else None)
    )


_SKIP = ("[s]kip", "send nothing: the customer stays parked, and the next one is shown")
_QUIT = ("[q]uit", "send nothing: this customer and all that follow stay parked")
_CANCEL = ("[x] cancel", "cancel the run: the customer ends as failed, and asyncmig retry begins a new run")
_KEYS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "patch": {
        "a": ("[a]pprove as proposed", "send the approval: the server applies it, and the import continues"),
        "c": ("[c]hoose answers", "answer the questions one by one, then approve with your answers"),
        "r": ("[r]eject", "send a rejection: the server discards the import; the customer ends as failed"),
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
        "c": ("[c]hange this", "type what to change; the next run sends it, and shows a new preview"),
        "x": _CANCEL,
        "s": _SKIP,
        "q": _QUIT,
    },
}
"""The keys of the prompt for each kind of attention, each with its name and its effect."""


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
            decision = Approve(_answers(words, shown) if key == "c" else None)
            sure = "This destroys rows, or may. Type yes to send it: "
            return decision if not shown.is_destructive or _ask(sure) == "yes" else None
        case "questions", _:
            answers = _answers(words, shown)
            return None if answers is None else Answer(answers)
        case "credentials", _:
            values = _credentials(words, shown.credentials or CredentialRequest(), key)
            return None if values is None else Credentials(values)
        case _, "a":
            return Approve()
        case _:
            message = _ask("What to change, in your own words (Enter goes back): ")
            return Change(message) if message else None


def _answers(words: Console, shown: NeedsAttention) -> dict[str, str | Custom] | None:
    """Ask for an answer to each question; None if there is none.

    The server decides a question about a patch that has no answer. Of other questions none may be left out, because
    then the server may guess the answer.
    """
    is_patch = shown.kind == "patch"
    answers: dict[str, str | Custom] = {}
    for question in shown.questions:
        choice = _choice(words, question, "Enter leaves it to the server" if is_patch else "Enter goes back")
        if choice is not None:
            answers[question.id] = choice if isinstance(choice, Custom) else sent_text(choice, shown.kind)
        elif not is_patch:
            return None
    return answers or None


def _choice(words: Console, question: Question, on_enter: str) -> Option | Custom | None:
    takes_text = question.allow_custom or not question.options
    ways = [f"1 to {len(question.options)}"] if question.options else []
    ways += ["your own text"] if takes_text else []
    prompt = f"{clean(question.id, 40)} ({', '.join([*ways, on_enter])}): "
    while text := _ask(prompt):
        if (option := _option_of(question, text)) is not None:
            return option
        if takes_text:
            return Custom(text)
        say(words, f"There is no {clean(text)!r}.", "yellow")
    return None


class _Field(NamedTuple):
    """One value that a request for credentials names."""

    name: str
    kind: str
    """A type of JSON Schema; other values are text."""
    is_required: bool
    constant: object
    """The only value that is allowed; then nobody is asked for it."""


_LITERALS = {"yes": True, "true": True, "no": False, "false": False}
_READERS: Mapping[str, Callable[[str], object]] = {
    "boolean": lambda text: _LITERALS[text.lower()],
    "integer": int,
    "number": float,
    "object": msgspec.json.decode,
    "array": msgspec.json.decode,
}
"""How typed text becomes a value, by the type of JSON Schema. They raise `LookupError` or `ValueError`."""


def _ways_of(request: CredentialRequest) -> list[tuple[str, tuple[_Field, ...]]]:
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


def _fields(schema: Mapping[str, object], *, is_plain: bool) -> Iterator[_Field]:
    """Yield the fields of a JSON Schema, or, if it `is_plain`, of a mapping from each field to its type."""
    rules = schema if is_plain else schema.get("properties")
    if not isinstance(rules, Mapping):
        return
    listed = schema.get("required")
    required = cast("list[object]", listed) if isinstance(listed, list) else []
    for name, rule in cast("Mapping[str, object]", rules).items():
        if isinstance(rule, Mapping):
            about = cast("Mapping[str, object]", rule)
            yield _Field(name, str(about.get("type") or "string"), name in required, about.get("const"))


def _from_variable(variable: str, request: CredentialRequest | None) -> dict[str, object]:
    """Return the credentials in an environment variable: a JSON object, or the text of the only field.

    Raises `InvalidInput` that shows no value.
    """
    if not variable.isidentifier():
        reason = "must be the name of an environment variable, because other users can read command lines"
        raise InvalidInput("--credentials", "***", reason)
    fields = [field for _, fields in _ways_of(request) for field in fields] if request else []
    only = fields[0].name if len(fields) == 1 else None
    return credentials_in(variable, field="--credentials", only=only)


def _credentials(words: Console, request: CredentialRequest, key: str) -> dict[str, object] | None:
    if key == "v":
        variable = _ask("Name of the environment variable (Enter goes back): ")
        try:
            return _from_variable(variable, request) if variable else None
        except InvalidInput as error:
            say(words, f"{error.value} {error.reason}.", "yellow")
            return None
    ways, chosen = _ways_of(request), "1"
    if len(ways) > 1:
        for number, (title, _) in enumerate(ways, 1):
            say(words, f"    {number}) {clean(title, 200)}")
        chosen = _ask(f"Way to sign in (1 to {len(ways)}, Enter goes back): ")
        if not chosen.isdecimal() or not 0 < int(chosen) <= len(ways):
            return None
    fields = ways[int(chosen) - 1][1]
    if not fields:
        say(words, "The request names no field: send them with [v]ariable.", "yellow")
        return None
    return _ask_credentials(words, fields)


def _ask_credentials(words: Console, fields: Sequence[_Field]) -> dict[str, object] | None:
    """Ask for each field without echo. Returns None if a required one is left empty."""
    values: dict[str, object] = {field.name: field.constant for field in fields if field.constant is not None}
    for field in fields:
        if field.constant is not None:
            continue
        must = field.is_required or len(fields) == 1
        prompt = f"{field.name} ({'not shown' if must else 'not shown; Enter leaves it out'}): "
        while text := _read(getpass.getpass, prompt):
            try:
                values[field.name] = _READERS.get(field.kind, str)(text)
                break
            except (LookupError, ValueError):
                say(words, f"{field.name} must be of the type {field.kind}.", "yellow")
        if must and field.name not in values:
            return None
    return values or None


def _ask(prompt: str) -> str:
    """Return a line that a person types. Raises `EOFError`, `KeyboardInterrupt`."""
    return _read(input, prompt).strip()


def _read(read: Callable[[str], str], prompt: str) -> str:
    """Return what `read` reads from the terminal.

    The event loop is blocked meanwhile, and no task needs it. With the loop's own SIGINT handler, Ctrl-C would take
    effect only after the line.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return read(prompt)
    finally:
        signal.signal(signal.SIGINT, before)
