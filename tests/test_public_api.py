"""What users import: listed, documented, and complete: every type that a signature names has a public path."""

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


def named(module: ModuleType) -> str:
    return module.__name__


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_a_module_says_what_it_is_and_lists_what_it_has(module: ModuleType) -> None:
    assert module.__doc__
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(module, name) or name.startswith("_")] == []


def public_parts(thing: object) -> Iterator[tuple[str, object]]:
    """Yield what a user can call or read of a class, by name; of a function itself."""
    yield "", thing
    for name, value in inspect.getmembers_static(thing) if isinstance(thing, type) else ():
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "__func__", value)
        if not isinstance(value, FunctionType) or not value.__module__.startswith("asyncmig"):
            continue
        if not name.startswith("_") or (name == "__init__" and not made_by_the_library(value)):
            yield name, value


def made_by_the_library(init: FunctionType) -> bool:
    """Return whether a constructor takes what only the library has: users get such objects, and make none."""
    return any(is_private(kind) for hint in hints(init).values() for kind in flat(hint))


def is_private(kind: type) -> bool:
    return any(part.startswith("_") for part in kind.__module__.split(".")) and id(kind) not in PUBLIC


def hints(thing: object) -> dict[str, object]:
    """Return what a signature says; a name that a module imports for type checkers only is found if it is public."""
    return typing.get_type_hints(thing, localns={name: getattr(module, name) for module, name in NAMES})


def flat(hint: object) -> Iterator[type]:
    """Yield every class of the library that a type names."""
    if isinstance(hint, type) and hint.__module__.startswith("asyncmig"):
        yield hint
    inner = [typing.get_origin(hint), *typing.get_args(hint)] if typing.get_origin(hint) else hint
    for part in inner if isinstance(inner, list) else ():
        yield from flat(part)


@pytest.mark.parametrize("thing", TOP, ids=lambda thing: getattr(thing, "__name__", str(thing)[:40]))
def test_everything_that_a_signature_names_can_be_imported(thing: object) -> None:
    missing = {
        f"{name}: {kind.__qualname__}"
        for part, value in public_parts(thing)
        if isinstance(value, type | FunctionType)
        for name, hint in hints(value).items()
        if not name.startswith("_") and not name.isupper()  # tables of the library, on its handles
        for kind in flat(hint)
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
def test_what_annotations_need_has_a_public_path(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("module", FOR_USERS, ids=named)
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
    """Yield the listed names to which a module assigns a value, and whether text below them explains each."""
    statements = ast.parse(inspect.getsource(module)).body
    for statement, below in zip(statements, [*statements[1:], ast.Pass()], strict=True):
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        if isinstance(target, ast.Name) and target.id in module.__all__:
            yield target.id, isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)


def test_every_public_alias_is_explained() -> None:
    homes = {value.__module__ for value in TOP if isinstance(value, type | FunctionType)}
    modules = [
        module
        for module in [*FOR_USERS, *(importlib.import_module(home) for home in homes)]
        if hasattr(module, "__all__") and module is not asyncmig
    ]
    unexplained = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, explained in aliases(module)
        if not explained
    }
    assert unexplained == set()
