"""Commands that take dataclasses: each of their fields becomes a parameter of the command line."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import ParamSpec, Protocol, cast, get_type_hints

__all__ = ["flat"]

P = ParamSpec("P")
_KIND = inspect.Parameter.KEYWORD_ONLY


class _Command(Protocol):
    def __call__(self, **values: object) -> None: ...


def flat(command: Callable[P, None]) -> Callable[P, None]:
    """Return `command` with the fields of its dataclasses in their place, for typer to read.

    So several commands share what they take, and its help and defaults are written once. A parameter of the
    command's own stands for a field of the same name, and fills it.
    """
    given = inspect.signature(command, eval_str=True).parameters
    groups = {name: cast("type", p.annotation) for name, p in given.items() if is_dataclass(p.annotation)}
    own = [p.replace(kind=_KIND) for name, p in given.items() if name not in groups]
    names = {p.name for p in own}
    shared = [p for group in groups.values() for p in _parameters(group) if p.name not in names]
    parameters = sorted([*own, *shared], key=lambda p: p.default is not inspect.Parameter.empty)

    @functools.wraps(command)
    def flattened(**values: object) -> None:
        own_values = {name: value for name, value in values.items() if name in given}
        groups_values = {
            name: group(**{field.name: values[field.name] for field in fields(group)})
            for name, group in groups.items()
        }
        cast("_Command", command)(**own_values, **groups_values)

    flattened.__dict__["__signature__"] = inspect.Signature(parameters)
    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    del flattened.__dict__["__wrapped__"]  # typer would read that one's annotations instead
    return cast("Callable[P, None]", flattened)


def _parameters(group: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, _KIND, default=default, annotation=hints[field.name])
