"""`asyncmig sim`: profiles, scope, ledger and HTTPS. The simulator runs in a separate process."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Request_
from urllib.request import urlopen

import pytest
import trustme

from asyncmig import InvalidInput
from asyncmig._core.limits import Rate
from asyncmig.cli.sim import SimOptions, world_of
from asyncmig.simulator import PROFILES, Request, Verdict, generate

from .conftest import Cli


@contextmanager
def sim(monkeypatch: pytest.MonkeyPatch, *options: str) -> Generator[subprocess.Popen[str]]:
    """Start the simulator, and set the environment variables for clients in this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncmig", "sim", "--speed", "60", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        match = re.fullmatch(r"export VERN_BASE_URL=(\S+) VERN_API_KEY=(\S+)\n", process.stdout.readline())
        assert match
        monkeypatch.setenv("VERN_BASE_URL", match[1])
        monkeypatch.setenv("VERN_API_KEY", match[2])
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_the_ledger_contains_every_request_and_the_verdict(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, customers=2, seed=3)
    with sim(monkeypatch, "--ledger", str(tmp_path / "ledger.ndjson"), "--scope", "key"):
        assert cli("run", "customers.csv", "--speed", "60", "--scope", "key", "--decide", "approve").code in (
            0,
            3,
        )
    *requests, verdict = [
        json.loads(line) for line in (tmp_path / "ledger.ndjson").read_text(encoding="utf-8").splitlines()
    ]
    assert {request["type"] for request in requests} == {"request"}
    assert {"POST", "GET"} == {request["method"] for request in requests}
    assert verdict == {"type": "verdict", **{field.name: 0 for field in fields(Verdict)}}


def test_sim_serves_https_with_a_given_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path, customers=2, seed=4)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    command = [
        sys.executable,
        "-m",
        "asyncmig",
        "run",
        "customers.csv",
        "--speed",
        "60",
        "--decide",
        "approve",
    ]
    with sim(monkeypatch, "--cert", str(tmp_path / "server.pem")):
        subprocess.run(command, check=False, capture_output=True, cwd=tmp_path)
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    # The generator plans both outcomes.
    assert {row["outcome"] for row in report["customers"]} == {"delivered", "failed"}


