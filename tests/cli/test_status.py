"""`status`, `show` and `watch`: what a journal knows, also while another process writes it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request
from asyncmig.simulator.runs import Pace

from .conftest import KEY, SPEED, Cli, Simulator, serving

GOOD, LATIN = b"Email,Name\na@x.de,A\n", b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]


@pytest.fixture
def slow() -> Iterator[Simulator]:
    with serving(Pace(queued=1.0, base=150.0, per_row=0.0, sigma=0.0)) as simulator:
        yield simulator


def test_each_customer_is_a_line_and_its_story_is_told(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    cli("run", customers(acme=GOOD, cafe=LATIN), "--speed", SPEED, "--base-url", simulator.base_url)
    table = cli("status").out
    assert "2 customers: " in table
    assert "cafe.csv is not UTF-8 text" in table
    lines = {line["external_id"]: line for line in map(json.loads, cli("status", "--json").out.splitlines())}
    assert (lines["acme"]["outcome"], lines["acme"]["step"], lines["acme"]["rows"]) == (
        "delivered",
        "ended",
        1,
    )
    assert (lines["cafe"]["outcome"], lines["cafe"]["step"]) == ("failed", "running")
    story = cli("show", "acme").out
    for words in (
        "acme  acme Inc: delivered",
        "imported 1 row",
        "out/acme/Contacts.csv (1 row, ",
    ):
        assert words in story
    assert re.search(r"s +started +run ", story)
    assert cli("watch").code == 3


def test_2_what_is_not_there_is_named(cli: Cli, tmp_path: Path) -> None:
    for command in (("status",), ("show", "acme"), ("watch",), ("review",)):
        result = cli(*command)
        assert result.code == 2
        assert "there is no such file" in result.err
    assert cli("adopt", "acme", "c-1").code == 0
    assert "is not in the journal" in cli("show", "bolt").err


def test_while_another_process_works_it_is_seen_and_followed(
    cli: Cli, customers: Customers, slow: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD)
    arguments = ["run", str(manifest), "--speed", str(SPEED), "--base-url", slow.base_url]
    with subprocess.Popen(
        [sys.executable, "-m", "asyncmig", *arguments],
        cwd=tmp_path,
        env={**os.environ, "VERN_API_KEY": KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.perf_counter() + 20
        while not slow.count("GET /companies") and time.perf_counter() < deadline:
            time.sleep(0.02)
        (line,) = map(json.loads, cli("status", "--json").out.splitlines())
        watched = cli("watch", "--json")
        assert process.wait(20) == 0
    assert (line["outcome"], line["step"]) == ("pending", "running")
    assert f"process {process.pid} on " in line["held_by"]
    assert watched.code == 0
    assert [json.loads(event)["kind"] for event in watched.out.splitlines()] == ["delivered"]


def test_75_what_nobody_works_on_is_followed_at_the_server(
    cli: Cli, customers: Customers, slow: Simulator
) -> None:
    manifest = customers(acme=GOOD, cafe=LATIN)
    cli("run", manifest, "--speed", SPEED, "--base-url", slow.base_url, "--max-duration", "60s")
    sent = sum(entry.method == "POST" for entry in slow.world.ledger.entries)
    result = cli("watch")
    assert result.code == 75
    assert "2 imports may still run at the server" in result.err
    assert "completed        acme" in result.out
    assert "failed           cafe  cafe.csv is not UTF-8 text" in result.out
    assert f"To go on:\n  asyncmig run {manifest}" in result.err
    assert sum(entry.method == "POST" for entry in slow.world.ledger.entries) == sent


def test_a_servers_text_in_the_journal_does_not_steer_the_terminal(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    def refuse(request: Request) -> Reply | None:
        hostile = json.dumps({"error": "no\x1b]0;title\x07\x9b2J\u202e"}).encode()
        create = request.method == "POST" and request.path.endswith("/companies")
        return Reply(status=400, body=hostile) if create else None

    simulator.intercept = refuse
    cli("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", simulator.base_url)
    for command in (("status",), ("status", "--json"), ("show", "acme")):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(cli(*command).out)
