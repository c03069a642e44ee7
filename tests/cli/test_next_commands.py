"""Each command that the program prints as a next step works unchanged."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

from .conftest import KEY, SPEED, Cli, Result, Simulator
from .test_held import held
from .test_run import FLAWED, GOOD, LATIN, outcomes

Customers = Callable[..., Path]


def printed(result: Result) -> list[str]:
    """Return the printed commands that have a separate line."""
    return re.findall(r"^ +asyncmig ([^#\n]+?) *(?:#.*)?$", result.out + result.err, re.MULTILINE)


@pytest.fixture
def execute(cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a command unchanged. The environment contains the address and the speed of the simulator."""
    monkeypatch.setenv("VERN_BASE_URL", simulator.base_url)
    monkeypatch.setenv("ASYNCMIG_SPEED", f"{SPEED:g}")
    return lambda command: cli(*shlex.split(command))


Execute = Callable[[str], Result]


def refused(status: int, text: str, name: str = "") -> Callable[[Request], Reply | None]:
    """Return a function that refuses each create request, or the one whose body contains `name`."""

    def intercept(request: Request) -> Reply | None:
        is_create = request.method == "POST" and request.path.endswith("/companies")
        if is_create and name.encode() in request.body:
            return Reply(status=status, body=json.dumps({"error": text}).encode())
        return None

    return intercept


def test_commands_printed_after_a_run_with_each_outcome_work(
    execute: Execute, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.intercept = refused(409, "external_id is taken", "uma Inc")
    manifest = customers(acme=GOOD, bolt=FLAWED, cafe=LATIN, hera=GOOD, uma=GOOD)
    with held(tmp_path / "fleet.db", "hera", lambda: False):
        ran = execute(f"run {manifest.name}")
        again, wait, review, safe, show, corrected, retry = printed(ran)
        assert (ran.code, execute(again).code) == (75, 75)
    assert execute(wait).code == 6
    assert execute(review).code == 5
    approve = next(command for command in printed(execute(safe)) if "--decide approve" in command)
    assert (execute(show).code, execute(corrected).code, execute(retry).code) == (0, 6, 3)
    assert execute(approve).code == 6
    assert outcomes(tmp_path) == {
        "acme": "delivered",
        "bolt": "delivered",
        "cafe": "failed",
        "hera": "delivered",
        "uma": "unknown",
    }


def test_the_adopt_command_printed_after_a_lost_journal_works(execute: Execute, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    assert execute(f"run {manifest.name} --journal lost.db").code == 0
    ran = execute(f"run {manifest.name}")
    assert ran.code == 6
    (advice,) = set(re.findall(r"`asyncmig (adopt EXTERNAL_ID COMPANY_ID)`", ran.out))
    ids = json.loads(execute("status --journal lost.db --json").out)["ids"]
    adopted = execute(advice.replace("EXTERNAL_ID", "acme").replace("COMPANY_ID", ids["company"]))
    assert (adopted.code, "Run again" in adopted.err) == (0, True)
    assert execute(f"run {manifest.name}").code == 0


@pytest.mark.parametrize("refusal", ["key", "account"])
def test_the_command_printed_after_a_refused_key_or_account_works(
    execute: Execute,
    customers: Customers,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    refusal: str,
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    if refusal == "key":
        monkeypatch.setenv("VERN_API_KEY", "wrong")
    else:
        simulator.intercept = refused(403, "no plan for this")
    ran = execute(f"run {manifest.name} --out sheets")
    assert ran.code == 4
    assert ("no plan for this" in ran.out) == (refusal == "account")
    monkeypatch.setenv("VERN_API_KEY", KEY)
    simulator.intercept = lambda request: None
    (again,) = printed(ran)
    assert execute(again).code == 0


def test_commands_printed_after_a_plan_a_status_and_a_selection_work(
    execute: Execute, customers: Customers, simulator: Simulator
) -> None:
    manifest = customers(acme=GOOD, bolt=FLAWED, cafe=LATIN, dora=GOOD)
    (begin,) = printed(execute(f"run {manifest.name} --select acme,bolt,cafe --plan"))
    assert execute(f"{begin} --select acme,bolt,cafe").code == 5
    selected = execute(f"run {manifest.name} --select acme")
    (status,) = printed(selected)
    status_shown = execute(status)
    review, retry = printed(status_shown)
    assert (selected.code, status_shown.code, execute(review).code, execute(retry).code) == (0, 0, 5, 3)
    assert printed(execute("watch")) == [review, retry]
    plan = printed(execute(f"run {manifest.name} --plan"))
    assert [execute(command).code for command in plan] == [5, 5]
    (listing,) = re.findall(r"see: asyncmig (.*)", execute("show nobody").err)
    assert execute(listing).code == 0


@pytest.mark.parametrize("number", range(3))
def test_commands_that_review_prints_to_a_pipe_work(
    execute: Execute, customers: Customers, tmp_path: Path, number: int
) -> None:
    manifest = customers(acme=FLAWED)
    assert execute(f"run {manifest.name}").code == 5
    command = printed(execute("review"))[number]
    decided = execute(command)
    assert decided.code == 0, decided.err
    (following,) = printed(decided)
    assert execute(following).code == (3 if "--reject" in command else 0)


def test_commands_printed_after_one_of_two_decisions_work(execute: Execute, customers: Customers) -> None:
    manifest = customers(acme=FLAWED, bolt=FLAWED)
    assert execute(f"run {manifest.name}").code == 5
    decided = execute("review acme --approve --allow-destructive")
    assert [execute(command).code for command in printed(decided)] == [5]


def test_the_command_printed_after_an_interrupted_run_works(
    execute: Execute, customers: Customers, simulator: Simulator
) -> None:
    def unavailable(request: Request) -> Reply | None:
        return Reply(status=503, body=b"") if "/imports" in request.path else None

    simulator.intercept = unavailable
    ran = execute(f"run {customers(acme=GOOD, bolt=GOOD).name} --max-duration 2m")
    (again,) = printed(ran)
    assert ran.code == 75
    assert printed(execute("status")) == [again]
    simulator.intercept = lambda request: None
    assert execute(again).code == 0


def test_commands_printed_after_a_demo_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, run = printed(cli("demo", "--customers", "4", "--speed", "200"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "asyncmig", *shlex.split(sim)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        for setting in shlex.split(serving.stdout.readline())[1:]:
            monkeypatch.setenv(*setting.split("=", 1))
        ran = cli(*shlex.split(run))
        serving.terminate()
    assert ran.code in (3, 5)