def test_a_header_that_is_too_large_is_refused_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with sim(monkeypatch) as process:
        asked = Request_(f"{os.environ['VERN_BASE_URL']}/sources", headers={"x-api-key": "k" * 9000})
        with pytest.raises(HTTPError, match="400") as refused:
            urlopen(asked, timeout=60)
        refused.value.close()
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert "Traceback" not in printed
    assert "kkk" not in printed
    assert "0 requests received" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "nonsense"], "calm (nothing goes wrong"),
        (["--cert", "nothing.pem"], "cannot be used"),
        (["--cert-key", "key.pem"], "requires --cert"),
        (["--ledger", "no/such/folder/ledger"], "No such file"),
    ],
)
def test_invalid_options_exit_2_before_the_simulator_serves(
    cli: Cli, options: list[str], message: str
) -> None:
    result = cli("sim", *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert "VERN_API_KEY" not in result.out


def burst(profile: str, *, calls: int, scope: str = "endpoint") -> list[int]:
    """Return the statuses of `calls` requests at the same time, alternately to two endpoints."""
    options = SimOptions(profile=profile, scope=scope)  # type: ignore[arg-type]
    world, _ = world_of(options)
    paths = ("/api/v1/sources", "/api/v1/templates")
    return [
        world.handle(
            Request(method="GET", path=paths[n % 2], query={}, headers={"x-api-key": world.key}, body=b""),
            1.0,
        ).status
        for n in range(calls)
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_answers_requests(profile: str) -> None:
    assert set(burst(profile, calls=6)) == {200}


def test_profiles_and_scopes_differ_in_their_limits() -> None:
    assert burst("calm", calls=220).count(429) == 20
    assert burst("calm", calls=220, scope="key").count(429) == 120
    assert burst("small-burst", calls=220).count(429) == 200


def test_a_profile_can_be_combined_with_faults() -> None:
    _, faults = world_of(SimOptions(profile="flaky", fault=["hang:1"]))
    picked = [faults.pick("GET /sources", 0.0) for _ in range(300)]
    assert any(fault.lost_before for fault in picked)
    assert any(fault.hangs for fault in picked)
    with pytest.raises(InvalidInput, match="hostile"):
        world_of(SimOptions(profile="unheard-of"))


def test_a_web_application_uses_the_generation_migrations_over_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    origin = {"Origin": "https://shop.example"}

    def call(method: str, url: str, body: object = None, **headers: str) -> tuple[Any, Message]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with urlopen(
            Request_(url, data=data, method=method, headers=headers), context=trusted, timeout=60
        ) as reply:
            content = bytes(reply.read())
            is_json = reply.headers.get_content_type() == "application/json" and content
            return json.loads(content) if is_json else content, reply.headers

    def from_the_browser(method: str, url: str, body: bytes | None = None, **headers: str) -> bytes:
        """Send a preflight and a request, as a browser does for a script of another origin. Check the headers."""
        assert url.startswith("https://localhost:")
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
        _, allowed = call("OPTIONS", url, **origin, **asked)
        assert method in allowed["Access-Control-Allow-Methods"]
        assert allowed["Access-Control-Allow-Headers"] in ("*", "content-type")
        content, headers_ = call(method, url, body, **origin, **headers)
        assert headers_["Access-Control-Allow-Origin"] in ("*", origin["Origin"])
        return bytes(content)

    options = ("--api", "migrations", "--limits", "create=9/1h", "--pace", "0.1")
    with sim(monkeypatch, *options, "--cert", str(tmp_path / "server.pem")):
        base_url, key = os.environ["VERN_BASE_URL"], {"X-Api-Key": os.environ["VERN_API_KEY"]}
        assert base_url.startswith("https://localhost:")
        created, _ = call("POST", f"{base_url}/migrations", {"name": "Acme"}, **key)
        path = f"{base_url}/migrations/{created['migration']['id']}"
        files = {"files": [{"name": "a.csv", "content_type": "text/csv"}]}
        upload = call("POST", f"{path}/files", files, **key)[0]["files"][0]
        csv = {"Content-Type": "text/csv"}
        from_the_browser("PUT", upload["signed_url"], b"Name,City\r\nAcme,Cork\r\n", **csv)
        last = 0
        for kind, end in (("generate", "preview"), ("execute", "completed")):
            started, _ = call("POST", f"{path}/runs", {"kind": kind}, **key)
            assert started["poll_url"].startswith(f"{path}/runs/")
            stream, headers = call("GET", f"{path}/thread/stream?after={last}", **key)
            assert headers.get_content_type() == "text/event-stream"
            *frames, done, rest = stream.decode().split("\n\n")
            assert frames[-1].startswith(f"event: {end}\n")
            assert done.startswith("event: done\n")
            assert rest == ""
            last = json.loads(done.split("data: ")[1])["last_sequence"]
        assert call("GET", f"{path}/preview", **key)[0]["sheets"][0]["rows"][1][0] == "Acme"
        job, _ = call("POST", f"{path}/exports", {"slug": "companies"}, **key)
        while (job := call("GET", f"{path}/exports/jobs/{job['job_id']}", **key)[0])["status"] != "completed":
            time.sleep(0.05)
        assert from_the_browser("GET", job["download_url"]).startswith(b"Name,City,Notes\r\nAcme,Cork,")


def test_limits_require_the_generation_migrations_and_are_validated() -> None:
    with pytest.raises(InvalidInput, match="is not a limit"):
        world_of(SimOptions(api="migrations", limits="nothing=1"))
    with pytest.raises(InvalidInput, match="requires --api migrations"):
        world_of(SimOptions(limits="by-class"))


@pytest.mark.parametrize(
    "options",
    [{"profile": "hostile"}, {"rate": Rate(10, 60.0)}, {"scope": "key"}],
    ids=lambda each: next(iter(each)),
)
def test_options_of_the_generation_companies_are_refused_for_migrations(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="requires --api companies") as refused:
        world_of(SimOptions(api="migrations", **options))
    assert refused.value.field == f"--{next(iter(options))}"
