"""The documents of asyncmig and their code blocks: README, guide, .github, docstrings."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import asyncmig

ROOT = Path(__file__).parents[1]
PACKAGE = Path(asyncmig.__file__).parent
OPTIONAL = ("arq", "temporalio")
"""Packages of job runners that may be missing: arq needs an older redis-py than the other packages."""
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A Markdown file, or the docstring of a module, a class or a function."""

    name: str
    text: str
    is_module: bool = False

    def blocks(self, language: str) -> list[str]:
        """Return the code blocks of a language, in order."""
        return [text for found, text in _FENCE.findall(self.text) if found == language]

    def __str__(self) -> str:
        return self.name


def read(path: Path, name: str) -> Document:
    return Document(name, path.read_text(encoding="utf-8"))


README = read(ROOT / "README.md", "README.md")
GUIDE = read(PACKAGE / "guide.md", "guide.md")
MANUALS = [read(path, path.name) for path in sorted((ROOT / ".github").glob("*.md"))]
SERVICE, SERVICE_TESTS = [
    block for block in GUIDE.blocks("python") if re.search(r"FastAPI\(|^import service", block, re.MULTILINE)
]
"""The code of the guide's complete service, and the code of its tests."""
BENCHMARKS = read(ROOT / "benchmarks/README.md", "benchmarks/README.md")


@cache
def docstrings() -> tuple[Document, ...]:
    """Return every docstring of the package."""
    return tuple(_docstrings())


def _docstrings() -> Iterator[Document]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if text := ast.get_docstring(node):
                if isinstance(node, ast.Module):
                    yield Document(module, text, is_module=True)
                else:
                    yield Document(f"{module}.{node.name}", text)


def document(name: str) -> Document:
    """Return the docstring of a module."""
    return next(each for each in docstrings() if each.name == name)


def is_runnable(block: str) -> bool:
    """Return whether a block contains no tests, and the optional packages that it imports are installed."""
    return "import pytest" not in block and all(
        importlib.util.find_spec(name)
        for name in OPTIONAL
        if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)
    )


async def run_blocks(name: str, blocks: list[str], names: dict[str, object]) -> None:
    """Run Python blocks in order. They may use `await` outside of functions."""
    for block in filter(is_runnable, blocks):
        code = compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.iscoroutine(result := eval(code, names)):
            await result
