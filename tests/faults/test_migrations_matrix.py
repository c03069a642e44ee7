"""Every API call of the generation "migrations" with every fault, once each. A table has the expected results."""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import run

from asyncmig import AuthError, NotFound, Session, UnknownOutcome
from asyncmig.migrations import CredentialsNeeded, Migration, Preview, Questions, Report, Run
from asyncmig.simulator import FAULTS, Fault, Reply, RunDurations
from asyncmig.simulator.migrations import Block, Limits, Question, Script, Variants, World
from asyncmig.simulator.server.messages import drifted, json_reply

pytestmark = pytest.mark.usefixtures("no_fsync")
CONTACTS = b"E-mail,Given Name,Surname,Phone\r\na@x.org,Ada,L,1\r\nb@x.org,Bob,M,2\r\nbad,Cy,N,\r\n"
MIGRATION = "/migrations/{id}"
SCRIPTS = {
    "asks": Script(blocks={"generate": [Block(questions=(Question(text="Why?"), Question(text="How?")))]}),
    "signs in": Script(blocks={"generate": [Block(credentials={"token": {"type": "string"}})]}),
}


def drift(body: bytes) -> bytes:
    return json.dumps(drifted(json.loads(body))).encode()


def busy(*, retry_after: str | None = None) -> Fault:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    reply = json_reply(429, {"error": "Too many requests"})
    return Fault(instead=Reply(status=429, body=reply.body, headers=headers))


FAULTY: Mapping[str, Fault] = {
    "lost": FAULTS["request-lost"],
    "answer": FAULTS["answer-lost"],
    "reset": FAULTS["reset-mid-body"],
    "429": busy(),
    "429+": busy(retry_after="7"),
    "500": FAULTS["500-before"],
    "500 p": FAULTS["500-after"],
    "502": FAULTS["html-502"],
    "503": FAULTS["empty-503"],
    "HTML": FAULTS["html-200"],
    "trunc": FAULTS["truncated"],
    "hang": FAULTS["hang"],
    "302": FAULTS["redirect"],
    "drift": Fault(change=drift),
    "401": Fault(instead=json_reply(401, {"error": "Invalid API key"})),
    "404": Fault(instead=json_reply(404, {"error": "Not found"})),
}
# ok: the call succeeds, and the server performed the operation once.
# lost: `UnknownOutcome`. The migration may exist. Without an external id, no request finds it.
# key: `AuthError`. The session then sends no more requests.
# none: `NotFound`. A call that may come before the object is visible is repeated instead (ok).
# -: impossible. The answer to this call contains no JSON that can drift, or only the host of the API has this fault.
MATRIX = """
                  lost  answerreset 429   429+  500   500 p 502   503   HTML  trunc hang  302   drift 401   404
list sources      ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
update source     ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
pin source        ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
source knowledge  ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
write knowledge   ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
list templates    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
read template     ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
update template   ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
create            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
create nameless   lost  lost  lost  ok    ok    lost  lost  lost  lost  lost  lost  lost  lost  ok    key   none
list files        ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
create uploads    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
put bytes         ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    -     -     ok
save connection   ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
read connection   ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   -
delete connection ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   -
own knowledge     ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
own note          ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
generate          ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
update            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
clarify           ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
execute           ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
read run          ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
cancel            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
answer            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
sign in           ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
preview           ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
events            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
stream            ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    -     key   ok
download          ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    -     key   ok
start export      ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
read export       ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   ok
fetch export      ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    -     -     ok
log               ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    key   none
"""
ROUTES: Mapping[str, tuple[str, int]] = {  # the endpoint of each call
    "list sources": "GET /sources",
    "update source": "PATCH /sources/{source}",
    "pin source": "POST /sources/{source}/pin",
    "source knowledge": "GET /sources/{source}/knowledge",
    "write knowledge": "PATCH /sources/{source}/knowledge",
    "list templates": "GET /templates",
    "read template": "GET /templates/{slug}",
    "update template": "PATCH /templates/{slug}",
    "create": "POST /migrations",
    "create nameless": "POST /migrations",
    "list files": f"GET {MIGRATION}/files",
    "create uploads": f"POST {MIGRATION}/files",
    "put bytes": "PUT storage",
    "save connection": f"POST {MIGRATION}/source-connection",
    "read connection": f"GET {MIGRATION}/source-connection",
    "delete connection": f"DELETE {MIGRATION}/source-connection",
    "own knowledge": f"GET {MIGRATION}/knowledge",
    "own note": f"PATCH {MIGRATION}/knowledge",
    "generate": f"POST {MIGRATION}/runs",
    "update": f"POST {MIGRATION}/runs",
    "clarify": f"POST {MIGRATION}/runs",
    "execute": f"POST {MIGRATION}/runs",
    "read run": f"GET {MIGRATION}/runs/{{run_id}}",
    "cancel": f"PATCH {MIGRATION}/runs/{{run_id}}",
    "answer": f"POST {MIGRATION}/runs/{{run_id}}/messages",
    "sign in": f"POST {MIGRATION}/runs/{{run_id}}/credentials",
    "preview": f"GET {MIGRATION}/preview",
    "events": f"GET {MIGRATION}/thread",
    "stream": f"GET {MIGRATION}/thread/stream",
    "download": f"GET {MIGRATION}/exports/{{slug}}.csv",
    "start export": f"POST {MIGRATION}/exports",
    "read export": f"GET {MIGRATION}/exports/jobs/{{job_id}}",
    "fetch export": "GET storage",
    "log": f"GET {MIGRATION}/log",
}
LATE = {"update", "clarify", "execute", "events", "download", "log"}
"""Calls that also need their endpoint for the preparation. They choose the faulty request themselves."""
CELLS = [
    (line[:18].strip(), fault, expected)
    for line in MATRIX.strip("\n").splitlines()[1:]
    for fault, expected in zip(FAULTY, line[18:].split(), strict=True)
    if expected != "-"
]


