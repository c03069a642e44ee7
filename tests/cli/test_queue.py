"""`asyncmig run --queue`: a worker elsewhere does it, and this process reports."""

import asyncio
import json
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from farm import Farm
from saq.worker import Worker
from servers import database

from asyncmig import Delivered, Spec
from asyncmig.cli.json_output import Budget, Report
from asyncmig.cli.settings import Options
from asyncmig.cli.summary import RunResult, next_steps
from asyncmig.customers.status import CustomerStatus
from asyncmig.distributed.saq import MigrationQueue, settings
from asyncmig.simulator import fast_loop

from .conftest import KEY, SOURCE, SPEED, Cli, Simulator

GOOD = b"Email,First Name,Last Name\na@x.de,A,B\nb@x.de,B,C\n"


def test_a_worker_elsewhere_does_it_and_the_report_is_here(
    cli: Cli,
    customers: Callable[..., Path],
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = redis_url.removesuffix("/0") + "/7"  # the queue's name is always the same
    folder = tmp_path / "worker"
    folder.mkdir()
    with Farm(
        folder, speed=60.0, queue=url, database=database_url, window=url, name="asyncmig", concurrency=4
    ) as farm:
        monkeypatch.setenv("VERN_API_KEY", farm.key)
        monkeypatch.setenv("ASYNCMIG_QUEUE", url)
        farm.start()
        manifest = customers(acme=GOOD, bolt=GOOD)
        result = cli(
            "run",
            manifest,
            "--queue",
            "ASYNCMIG_QUEUE",
            "--filter",
            "all",
            "--speed",
            60,
            "--base-url",
            farm.base_url,
        )
        assert result.code == 0, (result.err, farm.log())
        assert farm.verdict()["duplicate_imports"] == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert {row["external_id"]: row["outcome"] for row in report["customers"]} == {
        "acme": "delivered",
        "bolt": "delivered",
    }
    assert (folder / "out/acme/Contacts.csv").is_file()


@pytest.mark.timeout(30)  # it would end some time
def test_it_ends_in_order_though_no_worker_comes(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNCMIG_QUEUE", redis_url.removesuffix("/0") + "/8")
    reach = ("--speed", 60, "--base-url", simulator.base_url)
    arguments = ("run", customers(acme=GOOD), "--queue", "ASYNCMIG_QUEUE", "--max-duration", "1m", *reach)
    result = cli(*arguments)
    assert result.code == 75
    assert "Ending early: it took 1m" in result.err


def test_what_the_workers_do_not_take_from_here_is_said(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNCMIG_QUEUE", redis_url.removesuffix("/0") + "/9")
    monkeypatch.setenv("ASYNCMIG_RATE", "10/60s")
    arguments = (
        "run",
        customers(acme=GOOD),
        "--queue",
        "ASYNCMIG_QUEUE",
        "--max-duration",
        "1m",
        "--verbose",
    )
    reach = ("--speed", 60, "--base-url", simulator.base_url, "--scope", "key")
    travel = ("--filter", "all", "--retries", 1, "--decide", "approve", "--deliver-rejected")
    said = cli(*arguments, *reach, *travel, "--root", ".", "--concurrency", 7, "--stop-after-failures", 3).err
    assert (
        "note: --scope, --rate, --base-url, --concurrency, --root, --speed from here do not reach the workers"
        in said
    )
    assert (
        "set ASYNCMIG_SCOPE, ASYNCMIG_RATE, ASYNCMIG_BASE_URL, ASYNCMIG_CONCURRENCY, ASYNCMIG_ROOT where they run"
        in said
    )
    assert "note: --max-duration, --stop-after-failures can end this command; the jobs continue." in said
    assert "note: -v cannot show" in said
    notes = [line for line in said.splitlines() if line.startswith("note:")]
    assert not any(
        f"{option} " in note for note in notes for option in travel[::2] if isinstance(option, str)
    )


def test_a_worker_takes_rate_scope_and_options_from_its_environment(
    simulator: Simulator, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = redis_url.removesuffix("/0") + "/10"
    told = {"RATE": "1/20s", "SCOPE": "key", "FILTER": "all", "BASE_URL": simulator.base_url, "QUEUE": url}
    told |= {"DATABASE": str(tmp_path / "fleet.db"), "OUT": str(tmp_path / "out")}
    monkeypatch.setenv("VERN_API_KEY", KEY)
    for name, value in told.items():
        monkeypatch.setenv(f"ASYNCMIG_{name}", value)
    (tmp_path / "acme.csv").write_bytes(GOOD)
    spec = Spec(external_id="acme", name="Acme", source=SOURCE, files=(tmp_path / "acme.csv",))

    async def main() -> None:
        worker = Worker(**settings())  # type: ignore[arg-type]
        worker.SIGNALS = []
        await worker.queue.connect()
        running = asyncio.create_task(worker.start())
        async with MigrationQueue(url) as queue:
            (outcome,) = [outcome async for outcome in queue.run([spec])]
        worker.event.set()
        await running
        await worker.queue.disconnect()
        assert isinstance(outcome, Delivered)
        assert outcome.row_filter == "all"

    with asyncio.Runner(loop_factory=lambda: fast_loop(SPEED)) as runner:
        runner.run(main())
    times = [entry.at for entry in simulator.world.ledger.entries if "storage" not in entry.endpoint]
    assert len(times) > 4
    assert min(later - earlier for earlier, later in pairwise(times)) >= 20.0


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ("redis://:secret@127.0.0.1:1", "has a password"),
        ("redis://127.0.0.1:1?password=secret", "has a password"),
        ("host=127.0.0.1 port=1 password=secret", "has a password"),
        ("redis://:secret#1@127.0.0.1:1", "write % as %25"),
        ("NO_SUCH_VARIABLE", "neither a URL nor"),
    ],
)
def test_a_queue_that_tells_a_secret_or_is_none_is_refused(
    cli: Cli, customers: Callable[..., Path], simulator: object, queue: str, said: str
) -> None:
    result = cli(
        "run",
        customers(acme=GOOD),
        "--queue",
        queue,
        "--speed",
        60,
        "--base-url",
        simulator.base_url,  # type: ignore[attr-defined]
    )
    assert result.code == 2
    assert said in result.err
    assert "secret" not in result.err + result.out


@pytest.mark.parametrize(
    "command", [("status",), ("show", "acme"), ("retry",), ("doctor",), ("watch",), ("review",)]
)
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:secret@host/db", "has a password: put it into an environment variable"),
        ("host=h password=secret", "has a password: put it into an environment variable"),
        ("postgresql://me:secret/1@host/db", "write % as %25"),
        ("redis://:secret@host", "the address of a server"),
    ],
)
def test_an_address_that_cannot_be_a_journal_is_refused_and_not_printed(
    cli: Cli, command: tuple[str, ...], address: str, said: str
) -> None:
    result = cli(*command, "--journal", address)
    assert result.code == 2
    assert said in result.err
    assert "secret" not in result.err + result.out


