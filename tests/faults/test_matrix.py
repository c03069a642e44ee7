"""Every API call with every fault, once each. One table contains the expected results."""

import csv
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import RunFailed, Session, TruncatedDownload, UnknownOutcome
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, RunDurations, Variants, World
from asyncmig.simulator.server.messages import drifted

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
CSV = "Email,First Name,Last Name\n" + "".join(f"p{n}@x.org,A,B\n" for n in range(20))
DOUBLED = CSV + "p1@x.org,A,B\n" * 3
NAMES = [
    "request-lost",
    "answer-lost",
    "reset-mid-body",
    "too-many",
    "500-before",
    "500-after",
    "html-502",
    "empty-503",
    "truncated",
    "hang",
    "redirect",
    "drift",
]
# ok: the call succeeds, and the server performed the operation once.
# unknown: `UnknownOutcome`. The company may exist, the lost answer contained its id, and no endpoint finds it.
# cut: `TruncatedDownload`. The client cannot take back bytes of a stream that it already returned.
# -: impossible. The answer to this call contains no JSON that can drift.
MATRIX = """
                 lost      answer    reset     429  500     500       HTML  empty  trunc.    hang     redirect  drift
list sources     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
list templates   ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
create company   ok        unknown   unknown   ok   ok      unknown   ok    ok     unknown   unknown  ok        ok
create upload    ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
put bytes        ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        -
start import     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
upload stream    ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        -
start rows       ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
rows as file     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
read import      ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
active import    ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
recover          ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
list imports     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
decide           ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
answer           ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
reject           ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
export           ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
read export      ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
canary first     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        ok
download         ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        -
download zip     ok        ok        ok        ok   ok      ok        ok    ok     ok        ok       ok        -
stream           ok        ok        cut       ok   ok      ok        ok    ok     cut       ok       ok        -
stream zip       ok        ok        cut       ok   ok      ok        ok    ok     cut       ok       ok        -
"""
ROUTES = {  # the endpoint of each call, as the simulator names it
    "list sources": "GET /sources",
    "list templates": "GET /templates",
    "create company": "POST /companies",
    "create upload": "POST /companies/{id}/uploads",
    "put bytes": "PUT storage",
    "start import": "POST /companies/{id}/imports",
    "upload stream": "PUT storage",
    "start rows": "POST /companies/{id}/imports",
    "rows as file": "POST /companies/{id}/imports",
    "read import": "GET /companies/{id}/imports/{run_id}",
    "active import": "GET /companies/{id}/imports",
    "recover": "GET /companies/{id}/imports",
    "list imports": "GET /companies/{id}/imports",
    "decide": "POST /companies/{id}/imports/{run_id}/decisions",
    "answer": "POST /companies/{id}/imports/{run_id}/decisions",
    "reject": "POST /companies/{id}/imports/{run_id}/decisions",
    "export": "POST /companies/{id}/exports",
    "read export": "GET /companies/{id}/exports/{run_id}",
    "canary first": "POST /companies/{id}/exports",
    "download": "GET /companies/{id}/export.csv",
    "download zip": "GET /companies/{id}/export.csv",
    "stream": "GET /companies/{id}/export.csv",
    "stream zip": "GET /companies/{id}/export.csv",
}
CELLS = [
    (line[:17].strip(), fault, expected)
    for line in MATRIX.strip("\n").splitlines()[1:]
    for fault, expected in zip(NAMES, line[17:].split(), strict=True)
]


def drift(body: bytes) -> bytes:
    import json

    return json.dumps(drifted(json.loads(body))).encode()