class Calls:
    """Makes each API call with the public interface, and checks its result."""

    def __init__(self, session: Session, transport: InProcess, folder: Path, fault: Fault) -> None:
        self.api, self.transport, self.world, self.folder, self.fault = (
            session.migrations,
            transport,
            transport.world,
            folder,
            fault,
        )

    def next_is_faulty(self) -> None:
        """Let the next request to the faulty endpoint meet the fault."""
        self.transport.nth = {self.transport.requests[self.transport.faulty_endpoint] + 1: self.fault}

    async def created(self, external_id: str = "acme") -> Migration:
        return await self.api.create(name="Acme", source="HubSpot", external_id=external_id)

    async def filled(self, external_id: str = "acme") -> Migration:
        migration = await self.created(external_id)
        await migration.upload_all([("contacts.csv", CONTACTS)])
        return migration

    async def generated(self) -> tuple[Migration, Run]:
        migration = await self.filled()
        run = await migration.generate()
        assert isinstance(await run.wait(), Preview)
        return migration, run

    async def executed(self) -> tuple[Migration, Report]:
        migration, _ = await self.generated()
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        return migration, report

    # Sources and templates

    async def list_sources(self) -> None:
        assert len(await self.api.sources()) == 3

    async def update_source(self) -> None:
        assert (await self.api.update_source("HubSpot", name="Hub")).name == "Hub"
        assert "Hub" in self.world.sources

    async def pin_source(self) -> None:
        _, run = await self.generated()
        assert (await self.api.pin("HubSpot", run)).run_id == run.id
        assert self.world.sources["HubSpot"].pinned == run.id

    async def source_knowledge(self) -> None:
        knowledge = self.api.knowledge("HubSpot")
        await knowledge.update(lambda text: f"{text}x")
        assert self.world.sources["HubSpot"].knowledge.text == "x"
        assert (await knowledge.read()).text == "x"

    write_knowledge = source_knowledge

    async def list_templates(self) -> None:
        assert [each.name for each in await self.api.templates()] == ["Companies", "Contacts", "Deals"]

    async def read_template(self) -> None:
        assert (await self.api.template("deals")).columns[3].links

    async def update_template(self) -> None:
        deals = await self.api.template("deals")
        await self.api.update_template(deals, columns=[*deals.columns, {"name": "Website"}])
        columns = self.world.schemas["deals"].columns
        assert [column.name for column in columns] == ["Title", "Stage", "Amount", "Contact", "Website"]
        assert columns[3].link_rule

    # Input of a migration

    async def create(self) -> None:
        assert (await self.created()).sheets
        assert len(self.world.migrations) == 1

    async def create_nameless(self) -> None:
        assert (await self.api.create(name="Acme")).sheets

    async def list_files(self) -> None:
        migration = await self.filled()
        assert [(file.name, file.size) for file in await migration.files()] == [
            ("contacts.csv", len(CONTACTS))
        ]

    create_uploads = put_bytes = list_files

    async def save_connection(self) -> None:
        migration = await self.created()
        await migration.connection.save("hubspot", credentials={"token": "t"})
        connection = await migration.connection.read("hubspot")
        assert connection is not None
        assert connection.creds_configured
        assert await migration.connection.delete("hubspot")
        assert await migration.connection.read() is None

    read_connection = delete_connection = save_connection

    async def own_knowledge(self) -> None:
        migration = await self.created()
        await migration.knowledge.update(lambda text: f"{text}x")
        assert (await migration.knowledge.read()).text == "x"

    own_note = own_knowledge

    # Runs

    async def generate(self) -> None:
        await self.generated()

    async def update(self) -> None:
        migration, _ = await self.generated()
        self.next_is_faulty()
        preview = await (await migration.update("Drop the bad rows")).wait()
        assert isinstance(preview, Preview)
        assert preview.invalid_cells == 0

    async def clarify(self) -> None:
        migration, _ = await self.generated()
        self.next_is_faulty()
        run = await migration.clarify("How many rows?")
        assert isinstance(await run.wait(), Preview)
        assert "Every row" in await run.messages()

    async def execute(self) -> None:
        migration, _ = await self.generated()
        self.next_is_faulty()
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        assert (report.inserted, report.invalid_rows) == (3, 1)

    read_run = generate

    async def cancel(self) -> None:
        migration = await self.filled()
        assert (await (await migration.generate()).cancel()).status == "canceled"

    async def answer(self) -> None:
        run = await (await self.filled("asks")).generate()
        asked = await run.wait()
        assert isinstance(asked, Questions)
        await run.answer({question.id: f"{question.prompt} x" for question in asked.questions})
        assert isinstance(await run.wait(), Preview)
        assert self.world.answers("asks") == {"Why?": "Why? x", "How?": "How? x"}

    async def sign_in(self) -> None:
        run = await (await self.filled("signs-in")).generate()
        assert isinstance(await run.wait(), CredentialsNeeded)
        await run.submit_credentials({"token": "t"})
        assert isinstance(await run.wait(), Preview)

    preview = generate

    async def events(self) -> None:
        migration, _ = await self.generated()
        self.next_is_faulty()
        assert [event.type for event in await migration.events()][-1] == "preview"

    async def stream(self) -> None:
        migration = await self.filled()
        run = await migration.generate()
        assert [event.type async for event in migration.thread()][-1] == "preview"
        assert isinstance(await run.wait(), Preview)

    # Delivery

    async def download(self) -> None:
        migration, report = await self.executed()
        self.next_is_faulty()
        files = await migration.download(to=self.folder, report=report)
        assert {file.slug: file.rows for file in files if file.rows} == {"contacts": 3}
        assert len((self.folder / "Contacts.csv").read_text(encoding="utf-8").splitlines()) == 4

    async def start_export(self) -> None:
        migration, _ = await self.executed()
        job = await migration.export_job("contacts")
        path = await job.download(self.folder / "contacts.csv")
        assert len(path.read_text(encoding="utf-8").splitlines()) == 4

    read_export = fetch_export = start_export

    async def log(self) -> None:
        migration, _ = await self.executed()
        self.next_is_faulty()
        assert [entry.kind for entry in (await migration.log()).runs] == ["generate", "execute"]