def test_what_is_printed_after_a_run_by_workers_goes_through_the_queue(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = redis_url.removesuffix("/0") + "/9"
    monkeypatch.setenv("WORKERS", url)
    reach = ("--speed", 60, "--base-url", simulator.base_url)
    manifest = customers(acme=GOOD)
    limits = ("--max-duration", "1m", "--decide", "park")
    result = cli("run", manifest, "--queue", "WORKERS", *limits, *reach)
    assert result.code == 75
    (line,) = [line for line in result.out.splitlines() if line.startswith("  asyncmig ")]
    assert "--queue WORKERS" in line
    assert "--decide park" in line  # the workers may have another one
    assert not (tmp_path / "fleet.db").exists()
    remembered = (tmp_path / "fleet.db.last").read_text(encoding="utf-8")
    assert url not in remembered

    before = simulator.count("POST /companies")
    assert cli(*line.split()[1:]).code == 75
    assert cli("retry", "--max-duration", "1m").code == 75
    here = cli("run", manifest, *reach)
    assert here.code == 2
    assert "went through a queue" in here.err
    assert simulator.count("POST /companies") == before

    by_url = cli("run", manifest, "--queue", url, *limits, *reach)
    assert by_url.code == 75
    (line,) = [line for line in by_url.out.splitlines() if line.startswith("  asyncmig ")]
    assert f"--queue {url}" in line  # it has no password
    assert cli(*line.split()[1:]).code == 75
    assert cli("retry", "--max-duration", "1m").code == 75


def test_customers_that_were_given_to_a_queue_are_refused_without_it(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKERS", redis_url.removesuffix("/0") + "/11")
    monkeypatch.setenv("NOBODY", "redis://127.0.0.1:1")
    reach = ("--speed", 60, "--base-url", simulator.base_url)
    assert cli("run", customers(acme=GOOD), *reach).code == 0
    both = customers(acme=GOOD, bolt=GOOD)
    assert (
        cli("run", both, "--queue", "NOBODY", *reach).code == 75
    )  # it was not reached, so nothing was given to it
    assert cli("run", both, *reach).code == 0
    more = customers(acme=GOOD, bolt=GOOD, cafe=GOOD, dora=GOOD)
    assert (
        cli("run", more, "--select", "cafe", "--queue", "WORKERS", "--max-duration", "1m", *reach).code == 75
    )
    before = simulator.count("POST /companies")
    for arguments in ((), ("--select", "cafe,dora")):
        here = cli("run", more, *arguments, *reach)
        assert here.code == 2
        assert "cafe went through a queue" in here.err
    assert simulator.count("POST /companies") == before
    assert cli("run", more, "--select", "dora", *reach).code == 0
    assert (
        "cafe went through a queue" in cli("run", more, *reach).err
    )  # a local run in between changes nothing


def test_each_command_after_a_run_by_workers_works_as_printed_if_the_journal_is_theirs(
    cli: Cli,
    customers: Callable[..., Path],
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = redis_url.removesuffix("/0") + "/12"
    folder = tmp_path / "worker"
    folder.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with (
        database(database_url) as journal,
        Farm(
            folder, speed=60.0, queue=url, database=journal, window=url, name="asyncmig", concurrency=4
        ) as farm,
    ):
        monkeypatch.setenv("VERN_API_KEY", farm.key)
        monkeypatch.setenv("ASYNCMIG_QUEUE", url)
        monkeypatch.setenv("WORKERS_DATABASE", journal)
        farm.start()
        manifest = customers(acme=GOOD, bolt=b"Email,First Name,Last Name\n" + b"p@x.org,A,B\n" * 5)
        reach = ("--speed", 60, "--base-url", farm.base_url)
        places = ("--queue", "ASYNCMIG_QUEUE", "--journal", "WORKERS_DATABASE")
        ran = cli("run", manifest, *places, "--decide", "park", *reach)
        assert ran.code == 5, (ran.err, farm.log())
        assert "--journal" not in "".join(line for line in ran.err.splitlines() if line.startswith("note:"))
        assert not list(tmp_path.glob("fleet.db*"))
        review, approve = [
            line.split()[1:] for line in ran.out.splitlines() if line.startswith("  asyncmig ")
        ]
        assert (review, approve[-1]) == (["review", "--journal", "WORKERS_DATABASE"], "ASYNCMIG_QUEUE")
        assert "bolt" in cli(*review).out
        decided = cli(*review[:1], "bolt", *review[1:], "--approve", "--allow-destructive")
        assert decided.code == 0, decided.err
        (following,) = [
            line.split()[1:] for line in decided.err.splitlines() if line.startswith("  asyncmig ")
        ]
        done = cli(*following)
        assert done.code == 0, (done.out, farm.log())
        assert cli("status", *review[1:]).code == 0
        assert cli("retry", *review[1:]).code == 0
        assert cli("watch", *review[1:]).code == 0
        here = cli("run", manifest, *review[1:], *reach)  # their claims protect the customers
        assert here.code == 0, here.err
        assert farm.verdict()["duplicate_companies"] == farm.verdict()["duplicate_imports"] == 0


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_75_and_one_sentence_when_the_queue_cannot_be_reached(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    monkeypatch.setenv("WORKERS", f"{scheme}://user:s3cr3t@127.0.0.1:1/0")
    reach = ("--speed", 60, "--base-url", simulator.base_url)
    result = cli("run", customers(acme=GOOD), "--queue", "WORKERS", *reach)
    kind = "Redis" if scheme == "redis" else "PostgreSQL"
    sentence = f"the queue ({kind} at 127.0.0.1:1) cannot be used: it refuses connections"
    assert result.code == 75
    assert f"Not finished ({sentence}). This run submitted nothing to the workers" in result.out
    assert "workers go on" not in result.out
    assert all(line.startswith("note: ") for line in result.err.splitlines())
    assert "s3cr3t" not in result.out + result.err


def test_nothing_is_said_to_go_on_when_the_time_ends_before_the_queue_answers(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WORKERS", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        reach = ("--speed", 60, "--base-url", simulator.base_url)
        result = cli("run", customers(acme=GOOD), "--queue", "WORKERS", "--max-duration", "1m", *reach)
    assert result.code == 75
    assert "Ending early: it took 1m" in result.err
    assert "This run submitted nothing to the workers" in result.out
    assert "workers go on" not in result.out


def test_each_ending_of_a_run_by_workers_prints_what_works(tmp_path: Path) -> None:
    rows = tuple(
        CustomerStatus(external_id=outcome, name=outcome, outcome=outcome, error="why")
        for outcome in ("parked", "unknown", "failed", "pending", "delivered")
    )
    options = Options(manifest=Path("customers.csv"))
    for queue in ("WORKERS", "redis://127.0.0.1:6379/0"):
        ended = RunResult(report=Report(customers=rows, budget=Budget()), queue=queue, is_recorded=False)
        text = "\n".join(next_steps(ended, options))
        commands = [line for line in text.splitlines() if line.startswith("  ")]
        assert commands
        assert all(line.startswith("  asyncmig run customers.csv") for line in commands)
        assert all(f"--queue {queue}" in line for line in commands)
        for command in ("status", "review", "retry", "show", "adopt"):
            assert f"asyncmig {command}" not in text
