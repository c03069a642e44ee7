"""The simulator of the second API generation, over plain HTTP."""

import csv
import io
import json
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import aiohttp
import openpyxl
import pytest

from asyncmig.simulator import RunDurations, serve
from asyncmig.simulator.migrations import (
    DROP,
    SILENCES,
    VARIANTS,
    Block,
    Limits,
    Question,
    Script,
    Variants,
    World,
)

KEY = "key"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
CONTACTS = b"E-mail,Given Name,Surname,Phone\r\na@x.org,Ada,L,1\r\nb@x.org,Bob,M,2\r\nbad,Cy,N,\r\n"
AT_ONCE = RunDurations(queued=0.0, base=0.0, per_row=0.0)
FREE = Limits.parse("per-endpoint")


class Client:
    """Sends requests over plain HTTP."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, world: World) -> None:
        self.http, self.base_url, self.world = http, base_url, world

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self.http.request(
            method, f"{self.base_url}{path}", json=body, headers={"x-api-key": KEY}
        ) as reply:
            text = await reply.text()
            return reply.status, json.loads(
                text
            ) if text and reply.content_type == "application/json" else text

    async def ok(self, method: str, path: str, body: object = None) -> Any:
        status, value = await self.call(method, path, body)
        assert status < 300, (status, value)
        return value

    async def migration(self, external_id: str = "acme", content: bytes = CONTACTS) -> str:
        body = {"name": external_id, "source": "HubSpot", "external_id": external_id}
        path = f"/migrations/{(await self.ok('POST', '/migrations', body))['migration']['id']}"
        await self.upload(path, "contacts.csv", content)
        return path

    async def upload(self, path: str, name: str, content: bytes, content_type: str = "text/csv") -> None:
        file = {"name": name, "content_type": content_type}
        upload = (await self.ok("POST", f"{path}/files", {"files": [file]}))["files"][0]
        async with self.http.put(
            upload["signed_url"], data=content, headers={"Content-Type": content_type}
        ) as put:
            assert put.status == 200

    async def start(self, path: str, kind: str, **more: object) -> tuple[str, Any]:
        run_id = (await self.ok("POST", f"{path}/runs", {"kind": kind, **more}))["run_id"]
        return f"{path}/runs/{run_id}", await self.ok("GET", f"{path}/runs/{run_id}")


OpenClient = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def open_client() -> OpenClient:
    @asynccontextmanager
    async def client(**options: Any) -> AsyncGenerator[Client]:
        world = World(key=KEY, **{"pace": AT_ONCE, "limits": FREE, **options})
        async with serve(world) as serving, aiohttp.ClientSession() as http:
            yield Client(http, serving.base_url, world)

    return client


async def test_a_customer_can_be_migrated_from_upload_to_download(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration()
        _, run = await client.start(path, "generate")
        assert run["status"] == "awaiting_approval"
        preview = await client.ok("GET", f"{path}/preview")
        contacts = next(sheet for sheet in preview["sheets"] if sheet["template"]["slug"] == "contacts")
        assert contacts["rows"][1] == ["a@x.org", "Ada", "L", "1"]
        assert [(cell["row"], cell["column"]) for cell in contacts["invalid_cells"]] == [(2, "Email")]
        _, run = await client.start(path, "execute")
        assert run["status"] == "completed"
        assert (run["report"]["inserted"], run["report"]["invalidCellCount"]) == (3, 1)
        text = await client.ok("GET", f"{path}/exports/contacts.csv?fields=Phone,Email")
        assert list(csv.reader(io.StringIO(text)))[:2] == [["Phone", "Email"], ["1", "a@x.org"]]
        log = await client.ok("GET", f"{path}/log")
        assert [(entry["kind"], entry["outcome"]["ok"]) for entry in log["runs"]] == [
            ("generate", True),
            ("execute", True),
        ]
        assert (await client.ok("GET", f"{path}/log?format=md")).startswith("# acme")
        assert client.world.verdict(0.0).executed_twice == 0


async def test_each_sheet_of_a_workbook_is_a_table(open_client: OpenClient) -> None:
    book = openpyxl.Workbook()
    contacts = book.active
    for row in (
        ("E-mail", "Given Name", "Surname", "Phone"),
        ("a@x.org", "Ada", "L", 1),
        ("b@x.org", "Bob", "M", 2),
    ):
        contacts.append(row)
    file = io.BytesIO()
    book.save(file)
    async with open_client() as client:
        body = {"name": "Acme", "source": "HubSpot", "external_id": "acme"}
        path = f"/migrations/{(await client.ok('POST', '/migrations', body))['migration']['id']}"
        await client.upload(path, "contacts.xlsx", file.getvalue(), XLSX)
        _, run = await client.start(path, "generate")
        assert run["status"] == "awaiting_approval"
        sheets = (await client.ok("GET", f"{path}/preview"))["sheets"]
    rows = next(sheet["rows"] for sheet in sheets if len(sheet["rows"]) > 1)
    assert [row[0] for row in rows[1:]] == ["a@x.org", "b@x.org"]


async def test_the_stream_of_a_finished_run_ends_with_done(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration()
        await client.start(path, "generate")
        text = await client.ok("GET", f"{path}/thread/stream?after=0")
        snapshot = await client.ok("GET", f"{path}/thread")
        frames = [
            dict(line.split(": ", 1) for line in frame.splitlines()) for frame in text.split("\n\n")[:-1]
        ]
        assert [json.loads(frame["data"]) for frame in frames[:-1]] == snapshot["events"]
        assert frames[-1]["event"] == "done"
        assert json.loads(frames[-1]["data"]) == {"last_sequence": snapshot["last_sequence"]}
        assert snapshot["events"][-1]["type"] == "preview"


async def test_duplicates_raise_a_question_and_its_answer_is_applied(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration(content=CONTACTS + b"a@x.org,Ada,L,1\r\n")
        run_path, run = await client.start(path, "generate")
        assert (run["status"], run["blocked_reason"]) == ("blocked", "question")
        assert (await client.call("POST", f"{path}/runs", {"kind": "generate"}))[0] == 409
        answers = [{"id": run["questions"][0]["id"], "value": DROP}]
        await client.ok("POST", f"{run_path}/messages", {"answers": answers})
        run = await client.ok("GET", run_path)
        assert run["status"] == "awaiting_approval"
        _, run = await client.start(path, "execute")
        assert run["report"]["inserted"] == 3


async def test_a_script_can_block_a_run_and_fail_a_run(open_client: OpenClient) -> None:
    blocks = {
        "generate": [
            Block(questions=(Question(text="Why?"),)),
            Block(credentials={"token": {"type": "string"}}),
        ]
    }
    script = Script(blocks=blocks, fails={"execute": "The engine stopped"})
    async with open_client(scripts={"acme": script}) as client:
        path = await client.migration()
        run_path, run = await client.start(path, "generate")
        assert run["questions"][0]["question"] == "Why?"
        assert (await client.call("POST", f"{run_path}/credentials", {"credentials": {"token": "t"}}))[
            0
        ] == 409
        await client.ok("POST", f"{run_path}/messages", {"answers": "Because"})
        assert (await client.ok("GET", run_path))["blocked_reason"] == "credentials"
        await client.ok("POST", f"{run_path}/credentials", {"credentials": {"token": "wrong"}})
        assert (await client.ok("GET", run_path))["blocked_reason"] == "credentials"
        await client.ok("POST", f"{run_path}/credentials", {"credentials": {"token": "right"}})
        assert (await client.ok("GET", run_path))["status"] == "awaiting_approval"
        _, run = await client.start(path, "execute")
        assert (run["status"], run["error"]) == ("failed", "The engine stopped")
        assert (await client.ok("GET", f"{path}/log"))["runs"][-1]["outcome"]["rows_written"] == 1


async def test_an_update_changes_the_preview_and_a_clarify_does_not(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration()
        await client.start(path, "generate")
        await client.start(path, "clarify", message="How many rows?")
        await client.start(path, "update", message="Drop bad rows")
        _, run = await client.start(path, "execute")
        assert (run["report"]["inserted"], run["report"]["invalidCellCount"]) == (2, 0)


async def test_an_export_job_gives_a_link_that_needs_no_key(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration()
        await client.start(path, "generate")
        await client.start(path, "execute")
        job = await client.ok("POST", f"{path}/exports", {"slugs": ["contacts", "deals"]})
        job = await client.ok("GET", f"{path}/exports/jobs/{job['job_id']}")
        async with client.http.get(job["download_url"]) as reply:
            names = zipfile.ZipFile(io.BytesIO(await reply.read())).namelist()
        assert names == ["contacts.csv", "deals.csv"]


async def test_the_verdict_counts_repeated_uploads_and_runs(open_client: OpenClient) -> None:
    async with open_client() as client:
        path = await client.migration()
        for _ in range(2):
            await client.upload(path, "notes.csv", b"Remark\r\nnone\r\n")
        for kind in ("generate", "generate", "execute", "execute"):
            await client.start(path, kind)
        verdict = client.world.verdict(0.0)
        assert (verdict.uploaded_twice, verdict.generated_twice, verdict.executed_twice) == (1, 1, 1)


async def test_the_storage_answers_a_cors_preflight(open_client: OpenClient) -> None:
    async with open_client() as client, client.http.options(f"{client.world.storage_url}/upload/x") as reply:
        assert reply.status == 204
        assert reply.headers["Access-Control-Allow-Origin"] == "*"


async def test_a_refusal_by_class_limits_has_headers(open_client: OpenClient) -> None:
    async with open_client(limits=Limits.parse("create=2/1h")) as client:
        for number in range(2):
            await client.ok("POST", "/migrations", {"name": f"m{number}"})
        async with client.http.post(
            f"{client.base_url}/migrations", json={"name": "m"}, headers={"x-api-key": KEY}
        ) as reply:
            assert reply.status == 429
            assert reply.headers["X-RateLimit-Limit"] == "2"
            assert 0 < int(reply.headers["Retry-After"]) <= 3600


async def test_an_update_with_generate_as_its_message_does_not_charge_generate(
    open_client: OpenClient,
) -> None:
    async with open_client(limits=Limits.parse("by-class")) as client:
        path = await client.migration()
        await client.start(path, "generate")
        status, _ = await client.call("POST", f"{path}/runs", {"kind": "update", "message": "generate"})
        assert status == 201


async def test_a_fourth_run_is_refused_with_the_list_of_the_others(open_client: OpenClient) -> None:
    limits = Limits(rates={})
    async with open_client(limits=limits, pace=RunDurations(base=1000.0)) as client:
        paths = [await client.migration(f"m{number}") for number in range(4)]
        for path in paths[:3]:
            await client.ok("POST", f"{path}/runs", {"kind": "generate"})
        status, body = await client.call("POST", f"{paths[3]}/runs", {"kind": "generate"})
        assert (status, body["code"], body["limit"], len(body["runs"])) == (
            429,
            "run_concurrency_limit",
            3,
            3,
        )
        assert client.world.verdict(0.0).starts_beyond_three == 1


async def test_sources_templates_knowledge_and_connections_can_be_changed(open_client: OpenClient) -> None:
    async with open_client() as client:
        source = await client.ok("PATCH", "/sources/Salesforce%20(AU)", {"name": "Salesforce (NZ)"})
        assert source["source"]["name"] == "Salesforce (NZ)"
        template = await client.ok("PATCH", "/templates/deals", {"columns": [{"name": "Contact"}]})
        assert "linkRule" not in template["columns"][0]
        path = await client.migration()
        written = await client.ok("PATCH", f"{path}/knowledge", {"knowledge": "Blue"})
        stale = {"knowledge": "Red", "if_unmodified_since": "2020-01-01T00:00:00Z"}
        status, body = await client.call("PATCH", f"{path}/knowledge", stale)
        assert (status, body["updated_at"]) == (412, written["updated_at"])
        connection = {"source_key": "hubspot", "credentials": {"token": "secret"}}
        saved = await client.ok("POST", f"{path}/source-connection", connection)
        assert saved["source_connection"]["creds_configured"] is True
        assert "secret" not in json.dumps(saved)
        assert (await client.ok("DELETE", f"{path}/source-connection"))["deleted"] is True


def test_every_silence_of_the_contract_has_several_readings() -> None:
    assert list(SILENCES) == list(range(1, 22))
    assert all(len(readings) > 1 for fields in SILENCES.values() for readings in fields.values())


@pytest.mark.parametrize("name", VARIANTS)
async def test_reads_are_answered_under_every_variant(open_client: OpenClient, name: str) -> None:
    async with open_client(variants=Variants().having(name, 0.5)) as client:
        status, _ = await client.call("POST", "/migrations", {"name": "Acme", "external_id": "acme"})
        assert status in (200, 201, 403) or (name, status) == ("region=closed", 409)
        for migration_id in client.world.migrations:
            for route in ("files", "preview", "thread", "log", "exports/contacts.csv", "knowledge"):
                status, _ = await client.call("GET", f"/migrations/{migration_id}/{route}")
                assert status in (200, 400, 403, 404, 409) or (name, route) == ("log=unavailable", "log")


def test_random_variants_are_the_same_for_a_seed() -> None:
    assert Variants.drawn(Random(3)) == Variants.drawn(Random(3))
    assert len({repr(Variants.drawn(Random(seed))) for seed in range(20)}) == 20
