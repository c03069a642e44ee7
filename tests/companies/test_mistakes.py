"""Mistakes of new users: unambiguous input is accepted, other input raises a clear error before a request."""

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from inprocess import InProcess

import asyncmig
from asyncmig import (
    Delivered,
    Failed,
    Fleet,
    Gate,
    InvalidInput,
    Journal,
    LiveSource,
    MemoryJournal,
    Parked,
    Pending,
    RetryPolicy,
    Session,
    Spec,
    Timeouts,
    migrate,
)
from asyncmig.companies import Company
from asyncmig.generations import check_spec, find
from asyncmig.jobs.manifest import read_manifest
from asyncmig.simulator import Faults
from asyncmig.testing import Simulator

from .conftest import CLEAN, DUPLICATES, SOURCE, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
acme_spec = Spec(external_id="acme", name="A", source=SOURCE, files=(Path("a.csv"),))


def session(**options: Any) -> Session:
    return Session("key", "https://api.test/v1", **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", 7),
        ("base_url", 7),
        ("limit", "100"),
        ("limit", 1.5),
        ("limit", True),
        ("window", "60"),
        ("scope", "keys"),
        ("scope", ["key"]),
        ("second_channel", "yes"),
        ("timeouts", 30),
        ("timeouts_by_endpoint", [30]),
        ("retry", 3),
        ("max_parallel_uploads", "4"),
        ("max_parallel_uploads", 0),
        ("upload_bytes_per_second", "fast"),
        ("recent", 7),
        ("shared", "redis://localhost"),
        ("rng", 7),
        ("http", "aiohttp"),
        ("transport", "aiohttp"),
    ],
)
def test_a_wrong_argument_of_a_session_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        Session(**{"api_key": "secret", "base_url": "https://api.test/v1", name: value})  # type: ignore[arg-type]
    assert refused.value.field == name
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Gate(limit="5"), "limit"),  # type: ignore[arg-type]
        (lambda: Gate(window=None), "window"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(attempts="8"), "attempts"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(attempts=0), "attempts"),
        (lambda: RetryPolicy(floor=-1), "floor"),
        (lambda: Timeouts(total="60"), "total"),  # type: ignore[arg-type]
        (lambda: Journal(7), "path"),  # type: ignore[arg-type]
        (lambda: Journal("fleet.db", lease="30"), "lease"),  # type: ignore[arg-type]
        (lambda: Simulator(seed="7"), "seed"),  # type: ignore[arg-type]
        (lambda: Simulator(limit=5), "limit"),  # type: ignore[arg-type]
        (lambda: Simulator(latency="slow"), "latency"),  # type: ignore[arg-type]
        (lambda: Simulator(pace=2.0), "pace"),  # type: ignore[arg-type]
        (lambda: Simulator(faults="500-before"), "faults"),  # type: ignore[arg-type]
        (lambda: read_manifest(7), "path"),  # type: ignore[arg-type]
        (lambda: LiveSource(source_key="Salesforce"), "source_key"),
        (lambda: LiveSource(source_key="crm", config="eu"), "config"),  # type: ignore[arg-type]
        (lambda: LiveSource(source_key="crm", credentials="t0p"), "credentials"),  # type: ignore[arg-type]
        (lambda: asyncmig.Approve(["a"]), "answers"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_of_other_constructors_is_named(make: Callable[[], object], name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        make()
    assert refused.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal", 7),
        ("journal", None),
        ("to", None),
        ("decide", "aprove"),
        ("decide", None),
        ("decide", ["park"]),
        ("row_filter", "valids"),
        ("row_filter", None),
        ("retries", "3"),
        ("retries", -1),
        ("retry_failed", "yes"),
        ("deliver_rejected", 1),
        ("export", "everything"),
        ("concurrency", "5"),
        ("concurrency", 0),
        ("concurrency", 2.5),
    ],
)
def test_a_wrong_argument_of_a_fleet_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        Fleet(session(), **{"journal": "fleet.db", name: value})  # type: ignore[arg-type]
    assert refused.value.field == name
    with pytest.raises(InvalidInput, match="session"):
        Fleet("session", journal="fleet.db")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", None),
        ("name", 7),
        ("name", " "),
        ("name", "a\0b"),
        ("name", "a\x1bb"),
        ("name", "a\udc80b"),
        ("source", 7),
        ("source", ""),
        ("source", "a\0"),
        ("external_id", 7),
        ("external_id", ""),
        ("external_id", "a b"),
        ("external_id", "x" * 256),
        ("external_id", ["a"]),
        ("template_ids", "abc"),
        ("template_ids", []),
        ("template_ids", [7]),
        ("template_ids", ["a", ""]),
        ("template_ids", 7),
        ("connections", "https://crm.example"),
        ("rank", "first"),
    ],
)
async def test_a_wrong_field_of_a_company_or_a_spec_is_named(
    open_session: OpenSession,
    transport: InProcess,
    customer: Customer,
    tmp_path: Path,
    name: str,
    value: object,
) -> None:
    good = customer("good")
    async with open_session() as opened:
        with pytest.raises(InvalidInput) as refused:
            await opened.companies.create(**{"name": "A", "source": SOURCE, "external_id": "a", name: value})  # type: ignore[arg-type]
        assert refused.value.field == name
        assert not transport.requests
        if name == "rank":
            return
        field = name.replace("template_ids", "templates")
        fields = {"external_id": "bad", "name": "B", "source": SOURCE, "files": good.files, field: value}
        bad = Spec(**fields)  # type: ignore[arg-type]
        _, error = check_spec(find("companies"), bad)
        assert error is not None
        assert error.field == field
        async with Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
            ended = [outcome async for outcome in fleet.run([bad, good])]
            submitted = await fleet.submit(bad)
        alone = await migrate(opened, bad, journal=MemoryJournal(), to=str(tmp_path / "alone"))
    for outcome in (ended[0], submitted, alone):
        assert isinstance(outcome, Failed)
        assert f"{field}=" in outcome.error
        assert msgspec.json.encode(outcome)
    assert isinstance(ended[1], Delivered)
    assert len(ended) == 2


