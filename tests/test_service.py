"""The guide's FastAPI service. Instances that share a journal are stopped and killed; the ledger has no faults."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import documents
import httpx
import pytest
from farm import Farm
from fastapi import HTTPException, UploadFile

import asyncmig
from asyncmig.testing import Simulator

HERE = Path(__file__).parent
SPEED = 30.0
HEADER = b"Email,First Name,Last Name\n"
CLEAN = HEADER + b"".join(b"p%d@example.com,Ada,L\n" % n for n in range(20))
REPEATED = HEADER + b"p@example.com,Ada,L\n" * 5
"""A file whose import asks a question."""


class Instance:
    """One process of the service, and the requests of a client."""

    def __init__(self, farm: Farm, folder: Path, client: aiohttp.ClientSession) -> None:
        self._client = client
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VERN_BASE_URL": farm.base_url,
            "VERN_API_KEY": farm.key,
            "XDG_RUNTIME_DIR": str(folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, HERE / "serviceprocess.py", f"{SPEED}"],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def wait_until_ready(self) -> "Instance":
        """Wait until the process answers requests."""
        assert self.process.stdout is not None
        port = await asyncio.to_thread(self.process.stdout.readline)
        self.url = f"http://127.0.0.1:{int(port)}"
        assert await self.request("GET", "/health") == (200, None)
        return self

    async def request(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self._client.request(method, self.url + path, **options) as answer:
            return answer.status, await answer.json(content_type=None)

    async def put(self, customer: str, content: bytes) -> int:
        form = aiohttp.FormData()
        form.add_field("files", content, filename="contacts.csv")
        query = {"name": f"{customer} Inc", "source": "HubSpot"}
        status, _ = await self.request("PUT", f"/customers/{customer}", params=query, data=form)
        return status

    async def events(self, customer: str) -> list[Any]:
        """Return the events of a customer up to its outcome."""
        async with self._client.get(f"{self.url}/customers/{customer}/events") as answer:
            lines = [line async for line in answer.content if line.strip()]
        return [json.loads(line.removeprefix(b"data: ")) for line in lines]

    async def outcome(self, customer: str) -> str:
        return str((await self.events(customer))[-1]["outcome"])


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


async def wait_for_imports(farm: Farm, count: int) -> None:
    async with asyncio.timeout(100):
        while farm.verdict()["imports"] < count:  # noqa: ASYNC110 - the simulator is another process
            await asyncio.sleep(0.1)


@pytest.mark.timeout(300)
async def test_instances_that_are_stopped_and_killed_lose_and_repeat_no_migration(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    first_ids, second_ids = ["acme", "bolt", "coda"], ["dora", "emil", "fred"]
    with Farm(tmp_path, speed=SPEED, queue="", database="", window="", name="") as farm:
        instances: list[Instance] = []

        async def start() -> Instance:
            instances.append(Instance(farm, tmp_path, client))
            return await instances[-1].wait_until_ready()

        try:
            first = await start()
            posts = [first.put(each, CLEAN) for each in first_ids for _ in range(7)]
            assert set(await asyncio.gather(*posts)) == {202}
            await wait_for_imports(farm, 3)
            second = await start()  # a rolling deployment: the first instance still holds its customers
            first.process.terminate()
            await asyncio.to_thread(first.process.wait, 20)
            assert [await second.put(each, REPEATED) for each in second_ids] == [202] * 3
            await wait_for_imports(farm, 6)
            second.process.kill()
            third = await start()
            outcomes = await asyncio.gather(*map(third.outcome, first_ids + second_ids))
            assert outcomes == ["delivered"] * 3 + ["parked"] * 3
            for each in second_ids:
                _, questions = await third.request("GET", f"/customers/{each}/questions")
                query = {"approve": "true", "shown": questions["shown"]}
                assert await third.request("POST", f"/customers/{each}/decision", params=query) == (
                    200,
                    "sent",
                )
            assert await asyncio.gather(*map(third.outcome, second_ids)) == ["delivered"] * 3
            async with client.get(f"{third.url}/customers/dora/files/Contacts") as answer:
                assert len((await answer.text()).splitlines()) == 2
            async with client.get(f"{third.url}/metrics") as answer:
                assert 'asyncmig_customers{outcome="delivered"} 6' in (await answer.text()).splitlines()
            verdict = farm.verdict()
        finally:
            for each in instances:
                each.process.kill()
                each.process.communicate()
    faults = {name: verdict[name] for name in ("duplicate_imports", "duplicate_companies", "lost_companies")}
    faults |= {name: verdict[name] for name in ("over_the_limit", "unaccounted", "malformed", "key_leaks")}
    assert not any(faults.values()), faults


def test_the_guides_tests_of_the_service_pass(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["asyncmig.pytest_plugin"]')
    pytester.makepyfile(service=documents.SERVICE, test_service=documents.SERVICE_TESTS)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider").assert_outcomes(passed=6)


@pytest.fixture
async def readme_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the README's service, which uses a simulated account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (block,) = [each for each in documents.README.blocks("python") if "FastAPI(" in each]
    names: dict[str, Any] = {"asyncmig": asyncmig, "Path": Path, "__name__": "core"}
    exec(block, names)
    app, simulator = names["app"], Simulator()
    async with simulator.serve() as serving:
        monkeypatch.setenv("VERN_API_KEY", simulator.api_key)
        monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                yield client


async def test_the_service_in_the_readme_migrates_and_reads_only_uploaded_files(
    readme_client: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "uploads/acme").mkdir(parents=True)
    (tmp_path / "secret.csv").write_bytes(CLEAN)
    (tmp_path / "uploads/acme/contacts.csv").write_bytes(CLEAN)
    (tmp_path / "uploads/acme/link.csv").symlink_to(tmp_path / "secret.csv")
    query = {"name": "Acme", "source": "HubSpot"}
    for file in ("../../secret.csv", "/etc/passwd", "link.csv", "none.csv"):
        assert (await readme_client.put("/customers/acme", params={**query, "file": file})).status_code == 400
    assert (await readme_client.get("/customers/acme")).status_code == 404
    assert (
        await readme_client.put("/customers/acme", params={**query, "file": "contacts.csv"})
    ).status_code == 202
    events = (await readme_client.get("/customers/acme/events")).text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["outcome"] == "delivered"
    assert (await readme_client.get("/customers/acme")).json() == json.loads(
        events[-1].removeprefix("data: ")
    )


@pytest.mark.parametrize(("name", "kept"), [("../../../secret.csv", "secret.csv"), ("..", ""), ("a/.", "a")])
async def test_an_upload_stays_in_the_folder_of_its_customer(
    name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    service: dict[str, Any] = {"__name__": "service"}
    exec(documents.SERVICE, service)
    upload = UploadFile(io.BytesIO(CLEAN), filename=name)
    if kept:
        service["saved"]("acme", [upload])
    else:
        with pytest.raises(HTTPException):
            service["saved"]("acme", [upload])
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert found == ([Path("uploads/acme", kept)] if kept else [])
    with pytest.raises(asyncmig.InvalidInput):
        service["saved"]("../acme", [upload])
