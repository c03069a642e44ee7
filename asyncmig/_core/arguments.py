"""Checks the arguments of public functions, so that a wrong type raises a clear `InvalidInput`."""

import inspect
import types
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import IO, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from asyncmig.errors import InvalidInput

__all__ = ["check_fields", "checked_call", "checked_path", "checked_text", "flaw_of", "plain_text"]

P = ParamSpec("P")
R = TypeVar("R")
_Test = Callable[[object], bool]
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SECRET = frozenset(
    {"api_key", "auth", "connections", "conninfo", "credentials", "queue", "secret", "secrets", "url"}
)
"""Parameters whose values no error shows."""
_WORDS: Mapping[type, str] = {
    bool: "True or False",
    bytes: "bytes",
    float: "a number",
    int: "a whole number",
    str: "a str",
    Path: "a Path",
    type(None): "None",
}


def checked_call(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise `InvalidInput` for an argument that does not have the type in its signature.

    Checks plain types, unions, classes, protocols and the kind of a collection, but not the items of a collection.
    """
    parameters = inspect.signature(function).parameters.values()
    positions = [each.name for each in parameters if each.kind in _BY_POSITION]
    only_by_position = {each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_ONLY}

    def check(args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        tests = _tests_of(function)
        # For a wrong number of arguments, the call itself raises.
        for name, value in zip(positions, args, strict=False):
            if name in tests and not tests[name][0](value):
                raise _wrong(name, value, tests[name][1])
        for name, value in kwargs.items():
            if name in tests and name not in only_by_position and not tests[name][0](value):
                raise _wrong(name, value, tests[name][1])

    if inspect.iscoroutinefunction(function):

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> object:
            try:
                check(args, kwargs)
                return function(*args, **kwargs)
            except (InvalidInput, TypeError) as error:
                return _raises(error)  # raised by the `await`, as an async function would do

        return cast("Callable[P, R]", checked)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        check(args, kwargs)
        return function(*args, **kwargs)

    return called


def _wrong(name: str, value: object, words: str) -> InvalidInput:
    return InvalidInput(name, "***" if name in _SECRET else value, f"must be {words}")


async def _raises(error: Exception) -> object:
    raise error


def check_fields(instance: object) -> None:
    """Raise `InvalidInput` for a field whose value does not have its type. Checks types as `checked_call` does."""
    kind: type = type(instance)
    for name, (test, words) in _tests_of(kind).items():
        if not test(value := getattr(instance, name)):
            raise _wrong(name, value, words)


@cache
def _tests_of(owner: object) -> dict[str, tuple[_Test, str]]:
    """Return the tests of a function's arguments, or of the fields of a class, by name."""
    tests = {name: _test_of(hint) for name, hint in get_type_hints(owner).items() if name != "return"}
    return {name: test for name, test in tests.items() if test is not None}


def _test_of(hint: object) -> tuple[_Test, str] | None:
    """Return a test for values of a type, and a description of the type; None for a type that is not tested here.

    Literals are not tested here: the function itself can explain what each of them means.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_test_of(part) for part in get_args(hint)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        tests = [test for test, _ in known]
        words = " or ".join(words for _, words in known)
        if len(tests) == 2:
            first, second = tests
            return (lambda value: first(value) or second(value)), words
        return (lambda value: any(test(value) for test in tests)), words
    kind = origin or hint
    if not isinstance(kind, type) or kind in (object, IO):  # IO: no file object is an instance of it
        return None
    if getattr(kind, "_is_protocol", False) and kind.__module__ != "collections.abc":
        names = [name for name in vars(kind) if not name.startswith("_") or name == "__call__"]
        return (lambda value: all(hasattr(value, name) for name in names)), _type_name(kind)
    return _test_of_class(kind), _WORDS.get(kind, _type_name(kind))


def _type_name(kind: type) -> str:
    name = kind.__name__.lower() if kind.__module__ == "collections.abc" else kind.__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _test_of_class(kind: type) -> _Test:
    if kind is float:
        return lambda value: isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    if issubclass(kind, Sequence | Iterable) and kind.__module__ == "collections.abc":
        return lambda value: isinstance(value, kind) and not isinstance(value, str | bytes)
    return lambda value: isinstance(value, kind)


def checked_path(field: str, value: object) -> Path:
    """Return `value` as a path. Raises `InvalidInput` if it is not a str or a `Path`, is empty, or contains a NUL."""
    if not isinstance(value, str | Path):
        raise InvalidInput(field, value, "is not a path")
    if not str(value) or "\0" in str(value):
        raise InvalidInput(field, str(value), "is not a path")
    return Path(value)


def checked_text(field: str, value: object) -> str:
    """Return a name or an id as it is. Raises `InvalidInput` for a value that cannot be one; see `flaw_of`."""
    if flaw := flaw_of(value):
        raise InvalidInput(field, value, flaw)
    return cast(str, plain_text(value))


def plain_text(value: object) -> object:
    """Return an instance of a subclass of `str`, such as a `StrEnum`, as `str`: only that can be encoded."""
    return str.__str__(value) if isinstance(value, str) else value


def flaw_of(value: object) -> str | None:
    """Return why a value cannot be a name or an id; None if it can be one."""
    if not isinstance(value, str):
        return "must be a str"
    if not value.strip():
        return "is empty"
    if value.isprintable():
        return None
    kinds = {unicodedata.category(character) for character in value if character not in "\t\n\r"}
    if "Cs" in kinds:
        return "has half of a surrogate pair, which UTF-8 cannot encode"
    if "Cc" in kinds:
        return "has control characters"
    return None