@pytest.mark.parametrize(
    "files", [None, 7, (), (7,), (None,), ("",), (b"a.csv",), ("no\0path",), object(), [[]]]
)
async def test_wrong_files_of_a_spec_are_refused(
    open_session: OpenSession, customer: Customer, tmp_path: Path, files: Any
) -> None:
    bad = Spec(external_id="bad", name="B", source=SOURCE, files=files)
    assert "bad" in repr(bad)
    with pytest.raises(InvalidInput) as refused:
        bad.validate()
    assert refused.value.field == "files"
    async with open_session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        outcomes = {outcome.external_id: outcome async for outcome in fleet.run([customer("good"), bad])}
    assert isinstance(outcomes["bad"], Failed)
    assert isinstance(outcomes["good"], Delivered)


async def test_a_file_that_is_given_twice_is_refused(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    (file,) = customer().files
    twice = Spec(external_id="acme", name="A", source=SOURCE, files=(file, file.parent / "." / file.name))
    with pytest.raises(InvalidInput) as refused:
        twice.validate()
    assert (refused.value.field, refused.value.value) == ("files", str(file))
    async with open_session() as opened:
        outcome = await migrate(opened, twice, journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Failed)
    assert "is given twice" in outcome.error
    assert not transport.requests


@pytest.mark.parametrize("specs", [None, 7, "specs", b"specs", {"a": 1}, "one"])
async def test_a_fleet_refuses_specs_that_are_not_a_list(
    open_session: OpenSession, customer: Customer, tmp_path: Path, specs: Any
) -> None:
    async with open_session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path) as fleet:
        with pytest.raises(InvalidInput, match="specs="):
            _ = [outcome async for outcome in fleet.run(customer() if specs == "one" else specs)]


@pytest.mark.parametrize("wrong", [None, 7, "acme", {"external_id": "acme"}])
async def test_a_customer_that_is_not_a_spec_fails(
    open_session: OpenSession, customer: Customer, tmp_path: Path, wrong: Any
) -> None:
    async with open_session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        outcomes = [outcome async for outcome in fleet.run([wrong, customer()])]
        assert isinstance(await fleet.submit(wrong), Failed)
    assert [type(outcome) for outcome in outcomes] == [Failed, Delivered]
    assert "is not a Spec" in cast(Failed, outcomes[0]).error


