"""Every command that is printed as a next step works as it is printed."""

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
    """Return the commands that stand on lines of their own."""
    return re.findall(r"^ +asyncmig ([^#\n]+?) *(?:#.*)?$", result.out + result.err, re.MULTILINE)


@pytest.fixture
def do(cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a command as it was printed. The address and the clock of the simulator are in the environment."""
    monkeypatch.setenv("VERN_BASE_URL", simulator.base_url)
    monkeypatch.setenv("ASYNCMIG_SPEED", f"{SPEED:g}")
    return lambda command: cli(*shlex.split(command))


Do = Callable[[str], Result]


def refused(status: int, text: str, name: str = "") -> Callable[[Request], Reply | None]:
    """Return an answer to each create request, or to that of one customer."""

    def intercept(request: Request) -> Reply | None:
        is_create = request.method == "POST" and request.path.endswith("/companies")
        if is_create and name.encode() in request.body:
            return Reply(status=status, body=json.dumps({"error": text}).encode())
        return None

    return intercept


def test_after_a_run_with_each_outcome(
    do: Do, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.intercept = refused(409, "external_id is taken", "uma Inc")
    manifest = customers(acme=GOOD, bolt=FLAWED, cafe=LATIN, hera=GOOD, uma=GOOD)
    with held(tmp_path / "fleet.db", "hera", lambda: False):
        ran = do(f"run {manifest.name}")
        again, wait, review, safe, show, corrected, retry = printed(ran)
        assert (ran.code, do(again).code) == (75, 75)
    assert do(wait).code == 6
    assert do(review).code == 5
    approve = next(command for command in printed(do(safe)) if "--decide approve" in command)
    assert (do(show).code, do(corrected).code, do(retry).code) == (0, 6, 3)
    assert do(approve).code == 6
    assert outcomes(tmp_path) == {
        "acme": "delivered",
        "bolt": "delivered",
        "cafe": "failed",
        "hera": "delivered",
        "uma": "unknown",
    }


def test_after_a_lost_journal_the_company_is_adopted(do: Do, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    assert do(f"run {manifest.name} --journal lost.db").code == 0
    ran = do(f"run {manifest.name}")
    assert ran.code == 6
    (advice,) = set(re.findall(r"`asyncmig (adopt EXTERNAL_ID COMPANY_ID)`", ran.out))
    ids = json.loads(do("status --journal lost.db --json").out)["ids"]
    adopted = do(advice.replace("EXTERNAL_ID", "acme").replace("COMPANY_ID", ids["company"]))
    assert (adopted.code, "Run again" in adopted.err) == (0, True)
    assert do(f"run {manifest.name}").code == 0


@pytest.mark.parametrize("trouble", ["key", "account"])
def test_after_a_refusal(
    do: Do,
    customers: Customers,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    if trouble == "key":
        monkeypatch.setenv("VERN_API_KEY", "wrong")
    else:
        simulator.intercept = refused(403, "no plan for this")
    ran = do(f"run {manifest.name} --out sheets")
    assert ran.code == 4
    assert ("no plan for this" in ran.out) == (trouble == "account")
    monkeypatch.setenv("VERN_API_KEY", KEY)
    simulator.intercept = lambda request: None
    (again,) = printed(ran)
    assert do(again).code == 0


def test_after_a_plan_a_status_and_a_selection(do: Do, customers: Customers, simulator: Simulator) -> None:
    manifest = customers(acme=GOOD, bolt=FLAWED, cafe=LATIN, dora=GOOD)
    (begin,) = printed(do(f"run {manifest.name} --select acme,bolt,cafe --plan"))
    assert do(f"{begin} --select acme,bolt,cafe").code == 5
    selected = do(f"run {manifest.name} --select acme")
    (status,) = printed(selected)
    told = do(status)
    review, retry = printed(told)
    assert (selected.code, told.code, do(review).code, do(retry).code) == (0, 0, 5, 3)
    assert printed(do("watch")) == [review, retry]
    plan = printed(do(f"run {manifest.name} --plan"))
    assert [do(command).code for command in plan] == [5, 5]
    (listing,) = re.findall(r"see: asyncmig (.*)", do("show nobody").err)
    assert do(listing).code == 0


@pytest.mark.parametrize("number", range(3))
def test_what_review_prints_for_a_pipe(do: Do, customers: Customers, tmp_path: Path, number: int) -> None:
    manifest = customers(acme=FLAWED)
    assert do(f"run {manifest.name}").code == 5
    command = printed(do("review"))[number]
    decided = do(command)
    assert decided.code == 0, decided.err
    (following,) = printed(decided)
    assert do(following).code == (3 if "--reject" in command else 0)


def test_after_a_decision_about_one_of_two(do: Do, customers: Customers) -> None:
    manifest = customers(acme=FLAWED, bolt=FLAWED)
    assert do(f"run {manifest.name}").code == 5
    decided = do("review acme --approve --allow-destructive")
    assert [do(command).code for command in printed(decided)] == [5]


def test_after_an_interrupted_run(do: Do, customers: Customers, simulator: Simulator) -> None:
    def away(request: Request) -> Reply | None:
        return Reply(status=503, body=b"") if "/imports" in request.path else None

    simulator.intercept = away
    ran = do(f"run {customers(acme=GOOD, bolt=GOOD).name} --max-duration 2m")
    (again,) = printed(ran)
    assert ran.code == 75
    assert printed(do("status")) == [again]
    simulator.intercept = lambda request: None
    assert do(again).code == 0


def test_after_a_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