@pytest.mark.parametrize(("call", "fault", "expected"), CELLS, ids=lambda each: each)
def test_a_call_with_a_fault_has_the_result_of_the_table(
    call: str, fault: str, expected: str, tmp_path: Path
) -> None:
    run(one_cell(call, fault, expected, tmp_path))


async def one_cell(call: str, fault: str, expected: str, folder: Path) -> None:
    world = World(
        key=KEY,
        seed=1,
        limits=Limits.parse("per-endpoint"),
        pace=RunDurations(queued=1.0, base=60.0, sigma=0.0),
        variants=Variants(),
        scripts={name.replace(" ", "-"): script for name, script in SCRIPTS.items()},
    )
    transport = InProcess(world, faulty_endpoint=ROUTES[call])
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(1), limits="per-endpoint") as session:
        calls = Calls(session, transport, folder, FAULTY[fault])
        if call not in LATE:
            calls.next_is_faulty()
        make: Callable[[], Awaitable[None]] = getattr(calls, call.replace(" ", "_"))
        error = {"lost": UnknownOutcome, "key": AuthError, "none": NotFound}.get(expected)
        if error is None:
            await make()
        else:
            with pytest.raises(error):
                await make()
        if expected == "key":
            sent = len(transport.sent)
            with pytest.raises(AuthError):
                await session.migrations.sources()
            assert len(transport.sent) == sent
    assert transport.faults_met == 1
    # A download link is allowed to redirect to another host.
    assert not transport.foreign or (call, fault) == ("fetch export", "302")
    assert transport.open == 0
    assert str(world.verdict(10.0**6)) == "no faults"