@pytest.mark.parametrize("kind", ["generator", "async generator", "keys", "tuple"])
async def test_specs_may_come_from_any_iterable(
    open_session: OpenSession, customer: Customer, tmp_path: Path, kind: str
) -> None:
    given = [customer(f"c{n}") for n in range(3)]

    async def slowly() -> AsyncIterator[Spec]:
        for spec in given:
            await asyncio.sleep(1.0)
            yield spec

    specs = {
        "generator": iter(given),
        "async generator": slowly(),
        "tuple": tuple(given),
        "keys": dict.fromkeys(given).keys(),
    }[kind]
    async with open_session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        outcomes = [outcome async for outcome in fleet.run(specs)]  # type: ignore[arg-type]
    assert sorted(outcome.external_id for outcome in outcomes) == ["c0", "c1", "c2"]


async def test_unambiguous_input_is_accepted(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    path = customer().files[0]
    async with open_session() as opened:
        source = (await opened.companies.sources())[0]
        templates = await opened.companies.templates()
        spec = Spec(external_id="acme", name="A", source=source, files=str(path), templates=templates)  # type: ignore[arg-type]
        assert spec.files == (path,)
        assert spec.source == source.id
        assert spec.templates == tuple(template.id for template in templates)
        for files in ([str(path)], (path,), path, iter([path])):
            assert Spec(external_id="acme", name="A", source=source.id, files=files).files == (path,)  # type: ignore[arg-type]
        outcome = await migrate(opened, spec, journal=MemoryJournal(), to=str(tmp_path / "out"))
        assert isinstance(outcome, Delivered)
        for n, given in enumerate((str(path), [str(path)], path)):
            company = await opened.companies.create(
                name=f"B{n}", source=source, external_id=f"b{n}", template_ids=templates
            )
            await company.upload(str(path))
            await (await company.imports.start(files=given, rows=None)).wait()
        company = await opened.companies.create(name="C", source=source, external_id="c")
        await (await company.imports.start(files=None, rows=iter([{"E-mail": "a@b.c"}]))).wait()
        assert await company.download(to=str(tmp_path / "c"))


async def test_instances_of_a_subclass_of_str_are_accepted(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    class Text(str):
        __slots__ = ()

    source, path = Text(SOURCE), customer().files[0]
    async with open_session() as opened:
        templates = [Text(each.id) for each in await opened.companies.templates()]
        spec = Spec(
            external_id=Text("acme"),
            name=Text("A"),
            source=source,
            files=Text(path),  # type: ignore[arg-type]
            templates=templates,  # type: ignore[arg-type]
        )
        outcome = await migrate(opened, spec, journal=MemoryJournal(), to=tmp_path / "out")
        assert isinstance(outcome, Delivered), outcome
        company = await opened.companies.create(
            name=Text("B"), source=source, external_id=Text("b"), template_ids=templates
        )
        sent = await company.upload(CLEAN.encode(), name=Text("b.csv"), content_type=Text("text/csv"))
        await (await company.imports.start(files=[sent], idempotency_key=Text("key"))).wait()


@pytest.fixture
async def acme(open_session: OpenSession) -> AsyncIterator[Company]:
    async with open_session() as opened:
        yield await opened.companies.create(name="A", source=SOURCE, external_id="acme")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda company: company.upload(7), "source"),
        (lambda company: company.upload(None), "source"),
        (lambda company: company.upload("none.csv"), "files"),
        (lambda company: company.upload("a,b\n1,2\n", name="a.csv"), "source"),
        (lambda company: company.upload([b"a"], name="a.csv", size=1), "source"),
        (lambda company: company.upload(b"a"), "name"),
        (lambda company: company.upload(b"a", name=7), "name"),
        (lambda company: company.upload(b"a", name="a\0.csv"), "name"),
        (lambda company: company.upload(b"a", name="a\udc80.csv"), "name"),
        (lambda company: company.upload(b"a", name="a.csv", size="1"), "size"),
        (lambda company: company.upload(b"a", name="a.csv", content_type=7), "content_type"),
        (lambda company: company.upload(b"a", name="a.csv", progress=7), "progress"),
        (lambda company: company.upload(io.BytesIO(b"a")), "name"),
        (lambda company: company.upload(io.StringIO("a"), name="a.csv"), "source"),
        (lambda company: company.upload(closed(), name="a.csv"), "source"),
        (lambda company: company.upload(Unseekable(b"a"), name="a.csv"), "source"),
        (lambda company: company.upload(at_its_end(), name="a.csv"), "source"),
        (lambda company: company.upload(io.BytesIO(b"ab"), name="a.csv", size=3), "size"),
        (lambda company: company.imports.start(rows=7), "rows"),
        (lambda company: company.imports.start(rows="a"), "rows"),
        (lambda company: company.imports.start(rows=[7]), "rows[0]"),
        (lambda company: company.imports.start(rows=[["a"]]), "rows[0]"),
        (lambda company: company.imports.start(rows=None), "files"),
        (lambda company: company.imports.start(files=7), "files"),
        (lambda company: company.imports.start(files=[7]), "files"),
        (lambda company: company.imports.start(files=[b"a"]), "files"),
        (lambda company: company.imports.start(rows=[{"a": 1}], idempotency_key=7), "idempotency_key"),
        (lambda company: company.imports.start(rows=[{"a": 1}], max_inline_rows="5"), "max_inline_rows"),
        (lambda company: company.imports.open(7), "run_id"),
        (lambda company: company.exports.start(mode="all"), "mode"),
        (lambda company: company.exports.start(mode="full", template_ids="abc"), "template_ids"),
        (lambda company: company.exports.start(mode="full", row_filter=7), "row_filter"),
        (lambda company: company.exports.start(mode="full", idempotency_key=7), "idempotency_key"),
        (lambda company: company.exports.open(7), "run_id"),
        (lambda company: company.export(template_ids=7), "template_ids"),
        (lambda company: company.export(canary_first="no"), "canary_first"),
        (lambda company: company.download(to=None), "to"),
        (lambda company: company.download(to=7), "to"),
        (lambda company: company.download(to="out", sheets="Contacts"), "sheets"),
        (lambda company: company.download(to="out", sheets=[7]), "sheets"),
        (lambda company: company.download(to="out", filter="valids"), "filter"),
        (lambda company: company.download(to="out", report="report"), "report"),
        (lambda company: company.stream(7), "sheet"),
        (lambda company: company.stream(filter=None), "filter"),
        (lambda company: company.sheet(7), "wanted"),
    ],
)
async def test_a_wrong_argument_of_a_company_method_is_named(
    acme: Company, transport: InProcess, call: Callable[[Any], Any], field: str
) -> None:
    sent = len(transport.sent)
    with pytest.raises(InvalidInput) as refused:
        await await_result(call, acme)
    assert refused.value.field == field
    assert len(transport.sent) == sent


