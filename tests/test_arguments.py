"""A public function refuses invalid arguments with an error of the library, and never with a raw `TypeError`."""

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import asyncmig
from asyncmig import AsyncmigError, Fleet, MemoryJournal, Spec, preflight, webhooks
from asyncmig.customers.options import MigrationOptions
from asyncmig.jobs.manifest import read_manifest
from asyncmig.testing import Simulator

pytestmark = pytest.mark.looptime
WRONG = (7, -1, 3.5, True, None, "x", "", "a\0b", "\udc80", b"x", [], [None], {"a": 1}, object())
Call = Callable[..., Any]


async def provoke(function: Call, given: Mapping[str, object], skip: tuple[str, ...] = ()) -> None:
    """Call a function with each value of `WRONG` for each parameter. The other arguments are `given`."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in skip:
            continue
        for wrong in WRONG:
            await call(function, {**given, name: wrong})


async def call(function: Call, arguments: dict[str, object]) -> None:
    names = [
        name
        for name, each in inspect.signature(function).parameters.items()
        if each.kind is each.POSITIONAL_ONLY
    ]
    first = [arguments.pop(name) for name in names if name in arguments]
    try:
        async with asyncio.timeout(600.0):
            result = function(*first, **arguments)
            if inspect.isawaitable(result):
                await result
            elif hasattr(result, "__anext__"):
                _ = [each async for each in result]
    except (AsyncmigError, OSError):  # OSError: a missing file or folder, or a time-out
        pass


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (asyncmig.Session, {"api_key": "key", "base_url": "https://api.test/v1"}),
        (Simulator, {}),
        (asyncmig.Journal, {"path": "fleet.db"}),
        (asyncmig.Gate, {}),
        (asyncmig.RetryPolicy, {}),
        (asyncmig.Timeouts, {}),
        (asyncmig.Approve, {"answers": None}),
        (MigrationOptions, {}),
        (webhooks.Reassembler, {}),
        (webhooks.decode, {"body": b"{}"}),
        (webhooks.receive, {"body": b"{}", "headers": {}, "secrets": "whsec_c2VjcmV0", "now": 1.0}),
        (read_manifest, {"path": "customers.csv"}),
        (preflight.check, {"files": ["contacts.csv"]}),
        (asyncmig.adopt, {"journal": MemoryJournal(), "external_id": "acme", "company_id": "company"}),
        (Spec, {"external_id": "acme", "name": "A", "source": "s", "files": "contacts.csv"}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_functions_and_classes_refuse_invalid_arguments(
    function: Call, given: Mapping[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await provoke(function, given)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_methods_of_a_session_and_a_company_refuse_invalid_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("contacts.csv").write_text("Email,First Name,Last Name\na@x.org,A,B\n", encoding="utf-8")
    async with Simulator(seed=1).session() as session:
        source = (await session.companies.sources())[0]
        company = await session.companies.create(name="Z", source=source, external_id="z")
        functions: list[tuple[Call, dict[str, object]]] = [
            (session.companies.create, {"name": "N", "source": source.id}),
            (session.companies.source, {"wanted": "x"}),
            (session.companies.template, {"wanted": "x"}),
            (session.companies.open, {"company_id": "x"}),
            (session.watch, {"run_id": "a", "company_id": "b"}),
            (session.request, {"method": "GET", "template": "/sources"}),
            (session.gate, {"method": "GET", "template": "/sources"}),
            (company.sheet, {"wanted": "x"}),
            (company.upload, {"source": b"a", "name": "a.csv"}),
            (company.imports.start, {"rows": [{"Email": "a@b.c"}]}),
            (company.imports.open, {"run_id": "x"}),
            (company.exports.start, {"mode": "full"}),
            (company.exports.open, {"run_id": "x"}),
            (company.export, {}),
            (company.download, {"to": "out"}),
            (company.stream, {}),
        ]
        for function, given in functions:
            await provoke(function, given)
        await provoke(company.imports.started[0].approve, {})


async def test_methods_of_a_fleet_refuse_invalid_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("contacts.csv").write_text("Email,First Name,Last Name\na@x.org,A,B\n", encoding="utf-8")
    async with Simulator(seed=1).session() as session:
        source = (await session.companies.sources())[0]
        spec = Spec(external_id="acme", name="A", source=source.id, files=(Path("contacts.csv"),))
        await provoke(Fleet, {"session": session, "journal": MemoryJournal()})
        await provoke(
            asyncmig.migrate, {"session": session, "spec": spec, "journal": MemoryJournal(), "to": "m"}
        )
        async with Fleet(session, journal=MemoryJournal(), to="out") as fleet:
            await provoke(fleet.submit, {"spec": spec})
            await provoke(fleet.run, {"specs": [spec]})
            await provoke(fleet.drain, {})
    assert os.path.exists("out/acme/Contacts.csv") or os.path.exists("m/Contacts.csv")
