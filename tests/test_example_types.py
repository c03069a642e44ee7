"""The Python examples of README, guide, manuals and docstrings pass mypy strict and pyright strict."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from documents import GUIDE, MANUALS, README, Document

import asyncmig

pytest.importorskip("mypy", reason="the extra lint is not installed")
pytest.importorskip("pyright", reason="the extra lint is not installed")
PACKAGES = Path(asyncmig.__file__).parents[1]
PRELUDE = """
import os
from collections.abc import Callable
from pathlib import Path
import asyncmig
import asyncmig.companies
from asyncmig import Custom

imported = (os, Callable, Path, Custom)  # no text needs all of them
session: asyncmig.Session
source: asyncmig.companies.Source
specs: list[asyncmig.Spec]
"""
"""Definitions of the names that the examples use and do not define."""
HANDLES = f"""{PRELUDE}
import asyncio
company: asyncmig.companies.Company
loop = asyncio.get_running_loop
"""
COMPANIES = f"""{HANDLES}
run: asyncmig.companies.ImportRun
"""
MIGRATIONS = f"""{HANDLES}
from asyncmig.migrations import CredentialsNeeded, Migration, Preview, Question, Questions, Report, Run
kinds = (CredentialsNeeded, Preview, Questions)
migration: Migration
report: Report
run: Run


def choose(question: Question) -> str:
    return question.options[0].id
"""
"""The definitions for docstrings of methods, for each API generation."""


def module(text: Document) -> str:
    """Return the examples of a document as one module.

    A block with `await` outside of functions becomes a coroutine function. All blocks of a docstring become one
    coroutine function, so they share their names.
    """
    prelude = MIGRATIONS if text.name.startswith("asyncmig.migrations") else COMPANIES
    blocks = [block for block in text.blocks("python") if documents.is_runnable(block)]
    if text.name.startswith("asyncmig"):
        return f"{prelude}\n\n{coroutine(chr(10).join(blocks), 0)}"
    parts = [PRELUDE]
    for number, block in enumerate(blocks):
        if block != documents.SERVICE:
            parts.append(coroutine(block, number) if needs_coroutine(block) else block)
    return "\n\n".join(parts)


def coroutine(block: str, number: int) -> str:
    """Return a coroutine function with a block as its body."""
    body = "".join(f"    {line}" if line.strip() else line for line in block.splitlines(keepends=True))
    return f"async def example_{number}() -> None:\n{body}"


def needs_coroutine(block: str) -> bool:
    """Return whether a block uses `await` outside of functions."""
    try:
        compile(block, "block", "exec")
    except SyntaxError:
        compile(block, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return True
    return False


@pytest.mark.timeout(300)
def test_the_examples_pass_mypy_strict_and_pyright_strict(tmp_path: Path) -> None:
    for text in [
        each for each in (README, GUIDE, *MANUALS, *documents.docstrings()) if each.blocks("python")
    ]:
        name = text.name.removesuffix(".md").replace(".", "_").lower()
        (tmp_path / f"{name}_examples.py").write_text(module(text), encoding="utf-8")
    (tmp_path / "service.py").write_text(documents.SERVICE, encoding="utf-8")
    (tmp_path / "test_service.py").write_text(documents.SERVICE_TESTS, encoding="utf-8")
    settings = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "extraPaths": [str(PACKAGES)],
        "reportUnusedVariable": False,  # the variables are global where a user runs the example
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    commands = {
        "mypy": ["--strict", "--config-file=", "--no-error-summary", "--python-version=3.11", "."],
        "pyright": ["--pythonpath", sys.executable],
    }
    environment = {**os.environ, "MYPYPATH": "" if "site-packages" in PACKAGES.parts else str(PACKAGES)}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", name, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, words in commands.items()
    }
    output = {name: process.communicate()[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == {"mypy": 0, "pyright": 0}, (
        "\n".join(output.values())
    )