async def await_result(call: Callable[[Any], Any], subject: object) -> None:
    result = call(subject)
    if asyncio.iscoroutine(result):
        await result


def closed() -> io.BytesIO:
    file = io.BytesIO(b"a")
    file.close()
    return file


def at_its_end() -> io.BytesIO:
    file = io.BytesIO()
    file.write(b"a,b\n")
    return file


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda opened: opened.companies.source(7), "wanted"),
        (lambda opened: opened.companies.template(None), "wanted"),
        (lambda opened: opened.companies.open(7), "company_id"),
        (lambda opened: opened.watch(7, "company"), "run_id"),
        (lambda opened: opened.request(7, "/sources"), "method"),
        (lambda opened: opened.request("GET", 7), "template"),
        (lambda opened: opened.request("GET", "/sources", params=["a"]), "params"),
        (lambda opened: opened.request("GET", "/sources", lane=7), "lane"),
        (lambda opened: opened.request("GET", "/sources", rank="a"), "rank"),
        (lambda opened: opened.request("GET", "/sources", max_wait="a"), "max_wait"),
        (lambda opened: opened.gate("GET", None), "template"),
        (lambda opened: opened.gate(None, "/sources"), "method"),
        (lambda opened: asyncmig.adopt(MemoryJournal(), 7, "company"), "external_id"),
        (lambda opened: asyncmig.adopt("fleet.db", "acme", "company"), "journal"),
        (lambda opened: migrate(opened, acme_spec, journal="fleet.db", to="out"), "journal"),  # type: ignore[arg-type]
        (lambda opened: migrate(opened, None, journal=MemoryJournal(), to="out"), "spec"),  # type: ignore[arg-type]
        (lambda opened: migrate("session", acme_spec, journal=MemoryJournal(), to="out"), "session"),  # type: ignore[arg-type]
        (lambda opened: migrate(opened, acme_spec, journal=MemoryJournal(), to=7), "to"),  # type: ignore[arg-type]
    ],
)
async def test_a_wrong_argument_of_a_session_method_is_named(
    open_session: OpenSession, transport: InProcess, call: Callable[[Any], Any], field: str
) -> None:
    async with open_session() as opened:
        with pytest.raises(InvalidInput) as refused:
            await await_result(call, opened)
        assert refused.value.field == field
    assert not transport.requests


