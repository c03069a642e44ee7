"""The public names: they are listed and documented, and every type in a public signature has a public path."""

import ast
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest

import asyncmig

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(asyncmig.__path__, "asyncmig.")
    if not any(part.startswith("_") for part in found.name.split("."))
] + [asyncmig]
NAMES = [(module, name) for module in MODULES for name in getattr(module, "__all__", ())]
PUBLIC = {id(getattr(module, name)) for module, name in NAMES}
TOP = [getattr(asyncmig, name) for name in asyncmig.__all__]
CHAPTERS = {
    *(
        "companies",
        "errors",
        "events",
        "journal",
        "migrations",
        "preflight",
        "pytest_plugin",
        "session",
        "simulator",
        "telemetry",
        "testing",
    ),
    *("transport", "webhooks", "jobs.fleet", "jobs.manifest", "jobs.plan", "jobs.status"),
    *("distributed.postgres", "distributed.redis", "distributed.saq"),
}
FOR_USERS = [
    module for module in MODULES if module.__name__.removeprefix("asyncmig.") in {"asyncmig", *CHAPTERS}
]


def name_of(module: ModuleType) -> str:
    return module.__name__


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_has_a_docstring_and_lists_existing_public_names(module: ModuleType) -> None:
    assert module.__doc__
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(module, name) or name.startswith("_")] == []


def public_parts(thing: object) -> Iterator[tuple[str, object]]:
    """Yield a function, or a class and the methods and properties that users can use, each with its name."""
    yield "", thing
    for name, value in inspect.getmembers_static(thing) if isinstance(thing, type) else ():
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "__func__", value)
        if not isinstance(value, FunctionType) or not value.__module__.startswith("asyncmig"):
            continue
        if not name.startswith("_") or (name == "__init__" and not takes_private_types(value)):
            yield name, value


def takes_private_types(init: FunctionType) -> bool:
    """Return whether a constructor takes private types. Only the library creates objects of such a class."""
    return any(is_private(kind) for hint in hints(init).values() for kind in classes_in(hint))


def is_private(kind: type) -> bool:
    return any(part.startswith("_") for part in kind.__module__.split(".")) and id(kind) not in PUBLIC


def hints(thing: object) -> dict[str, object]:
    """Return the types in a signature. A name that is imported for type checkers only must be public."""
    return typing.get_type_hints(thing, localns={name: getattr(module, name) for module, name in NAMES})


def classes_in(hint: object) -> Iterator[type]:
    """Yield every class of the library in a type."""
    if isinstance(hint, type) and hint.__module__.startswith("asyncmig"):
        yield hint
    inner = [typing.get_origin(hint), *typing.get_args(hint)] if typing.get_origin(hint) else hint
    for part in inner if isinstance(inner, list) else ():
        yield from classes_in(part)


@pytest.mark.parametrize("thing", TOP, ids=lambda thing: getattr(thing, "__name__", str(thing)[:40]))
def test_every_type_in_a_public_signature_is_public(thing: object) -> None:
    missing = {
        f"{name}: {kind.__qualname__}"
        for part, value in public_parts(thing)
        if isinstance(value, type | FunctionType)
        for name, hint in hints(value).items()
        if not name.startswith("_") and not name.isupper()  # constants of handles, for the library only
        for kind in classes_in(hint)
        if id(kind) not in PUBLIC
    }
    assert missing == set()


@pytest.mark.parametrize(
    "path",
    [
        "asyncmig.Decide",
        "asyncmig.companies.ExportReport",
        "asyncmig.companies.ExportState",
        "asyncmig.JournalPort",
        "asyncmig.Outcome",
        "asyncmig.Policy",
        "asyncmig.RowFilter",
        "asyncmig.Scope",
        "asyncmig.Transport",
        "asyncmig.events.Event",
        "asyncmig.events.Events",
        "asyncmig.events.RequestDone",
        "asyncmig.journal.ClaimPort",
        "asyncmig.testing.Simulator",
        "asyncmig.transport.Lost",
        "asyncmig.webhooks.Batch",
    ],
)
def test_types_that_users_need_for_annotations_are_public(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("module", FOR_USERS, ids=name_of)
def test_every_public_name_is_documented(module: ModuleType) -> None:
    undocumented = [
        f"{name}.{part}"
        for name in module.__all__
        if isinstance(getattr(module, name), type | FunctionType)
        for part, value in public_parts(getattr(module, name))
        if part != "__init__" and not inspect.getdoc(value)
    ]
    assert undocumented == []


def aliases(module: ModuleType) -> Iterator[tuple[str, bool]]:
    """Yield the listed names that a module assigns, and whether a docstring follows the assignment."""
    statements = ast.parse(inspect.getsource(module)).body
    for statement, below in zip(statements, [*statements[1:], ast.Pass()], strict=True):
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        if isinstance(target, ast.Name) and target.id in module.__all__:
            yield target.id, isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)


def test_every_public_alias_has_a_docstring() -> None:
    module_names = {value.__module__ for value in TOP if isinstance(value, type | FunctionType)}
    modules = [
        module
        for module in [*FOR_USERS, *(importlib.import_module(module_name) for module_name in module_names)]
        if hasattr(module, "__all__") and module is not asyncmig
    ]
    unexplained = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, explained in aliases(module)
        if not explained
    }
    assert unexplained == set()
