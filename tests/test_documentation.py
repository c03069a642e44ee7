"""The guide, chapters and manuals are correct: blocks run, tables match the program, and every name exists."""

import asyncio
import importlib
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import documents
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from documents import BENCHMARKS, GUIDE, MANUALS, PACKAGE, README, ROOT, Document, document

import asyncmig
from asyncmig._core.limits import Rate
from asyncmig.cli import exit_codes
from asyncmig.cli.app import run_app
from asyncmig.cli.json_output import Report
from asyncmig.cli.sim import new_world
from asyncmig.cli.summary import RunResult
from asyncmig.simulator import SOURCES, World, disordered, export_webhooks, fast_loop, generate, send, serve

CHAPTERS = [
    each
    for each in documents.docstrings()
    if each.blocks("python") and not each.name.startswith("asyncmig.migrations")  # tested in tests/migrations
]
RUNNABLE = [each for each in [GUIDE, *MANUALS, *CHAPTERS] if each.blocks("python")]
TEXTS = [README, GUIDE, *MANUALS, BENCHMARKS]
OF_PYTEST = "asyncmig.pytest_plugin"


def test_the_main_chapters_have_examples() -> None:
    names = {each.name for each in RUNNABLE}
    assert names >= {
        "guide.md",
        "asyncmig.distributed",
        "asyncmig.events",
        "asyncmig.journal",
        "asyncmig.preflight",
        OF_PYTEST,
        "asyncmig.simulator",
        "asyncmig.telemetry",
        "asyncmig.testing",
        "asyncmig.transport",
        "asyncmig.webhooks",
    }


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with the files that the blocks read, and make it the current one."""
    generate(tmp_path, customers=1, seed=4)
    folder = tmp_path / "cust-0001"
    monkeypatch.chdir(folder)
    Path("deals.csv").write_text("Title,Stage,Amount\nBig,won,7\n", encoding="utf-8")
    Path("contacts.csv").write_text("Email,First Name,Last Name\na@example.com,A,B\n", encoding="utf-8")
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_c2VjcmV0")
    return folder


def run_document(
    text: Document, monkeypatch: pytest.MonkeyPatch, then: Callable[..., Awaitable[None]]
) -> None:
    """Run the Python blocks of a document, in order, and `then`, with a simulated account and a fast clock."""
    world = new_world(seed=1, rate=Rate())
    monkeypatch.setenv("VERN_API_KEY", world.key)
    source = next(iter(SOURCES.values()))
    names: dict[str, object] = {
        "__name__": "documentation",
        "asyncio": asyncio,
        "asyncmig": asyncmig,
        "os": os,
        "Path": Path,
        "specs": [
            asyncmig.Spec(
                external_id=f"acme-{n}", name=f"Acme {n}", source=source, files=(Path("contacts.csv"),)
            )
            for n in (2, 3)
        ],
    }

    async def main() -> None:
        async with serve(world) as serving:
            monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
            with_handles = text.name.startswith("asyncmig.") and not text.is_module
            if with_handles:
                await documents.run_blocks("handles", [HANDLES], names)
            try:
                await documents.run_blocks(text.name, text.blocks("python"), names)
                await then(names, world)
            finally:
                if with_handles:
                    session = names["session"]
                    assert isinstance(session, asyncmig.Session)
                    await session.__aexit__(None, None, None)

    with asyncio.Runner(loop_factory=lambda: fast_loop(60)) as runner:
        runner.run(main())


async def do_nothing(names: dict[str, object], world: World) -> None: ...


HANDLES = """
session = await asyncmig.Session().__aenter__()
source = (await session.companies.sources())[0]
company = await session.companies.create(
    name="Acme", source=source, external_id="acme", connections={"destination": {"base_url": "https://crm.example"}}
)
run = await company.imports.start(rows=[{"Email": "x@example.com", "Last Name": "X"}])
await run.wait()
"""
"""Defines what the examples of methods use: an open session, a company, and its completed import."""


@pytest.mark.parametrize(
    "text", [each for each in RUNNABLE if each.name not in (OF_PYTEST, "asyncmig.webhooks")], ids=str
)
@pytest.mark.usefixtures("environment")
def test_the_python_blocks_run(
    text: Document, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for variable, fixture in (("REDIS_URL", "redis_url"), ("DATABASE_URL", "database_url")):
        if variable in text.text:
            monkeypatch.setenv(variable, request.getfixturevalue(fixture))
    run_document(text, monkeypatch, do_nothing)


@pytest.mark.usefixtures("environment")
def test_the_example_of_a_webhook_handler_refuses_only_a_wrong_signature(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def deliver(names: dict[str, object], world: World) -> None:
        async with asyncmig.Session() as session:
            source = (await session.companies.sources())[0]
            company = await session.companies.create(name="Acme", source=source.id, external_id="acme-001")
            await (await company.imports.start(files=[Path("contacts.csv"), Path("deals.csv")])).wait()
        sent = export_webhooks(world.workbook("acme-001"), rng=Random(1), target=200)
        mixed = disordered(sent, rng=Random(2), defects=["wrong-key"])
        app = names["app"]
        assert isinstance(app, web.Application)
        async with TestServer(app) as server:
            url = str(server.make_url("/webhooks"))
            statuses = await send(url, mixed, secret="whsec_c2VjcmV0", clock=wall_clock, attempts=1)
        assert Counter(status for (status,) in statuses) == {204: len(mixed) - 1, 400: 1}

    run_document(document("asyncmig.webhooks"), monkeypatch, deliver)
    assert "acme-001 {'Contacts': 1, 'Deals': 1}" in capsys.readouterr().out


def wall_clock() -> float:
    return datetime.now(UTC).timestamp()


def test_the_example_of_a_test_passes(pytester: pytest.Pytester) -> None:
    plugins, test = document(OF_PYTEST).blocks("python")
    pytester.makeconftest(plugins)
    pytester.makepyfile(test)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest_inprocess("--strict-markers", "-W", "error", "-p", "no:cacheprovider").assert_outcomes(
        passed=1
    )


def test_the_example_of_a_report_has_the_fields_of_a_report() -> None:
    shown = json.loads(GUIDE.blocks("json")[0])
    report = msgspec.convert(shown, Report)
    assert json.loads(msgspec.json.encode(report)) == shown


def test_the_table_of_exit_codes_is_complete() -> None:
    table = GUIDE.text[GUIDE.text.index("| exit code |") :]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted(code for code in vars(exit_codes).values() if isinstance(code, int))
    order = re.search(r"in the order ([\d, ]+)", GUIDE.text)
    documented = RunResult.exit_code.__doc__
    assert order is not None
    assert documented is not None
    assert order[1].rstrip(",. ") in documented


def commands(text: Document) -> list[list[str]]:
    lines = "\n".join(text.blocks("bash")).splitlines() + re.findall(r"`(asyncmig [^`]+)`", text.text)
    plain = (line.split("#")[0].rpartition("&& ")[2].strip().removeprefix(".venv/bin/") for line in lines)
    return [words for line in plain if line.startswith("asyncmig ") and (words := shlex.split(line))]


@pytest.mark.parametrize("text", [each for each in TEXTS if commands(each)], ids=str)
def test_commands_and_their_options_exist(
    text: Document, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helps: dict[str, str] = {}
    for _, command, *arguments in commands(text):
        words = [command, *(arguments[:1] if command == "journal" else ())]
        command = " ".join(words)
        if command not in helps:
            monkeypatch.setattr(sys, "argv", ["asyncmig", *words, "--help"])
            with pytest.raises(SystemExit) as caught:
                run_app()
            assert caught.value.code == 0
            helps[command] = capsys.readouterr().out
        options = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        assert {option for option in options if option not in helps[command]} == set()


SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))


def test_the_messages_that_the_guide_explains_exist_in_the_package() -> None:
    table = GUIDE.text[GUIDE.text.index("| message contains |") :]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) >= 10
    assert [each for each in messages if re.sub(r" \d+$", " ", each) not in SOURCE] == []


QUOTED = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?!\d)(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|lua|css)")
DOTTED = re.compile(r"asyncmig(?:\.\w+)+")
MADE_BY_USERS = ("out/", "OUT/", "uploads/", "asyncmig-demo/", "fleet.db", "conftest.py", "report.json")


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_every_path_in_a_document_exists(text: Document) -> None:
    prose = re.sub(r"^```.*?^```$", "", text.text, flags=re.MULTILINE | re.DOTALL)
    mentioned = {each for each in QUOTED.findall(prose) if PATH.fullmatch(each)}
    mentioned |= set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose))
    places = (ROOT, PACKAGE, ROOT / ".github", ROOT / "benchmarks", PACKAGE / "companies/workflow")
    missing = {
        each
        for each in mentioned
        if not each.startswith(MADE_BY_USERS) and not any((place / each).exists() for place in places)
    }
    assert missing == set()


def test_every_dotted_name_in_the_documents_exists() -> None:
    mentioned = {
        (text.name, name)
        for text in [*TEXTS, *documents.docstrings()]
        for quoted in QUOTED.findall(text.text)
        for name in DOTTED.findall(quoted)
    }
    metrics = set(re.findall(r'"(asyncmig(?:\.\w+)+)"', SOURCE))  # names of metrics
    missing = {(text, name) for text, name in mentioned if name not in metrics and not exists(name)}
    assert {each for each in missing if not (ROOT / each[1]).exists()} == set()


def exists(name: str) -> bool:
    """Return whether a dotted name is a module or an attribute of a module."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_architecture_has_a_line_for_every_unit() -> None:
    table = next(each for each in MANUALS if each.name == "ARCHITECTURE.md").text
    listed = re.findall(
        r"^\| `([\w/.]+)`(?:, `([\w/.]+)`)? \|", table[: table.index("## Reading order")], re.MULTILINE
    )
    units = {path.name + ("" if path.suffix else "/") for path in PACKAGE.iterdir()}
    units -= {"__init__.py", "__main__.py", "__pycache__/", "guide.md", "py.typed", "transport.py"}
    assert {name for names in listed for name in names if name} == {
        *units,
        "companies/workflow/",
        "migrations/workflow/",
    }


def test_the_readme_and_the_architecture_have_the_same_diagram() -> None:
    architecture = next(each for each in MANUALS if each.name == "ARCHITECTURE.md").text
    diagrams = {
        re.findall(r"^```text\n(cli/ .*?)^```", text, re.MULTILINE | re.DOTALL)[0]
        for text in (README.text, architecture)
    }
    assert len(diagrams) == 1


def test_the_links_to_headings_of_the_guide_exist() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", GUIDE.text, re.MULTILINE)
    }
    for text in TEXTS:
        assert set(re.findall(r"guide\.md#([\w-]+)", text.text)) <= anchors