def file_objects(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """Yield file objects whose current position is the start of `CLEAN`."""
    content = CLEAN.encode()
    yield "memory", io.BytesIO(content)
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    yield "buffered", path.open("rb")
    yield "raw", path.open("rb", buffering=0)
    spooled = tempfile.SpooledTemporaryFile(max_size=10)  # noqa: SIM115 - the test closes it
    spooled.write(content)
    spooled.seek(0)
    yield "spooled", spooled
    later = io.BytesIO(b"before" + content)
    later.seek(6)
    yield "later", later


async def test_file_objects_are_uploaded_from_their_current_position(
    acme: Company, transport: InProcess, tmp_path: Path
) -> None:
    transport.faults = Faults({"500-before": 0.3})
    digests = set()
    for name, file in file_objects(tmp_path):
        uploaded = await acme.upload(file, name=f"{name}.csv")
        assert uploaded.size == len(CLEAN.encode())
        digests.add(uploaded.sha256)
        assert not file.closed
        file.close()
    assert len(digests) == 1
    with (tmp_path / "file.csv").open("rb") as file:
        assert (await acme.upload(file)).name == "file.csv"


@pytest.mark.parametrize("decides", [True, "approve", {"approve": True}, 7])
async def test_a_wrong_result_of_decide_leaves_the_customer_pending(
    open_session: OpenSession, customer: Customer, tmp_path: Path, decides: Any
) -> None:
    async def decide(parked: Parked) -> Any:
        return decides

    async with (
        open_session() as opened,
        Fleet(opened, journal=MemoryJournal(), to=tmp_path / "o", decide=decide) as fleet,
    ):
        outcome = await fleet.submit(customer(contacts=DUPLICATES))
    assert isinstance(outcome, Pending)
    assert outcome.reason == "crashed"
    assert "decide=" in outcome.error
    assert outcome.ids.keys() == {"company", "run"}


async def test_decide_may_be_a_plain_function(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    def decide(parked: Parked) -> Any:
        return asyncmig.Approve()

    async with (
        open_session() as opened,
        Fleet(opened, journal=MemoryJournal(), to=tmp_path / "o", decide=decide) as fleet,
    ):
        assert isinstance(await fleet.submit(customer(contacts=DUPLICATES)), Delivered)


async def test_a_live_source_is_refused_by_name_before_a_request(
    open_session: OpenSession, transport: InProcess, tmp_path: Path
) -> None:
    live = LiveSource(source_key="salesforce", config={"region": "eu"}, credentials={"token": "t0p"})
    assert "t0p" not in f"{live!r} {live} {live.__rich_repr__()}"
    spec = msgspec.structs.replace(acme_spec, files=(), connection=live)
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Failed)
    assert "connection='salesforce'" in outcome.error
    assert "'companies'" in outcome.error
    assert "t0p" not in repr([spec, outcome])
    assert not transport.requests