class Calls:
    """Makes each API call with the public interface, and checks its result."""

    def __init__(self, session: Session, tmp_path: Path) -> None:
        self.session, self.tmp_path = session, tmp_path

    async def list_sources(self) -> None:
        assert len(await self.session.companies.sources()) == 3

    async def list_templates(self) -> None:
        assert [each.name for each in await self.session.companies.templates()] == [
            "Companies",
            "Contacts",
            "Deals",
        ]

    async def create_company(self) -> None:
        assert (await self.session.companies.create(name="A", source=SOURCE, external_id="a")).sheets

    async def _import(self, text: str = CSV) -> None:
        self.company = await self.session.companies.create(
            name="A",
            source=SOURCE,
            connections={"destination": {"base_url": "https://d.invalid", "auth": {}}},
        )
        file = self.tmp_path / "contacts.csv"
        file.write_text(text, encoding="utf-8")
        self.run = await self.company.imports.start(files=[file])

    async def create_upload(self) -> None:
        await self._import()
        assert (await self.run.wait()).status == "completed"

    put_bytes = start_import = create_upload

    async def _company(self) -> None:
        self.company = await self.session.companies.create(name="A", source=SOURCE)

    async def upload_stream(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for line in CSV.splitlines(keepends=True):
                yield line.encode()

        await self._company()
        uploaded = await self.company.upload(chunks, name="contacts.csv", size=len(CSV))
        self.run = await self.company.imports.start(files=[uploaded])
        await self._complete()

    async def start_rows(self) -> None:
        await self._company()
        header, *records = csv.reader(io.StringIO(CSV))
        self.run = await self.company.imports.start(
            rows=[dict(zip(header, record, strict=True)) for record in records]
        )
        await self._complete()

    rows_as_file = start_rows

    async def _complete(self) -> None:
        done = await self.run.wait()
        assert done.report is not None
        assert done.report.inserted == 20

    async def read_import(self) -> None:
        await self._import()
        await self._complete()

    async def recover(self) -> None:
        await self._import()
        found = await self.company.imports.recover()
        assert found is not None
        assert found.id == self.run.id
        await found.wait()

    async def active_import(self) -> None:
        await self._import()
        active = await self.company.imports.active()
        assert active is not None
        assert active.run_id == self.run.id
        await self.run.wait()

    async def list_imports(self) -> None:
        await self._import()
        assert [state.run_id async for state in self.company.imports.list()] == [self.run.id]
        await self.run.wait()

    async def decide(self) -> None:
        await self._import(DOUBLED)
        await self.run.wait()
        assert self.run.needs_attention is not None
        await self.run.approve()
        assert (await self.run.wait()).status == "completed"

    async def answer(self) -> None:
        await self._import(DOUBLED)
        await self.run.wait()
        assert self.run.needs_attention is not None
        (question,) = self.run.needs_attention.questions
        await self.run.approve(answers={question.id: question.options[1].id})
        done = await self.run.wait()
        assert done.report is not None
        assert done.report.inserted == 23

    async def reject(self) -> None:
        await self._import(DOUBLED)
        await self.run.wait()
        await self.run.reject()
        with pytest.raises(RunFailed, match="Rejected"):
            await self.run.wait()

    async def export(self) -> None:
        await self._import()
        await self.run.wait()
        export = await self.company.exports.start(mode="full")
        done = await export.wait()
        assert done.report is not None
        assert done.report.total == 20

    read_export = export

    async def canary_first(self) -> None:
        await self._import()
        await self.run.wait()
        exported = await self.company.export()
        assert exported.is_clean
        assert exported.report.total == 20

    async def download(self) -> None:
        await self._import()
        await self.run.wait()
        await self.company.download(to=self.tmp_path / "out")
        text = (self.tmp_path / "out" / "Contacts.csv").read_text(encoding="utf-8")
        assert len(text.splitlines()) == 21

    download_zip = download

    async def stream(self) -> None:
        await self._import()
        await self.run.wait()
        async with self.company.stream("Contacts") as chunks:
            text = b"".join([chunk async for chunk in chunks])
        assert len(text.splitlines()) == 21

    async def stream_zip(self) -> None:
        await self._import()
        await self.run.wait()
        async with self.company.stream() as chunks:
            archive = io.BytesIO(b"".join([chunk async for chunk in chunks]))
        with zipfile.ZipFile(archive) as content:
            assert len(content.read("Contacts.csv").splitlines()) == 21


@pytest.mark.parametrize(("call", "fault", "expected"), CELLS, ids=lambda each: each)
async def test_a_call_with_a_fault_has_the_result_of_the_table(
    call: str, fault: str, expected: str, tmp_path: Path
) -> None:
    if expected == "-":
        return
    # A single sheet is sent as CSV, which has no checksum.
    schemas = SCHEMAS[1:2] if call == "download" else SCHEMAS
    variants = Variants(
        zip_status=404 if call == "download" else 200,
        inline_rows=10 if call == "rows as file" else None,
        failed_writes=0.0,
        hollow_writes=0.0,
    )
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=schemas,
        seed=1,
        pace=RunDurations(base=200.0, sigma=0.0),
        variants=variants,
    )
    transport = InProcess(world, faulty_endpoint=ROUTES[call])
    transport.nth = {1: Fault(change=drift) if fault == "drift" else FAULTS[fault]}
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(1)) as session:
        make: Callable[[], Awaitable[None]] = getattr(Calls(session, tmp_path), call.replace(" ", "_"))
        if expected == "unknown":
            with pytest.raises(UnknownOutcome, match="adopt"):
                await make()
        elif expected == "cut":
            with pytest.raises(TruncatedDownload):
                await make()
        else:
            await make()
    assert transport.faults_met == 1
    assert not transport.foreign
    verdict = world.verdict(now=10**6)
    assert verdict.duplicate_companies == verdict.duplicate_imports == verdict.key_leaks == 0
    assert verdict.duplicate_exports == 0
    assert verdict.blind_decisions == verdict.hasty_polls == verdict.polls_after_the_end == 0
    assert verdict.malformed == verdict.unaccounted == 0
    assert verdict.over_the_limit == 0
