"""The imports between the units of the architecture: only of units below, and the core does no I/O.

Imports inside functions and under `TYPE_CHECKING` count.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import asyncmig

ROOT = Path(asyncmig.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
IMPURE = {"asyncio", "aiohttp", "anyio", "aiolimiter", "logging", "time", "socket", "threading"}
LIBRARY = {
    "errors",
    "events",
    "steps",
    "_core",
    "_io",
    "customers",
    "journal",
    "preflight",
    "generations",
    "session",
    "jobs",
}
MAY_IMPORT = {  # unit: the units that it may import
    "errors": set[str](),
    "steps": set[str](),
    "events": {"errors", "steps"},
    "_core": {"errors"},
    "_io": {"errors", "events", "_core"},
    "customers": {"errors", "events", "steps", "_core"},
    "journal": {"errors", "_core"},
    "preflight": {"errors", "_core", "_io", "customers"},
    "distributed": {
        "errors",
        "events",
        "_core",
        "_io",
        "journal",
    },  # journal: `PostgresJournal` is re-exported
    "transfers": {"errors", "_core", "_io", "customers"},
    "companies": {"errors", "events", "_core", "_io", "customers", "transfers"},
    "migrations": {"errors", "events", "_core", "_io", "customers", "transfers"},
    "records": {"errors", "events", "steps", "_core", "_io", "customers", "journal", "transfers"},
    "companies/workflow": {
        "errors",
        "events",
        "steps",
        "_core",
        "_io",
        "customers",
        "journal",
        "transfers",
        "records",
        "companies",
    },
    "migrations/workflow": {
        "errors",
        "steps",
        "_core",
        "_io",
        "customers",
        "journal",
        "records",
        "migrations",
    },
    "generations": {
        "errors",
        "_core",
        "_io",
        "customers",
        "journal",
        "companies/workflow",
        "migrations/workflow",
    },
    "session": {"errors", "events", "_core", "_io", "distributed", "transfers", "companies", "migrations"},
    "jobs": {
        "errors",
        "events",
        "steps",
        "_core",
        "_io",
        "customers",
        "journal",
        "preflight",
        "generations",
        "session",
    },
    "saq": LIBRARY | {"distributed"},
    "telemetry": {"errors", "events", "steps", "session"},
    "webhooks": {"errors", "_core"},
    "transport": {"_io"},
    "simulator": set[str](),
    "testing": LIBRARY | {"simulator"},
    "pytest_plugin": {"session", "testing"},
    "cli": LIBRARY | {"saq", "simulator"},
    "__main__": {"cli"},
    "__init__": LIBRARY,
}
PLACED = {  # modules that belong to another unit than their folder
    "distributed/saq.py": "saq",
    "distributed/_environment.py": "saq",
    "distributed/_job_runner.py": "saq",
    "distributed/_open_queue.py": "saq",
    "distributed/_resilient_queue.py": "saq",
}
PURE = ("_core", "webhooks")
WORKFLOWS = ("companies/workflow", "migrations/workflow")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return the names of the modules that a module imports."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "asyncmig":  # a module, or a name in `asyncmig`
                yield from (f"asyncmig.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def unit_of(name: str) -> str:
    """Return the unit that a module belongs to, by its path below the package or by its dotted name."""
    path = name.removeprefix("asyncmig.").replace(".", "/").removesuffix("/py")
    if placed := PLACED.get(f"{path}.py"):
        return placed
    for workflow in WORKFLOWS:
        if path.startswith(workflow):
            return workflow
    return "__init__" if path == "asyncmig" else path.split("/")[0]


def imported_units(path: Path) -> set[str]:
    names = {name for name in imports(path) if name.split(".")[0] == "asyncmig"}
    if path.name == "__init__.py" and path.parent == ROOT:
        names.discard("asyncmig")
    return {unit_of(name) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_units_below_it(path: Path) -> None:
    unit = unit_of(str(path.relative_to(ROOT)).removesuffix(".py"))
    assert imported_units(path) - {unit} <= MAY_IMPORT[unit]


def test_the_units_form_no_cycle() -> None:
    found = {unit: set[str]() for unit in MAY_IMPORT}
    for path in MODULES:
        unit = unit_of(str(path.relative_to(ROOT)).removesuffix(".py"))
        found[unit] |= imported_units(path) - {unit}
    assert tuple(TopologicalSorter(found).static_order())


@pytest.mark.parametrize("unit", PURE)
def test_a_pure_unit_does_no_input_or_output(unit: str) -> None:
    for path in (ROOT / unit).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & IMPURE, path


@pytest.mark.parametrize(
    ("generation", "homes"),
    [
        ("companies", {"generations.py", "session.py"}),
        ("migrations", {"generations.py", "session.py"}),
    ],
)
def test_only_the_registry_and_the_session_import_a_generation(generation: str, homes: set[str]) -> None:
    outside = [path for path in MODULES if generation not in path.relative_to(ROOT).parts[:1]]
    users = {
        str(path.relative_to(ROOT))
        for path in outside
        if any(name.startswith(f"asyncmig.{generation}") for name in imports(path))
    }
    assert users == homes


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_only_the_registry_imports_a_workflow(workflow: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if unit_of(str(path.relative_to(ROOT)).removesuffix(".py")) != workflow
        and any(name.startswith(f"asyncmig.{workflow.replace('/', '.')}") for name in imports(path))
    }
    assert users == {"generations.py"}


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        (
            "aiohttp",
            {
                "_io/aiohttp_connection.py",
                "_io/aiohttp_transport.py",
                "simulator/server/app.py",
                "simulator/companies/webhooks.py",
                "session.py",
            },
        ),
        ("pytest", {"pytest_plugin.py"}),
        ("aiolimiter", {"_io/token_bucket.py", "transfers/content.py"}),
        (
            "psycopg",
            {
                "journal/postgres.py",
                "journal/postgres_schema.py",
                "distributed/_open_queue.py",
            },
        ),
        ("opentelemetry", {"telemetry.py"}),
        ("redis", {"distributed/redis.py", "distributed/_open_queue.py"}),
        (
            "saq",
            {
                "distributed/_job_runner.py",
                "distributed/_open_queue.py",
                "distributed/_resilient_queue.py",
                "distributed/saq.py",
            },
        ),
    ],
)
def test_a_library_is_used_in_one_place(library: str, homes: set[str]) -> None:
    users = {str(p.relative_to(ROOT)) for p in MODULES if library in {n.split(".")[0] for n in imports(p)}}
    assert users == homes


def test_the_core_and_the_io_layer_name_no_generation_of_the_api() -> None:
    for path in [*(ROOT / "_core").glob("*.py"), *(ROOT / "_io").glob("*.py")]:
        assert not re.search(
            r"\bcompan(y|ies)\b|\bmigration", path.read_text(encoding="utf-8"), re.IGNORECASE
        ), path


def test_the_top_level_lists_exactly_its_names_and_modules() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    imported = [
        name.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncmig")
        for name in node.names
    ]
    listed, modules = asyncmig.__all__[: len(imported)], asyncmig.__all__[len(imported) :]
    assert listed == sorted(imported)
    assert modules == sorted(modules)
    assert all(isinstance(importlib.import_module(f"asyncmig.{name}"), ModuleType) for name in modules)
