"""The arrows between the layers point one way, and the core stays pure."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import asyncmig

ROOT = Path(asyncmig.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
IMPURE = {"asyncio", "aiohttp", "anyio", "aiolimiter", "logging", "time", "socket", "threading"}
ABOVE = {  # what a layer may not know
    "customers": ("session", "jobs", "journal", "simulator", "cli", "distributed"),
    "_core": ("_io", "companies", "session", "jobs", "journal", "simulator", "cli", "events", "distributed"),
    "_io": ("companies", "session", "jobs", "journal", "simulator", "cli", "distributed"),
    "companies": ("jobs", "simulator", "cli", "distributed"),
    "preflight": ("session", "jobs", "journal", "simulator", "cli", "events"),
    "session.py": ("jobs", "journal", "simulator", "cli", r"distributed\.(redis|postgres|saq)"),
    "jobs/fleet.py": ("simulator", "cli", "distributed"),
    "jobs/plan.py": ("jobs", "journal", "simulator", "cli", "distributed"),
    "jobs/status.py": ("session", "jobs", "simulator", "cli", "distributed"),
    "jobs/manifest.py": ("session", "jobs", "journal", "simulator", "cli", "distributed"),
    "journal": ("_io", "companies", "session", "jobs", "simulator", "cli", "distributed"),
    "testing.py": ("cli", "pytest_plugin"),
    "pytest_plugin.py": ("cli",),
    "webhooks": ("_io", "companies", "session", "jobs", "journal", "simulator", "cli", "events"),
    "distributed": ("simulator", "cli"),
    "telemetry.py": ("companies", "fleet", "journal", "simulator", "cli", "distributed"),
}
PURE = ("_core", "webhooks")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_knows_only_what_lies_below_it(path: Path) -> None:
    top = path.relative_to(ROOT).parts[0]
    names = set(imports(path))
    for above in ABOVE.get(top, ()):
        assert not [name for name in names if re.match(rf"asyncmig\.{above}\b", name)]
    if top not in ("testing.py", "pytest_plugin.py"):
        assert not names & {"asyncmig.testing", "asyncmig.pytest_plugin"}
    if top == "simulator":
        assert not [n for n in names if n.startswith("asyncmig") and not n.startswith("asyncmig.simulator")]
    if top in PURE:
        assert not {name.split(".")[0] for name in names} & IMPURE


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        (
            "aiohttp",
            {"_io/transport.py", "simulator/server/app.py", "simulator/companies/webhooks.py", "session.py"},
        ),
        ("pytest", {"pytest_plugin.py"}),
        ("aiolimiter", {"_io/dispatcher.py", "_io/byte_throttle.py"}),
        (
            "psycopg",
            {"journal/postgres.py", "journal/postgres_schema.py", "distributed/_steady_queue.py"},
        ),
        ("opentelemetry", {"telemetry.py"}),
        ("redis", {"distributed/redis.py", "distributed/_steady_queue.py"}),
        ("saq", {"distributed/saq.py", "distributed/_steady_queue.py"}),
    ],
)
def test_a_library_is_used_in_one_place(library: str, homes: set[str]) -> None:
    users = {str(p.relative_to(ROOT)) for p in MODULES if library in {n.split(".")[0] for n in imports(p)}}
    assert users == homes


def test_the_shell_knows_no_generation_of_the_api() -> None:
    for path in [*(ROOT / "_core").glob("*.py"), *(ROOT / "_io").glob("*.py")]:
        assert not re.search(
            r"\bcompan(y|ies)\b|\bmigration", path.read_text(encoding="utf-8"), re.IGNORECASE
        ), path


def test_the_top_level_lists_just_what_is_there() -> None:
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
