"""`asyncmig run --queue`: workers in other processes migrate the customers, and the command reports the results."""

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


def test_a_worker_migrates_the_customers_and_the_command_writes_the_report(
    cli: Cli,
    customers: Callable[..., Path],
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Each test has its own Redis database, because the name of the queue is always the same.
    url = redis_url.removesuffix("/0") + "/7"
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


@pytest.mark.timeout(30)  # without the limit, a regression would take much longer
def test_max_duration_ends_a_run_without_workers(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNCMIG_QUEUE", redis_url.removesuffix("/0") + "/8")
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    arguments = (
        "run",
        customers(acme=GOOD),
        "--queue",
        "ASYNCMIG_QUEUE",
        "--max-duration",
        "1m",
        *connection,
    )
    result = cli(*arguments)
    assert result.code == 75
    assert "Ending early: it took 1m" in result.err


def test_options_that_do_not_reach_the_workers_are_reported(
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
    connection = ("--speed", 60, "--base-url", simulator.base_url, "--scope", "key")
    job_options = ("--filter", "all", "--retries", 1, "--decide", "approve", "--deliver-rejected")
    printed = cli(
        *arguments, *connection, *job_options, "--root", ".", "--concurrency", 7, "--stop-after-failures", 3
    ).err
    assert (
        "note: --scope, --rate, --base-url, --concurrency, --root, --speed from here do not reach the workers"
        in printed
    )
    assert (
        "set ASYNCMIG_SCOPE, ASYNCMIG_RATE, ASYNCMIG_BASE_URL, ASYNCMIG_CONCURRENCY, ASYNCMIG_ROOT where they run"
        in printed
    )
    assert "note: --max-duration, --stop-after-failures can end this command; the jobs continue." in printed
    assert "note: -v cannot show" in printed
    notes = [line for line in printed.splitlines() if line.startswith("note:")]
    assert not any(
        f"{option} " in note for note in notes for option in job_options[::2] if isinstance(option, str)
    )


def test_a_worker_reads_rate_scope_and_options_from_its_environment(
    simulator: Simulator, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = redis_url.removesuffix("/0") + "/10"
    variables = {
        "RATE": "1/20s",
        "SCOPE": "key",
        "FILTER": "all",
        "BASE_URL": simulator.base_url,
        "QUEUE": url,
    }
    variables |= {"DATABASE": str(tmp_path / "fleet.db"), "OUT": str(tmp_path / "out")}
    monkeypatch.setenv("VERN_API_KEY", KEY)
    for name, value in variables.items():
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
    ("queue", "message"),
    [
        ("redis://:secret@127.0.0.1:1", "has a password"),
        ("redis://127.0.0.1:1?password=secret", "has a password"),
        ("host=127.0.0.1 port=1 password=secret", "has a password"),
        ("redis://:secret#1@127.0.0.1:1", "write % as %25"),
        ("NO_SUCH_VARIABLE", "neither a URL nor"),
    ],
)
def test_a_queue_address_with_a_password_or_without_a_queue_is_refused(
    cli: Cli, customers: Callable[..., Path], simulator: object, queue: str, message: str
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
    assert message in result.err
    assert "secret" not in result.err + result.out


@pytest.mark.parametrize(
    "command", [("status",), ("show", "acme"), ("retry",), ("doctor",), ("watch",), ("review",)]
)
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://me:secret@host/db", "has a password: put it into an environment variable"),
        ("host=h password=secret", "has a password: put it into an environment variable"),
        ("postgresql://me:secret/1@host/db", "write % as %25"),
        ("redis://:secret@host", "the address of a server"),
    ],
)
def test_an_address_that_cannot_be_a_journal_is_refused_and_not_printed(
    cli: Cli, command: tuple[str, ...], address: str, message: str
) -> None:
    result = cli(*command, "--journal", address)
    assert result.code == 2
    assert message in result.err
    assert "secret" not in result.err + result.out


def test_commands_printed_after_a_run_with_a_queue_use_the_queue(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = redis_url.removesuffix("/0") + "/9"
    monkeypatch.setenv("WORKERS", url)
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    manifest = customers(acme=GOOD)
    limits = ("--max-duration", "1m", "--decide", "park")
    result = cli("run", manifest, "--queue", "WORKERS", *limits, *connection)
    assert result.code == 75
    (line,) = [line for line in result.out.splitlines() if line.startswith("  asyncmig ")]
    assert "--queue WORKERS" in line
    assert "--decide park" in line  # the workers may have another default
    assert not (tmp_path / "fleet.db").exists()
    settings_of_last_run = (tmp_path / "fleet.db.last").read_text(encoding="utf-8")
    assert url not in settings_of_last_run

    before = simulator.count("POST /companies")
    assert cli(*line.split()[1:]).code == 75
    assert cli("retry", "--max-duration", "1m").code == 75
    here = cli("run", manifest, *connection)
    assert here.code == 2
    assert "went through a queue" in here.err
    assert simulator.count("POST /companies") == before

    by_url = cli("run", manifest, "--queue", url, *limits, *connection)
    assert by_url.code == 75
    (line,) = [line for line in by_url.out.splitlines() if line.startswith("  asyncmig ")]
    assert f"--queue {url}" in line  # the URL has no password
    assert cli(*line.split()[1:]).code == 75
    assert cli("retry", "--max-duration", "1m").code == 75


def test_customers_submitted_to_a_queue_are_refused_without_it(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKERS", redis_url.removesuffix("/0") + "/11")
    monkeypatch.setenv("UNREACHABLE", "redis://127.0.0.1:1")
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    assert cli("run", customers(acme=GOOD), *connection).code == 0
    both = customers(acme=GOOD, bolt=GOOD)
    # The queue cannot be reached, so that no customer is submitted to it.
    assert cli("run", both, "--queue", "UNREACHABLE", *connection).code == 75
    assert cli("run", both, *connection).code == 0
    more = customers(acme=GOOD, bolt=GOOD, cafe=GOOD, dora=GOOD)
    assert (
        cli("run", more, "--select", "cafe", "--queue", "WORKERS", "--max-duration", "1m", *connection).code
        == 75
    )
    before = simulator.count("POST /companies")
    for arguments in ((), ("--select", "cafe,dora")):
        here = cli("run", more, *arguments, *connection)
        assert here.code == 2
        assert "cafe went through a queue" in here.err
    assert simulator.count("POST /companies") == before
    assert cli("run", more, "--select", "dora", *connection).code == 0
    # The local run of another customer does not change this.
    assert "cafe went through a queue" in cli("run", more, *connection).err


def test_commands_printed_after_a_run_with_a_queue_and_its_journal_work(
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
        connection = ("--speed", 60, "--base-url", farm.base_url)
        places = ("--queue", "ASYNCMIG_QUEUE", "--journal", "WORKERS_DATABASE")
        ran = cli("run", manifest, *places, "--decide", "park", *connection)
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
        # A local run is allowed, because claims in the common journal protect the customers.
        here = cli("run", manifest, *review[1:], *connection)
        assert here.code == 0, here.err
        assert farm.verdict()["duplicate_companies"] == farm.verdict()["duplicate_imports"] == 0


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_an_unreachable_queue_exits_75_with_one_sentence(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    monkeypatch.setenv("WORKERS", f"{scheme}://user:s3cr3t@127.0.0.1:1/0")
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    result = cli("run", customers(acme=GOOD), "--queue", "WORKERS", *connection)
    kind = "Redis" if scheme == "redis" else "PostgreSQL"
    sentence = f"the queue ({kind} at 127.0.0.1:1) cannot be used: it refuses connections"
    assert result.code == 75
    assert f"Not finished ({sentence}). This run submitted nothing to the workers" in result.out
    assert "workers go on" not in result.out
    assert all(line.startswith("note: ") for line in result.err.splitlines())
    assert "s3cr3t" not in result.out + result.err


def test_a_run_that_ends_before_the_queue_answers_reports_no_continuing_workers(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        monkeypatch.setenv("WORKERS", f"redis://127.0.0.1:{silent_server.getsockname()[1]}/0")
        connection = ("--speed", 60, "--base-url", simulator.base_url)
        result = cli("run", customers(acme=GOOD), "--queue", "WORKERS", "--max-duration", "1m", *connection)
    assert result.code == 75
    assert "Ending early: it took 1m" in result.err
    assert "This run submitted nothing to the workers" in result.out
    assert "workers go on" not in result.out


def test_each_outcome_of_a_run_with_a_queue_prints_commands_with_the_queue(tmp_path: Path) -> None:
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
