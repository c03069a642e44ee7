"""`asyncmig run --queue`: a worker elsewhere does it, and this process reports."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from farm import Farm

from .conftest import Cli, Simulator

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
    assert {row["external_id"]: row["outcome"] for row in report["companies"]} == {
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


@pytest.mark.parametrize(
    ("queue", "said"),
    [("redis://:secret@127.0.0.1:1", "has a password"), ("NO_SUCH_VARIABLE", "neither a URL nor")],
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
