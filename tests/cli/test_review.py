"""`asyncmig review` decides parked imports, interactively in a terminal or with options."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply

from .conftest import KEY, SPEED, Cli, Simulator
from .terminal import Terminal

FLAWED = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
MILD = b"Email,Name\n" + b"".join(b"p%d@x.de,P\n" % n for n in range(9)) + b"no,C\n"
Customers = Callable[..., Path]


@pytest.fixture
def parked(cli: Cli, simulator: Simulator, customers: Customers) -> Path:
    """Write a journal with parked customers. The settings of its last run contain the address of the simulator."""
    manifest = customers(acme=FLAWED, bolt=FLAWED, cafe=FLAWED)
    assert cli("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url).code == 5
    return manifest


def decisions(simulator: Simulator) -> int:
    return sum(entry.endpoint.endswith("/decisions") for entry in simulator.world.ledger.entries)


def outcome(cli: Cli, external_id: str) -> str:
    lines = map(json.loads, cli("status", "--json").out.splitlines())
    return next(str(line["outcome"]) for line in lines if line["external_id"] == external_id)


def test_review_in_a_pipe_prints_the_questions_and_exits_5(
    cli: Cli, parked: Path, simulator: Simulator
) -> None:
    sent = simulator.count()
    result = cli("review")
    assert result.code == 5
    for message in (
        "acme  acme Inc: ",
        "affects 1 row",
        "! dedup_keep_first",
        "(destroys rows, or may)",
        "1) a  ",
    ):
        assert message in result.out
    lines = [json.loads(line) for line in cli("review", "bolt", "--json").out.splitlines()]
    assert [line["external_id"] for line in lines] == ["bolt"]
    assert lines[0]["attention"]["questions"][0]["options"]
    assert lines[0]["is_destructive"]
    assert simulator.count() == sent


def test_approving_destroyed_rows_requires_allow_destructive(
    cli: Cli, parked: Path, simulator: Simulator
) -> None:
    refused = cli("review", "acme", "--approve")
    assert refused.code == 2
    assert "requires --allow-destructive" in refused.err
    assert decisions(simulator) == 0
    sent = cli("review", "acme", "--approve", "--answer", "fq0=a", "--allow-destructive")
    assert sent.code == 0
    assert (
        "acme: approved.\nThe server continues the decided runs. To continue here:\n"
        f"  asyncmig run {parked}" in sent.err
    )
    assert decisions(simulator) == 1
    assert outcome(cli, "acme") == "pending"
    assert "decide" in cli("show", "acme").out


def test_wait_continues_to_the_delivery(cli: Cli, parked: Path, tmp_path: Path) -> None:
    result = cli("review", "acme", "bolt", "--approve", "--allow-destructive", "--wait")
    assert result.code == 0, result.err
    assert (tmp_path / "out/acme/Contacts.csv").is_file()
    assert (outcome(cli, "bolt"), outcome(cli, "cafe")) == ("delivered", "parked")


def test_a_rejection_does_not_require_allow_destructive(cli: Cli, parked: Path) -> None:
    assert cli("review", "acme", "--reject", "--wait").code == 3
    assert outcome(cli, "acme") == "failed"
    rejected = cli("review", "bolt", "--reject").err
    assert "records the customers of canceled and rejected runs as failed" in rejected
    assert "The server continues" not in rejected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--approve",), "name the customers"),
        (("acme", "--approve", "--reject"), "cannot be combined with"),
        (("acme", "--answer", "fq0=a"), "requires --approve"),
        (("acme", "--approve", "--answer", "fq0", "--allow-destructive"), "must look like QUESTION=OPTION"),
        (
            ("acme", "--approve", "--answer", "fq9=a", "--allow-destructive"),
            "--answer 'fq9' is not a question of",
        ),
        (("acme", "--approve", "--answer", "fq0=z", "--allow-destructive"), "is not one of"),
        (("nobody", "--reject"), "is not in the journal"),
    ],
)
def test_invalid_options_exit_2_and_send_no_decision(
    cli: Cli, parked: Path, simulator: Simulator, arguments: tuple[str, ...], message: str
) -> None:
    result = cli("review", *arguments)
    assert result.code == 2
    assert message in result.err
    assert decisions(simulator) == 0


def test_review_exits_4_for_a_refused_key_and_75_for_an_unreachable_server(
    cli: Cli, parked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = cli("review", "acme", "--reject", "--base-url", "http://127.0.0.1:9/api/v1")
    assert unreachable.code == 75
    monkeypatch.setenv("VERN_API_KEY", "wrong")
    assert cli("review", "acme", "--reject").code == 4
    assert outcome(cli, "acme") == "parked"


def test_review_in_a_terminal_shows_each_customer_and_sends_answers(
    cli: Cli, parked: Path, simulator: Simulator, tmp_path: Path
) -> None:
    arguments = ["review", "--allow-destructive"]
    with Terminal(arguments, tmp_path, VERN_API_KEY=KEY) as terminal:
        terminal.wait_for("[q]uit: ")
        assert "[1 of 3] acme  acme Inc" in terminal.text
        terminal.type("what?\n")
        terminal.wait_for("[q]uit: ")
        terminal.type("skip\n")
        terminal.wait_for("[2 of 3]")
        terminal.wait_for("[q]uit: ")
        terminal.type("c\n")
        terminal.wait_for("fq0 (1 to 2")
        terminal.type("7\n")
        terminal.wait_for("There is no '7'.")
        terminal.type("2\n")
        terminal.wait_for("fq1 (")
        terminal.type("\n")
        terminal.wait_for("Type yes to send it: ")
        terminal.type("yes\n")
        terminal.wait_for("bolt: approved.")
        terminal.wait_for("[q]uit: ")
        assert terminal.interrupt() == 5
    assert "Still parked: acme, cafe." in terminal.text
    (sent,) = [entry for entry in simulator.world.ledger.entries if entry.endpoint.endswith("/decisions")]
    assert sent.status == 200
    assert [outcome(cli, name) for name in ("acme", "bolt", "cafe")] == ["parked", "pending", "parked"]
    assert "approve fq0=b" in cli("show", "bolt").out


def test_review_in_a_terminal_sends_nothing_if_it_is_interrupted(
    parked: Path, simulator: Simulator, tmp_path: Path
) -> None:
    with Terminal(["review", "acme"], tmp_path, VERN_API_KEY=KEY) as terminal:
        terminal.wait_for("it can only be approved with --allow-destructive")
        terminal.wait_for("[q]uit: ")
        assert "[a]pprove" not in terminal.text
        terminal.type("a\n")
        terminal.wait_for("[q]uit: ")
        terminal.type("\x04")
        assert terminal.end() == 5
    assert decisions(simulator) == 0


def test_review_reports_a_failed_read_that_it_repeats(cli: Cli, parked: Path, simulator: Simulator) -> None:
    refused = iter(range(2))
    simulator.intercept = lambda request: (
        Reply(status=503, body=b'{"error": "not now"}')
        if request.method == "GET" and "/imports/" in request.path and next(refused, None) is not None
        else None
    )
    sent = cli("review", "acme", "--approve", "--allow-destructive")
    assert sent.code == 0
    (line,) = [line for line in sent.err.splitlines() if " retrying " in line]
    assert (
        "acme  GET /companies/{id}/imports/{run_id} answered 503 (attempt 1; tried again until it is" in line
    )
    assert line.endswith("not now")
