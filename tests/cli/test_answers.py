"""`--answers`, the file of answer rules: the sources of its path, and the checks before the first request."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from asyncmig.cli.connection import timeouts_at
from asyncmig.cli.last_run import read_settings
from asyncmig.cli.settings import Settings
from asyncmig.distributed import _environment

from .conftest import Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
RULES = '[[answer]]\nquestion = "date"\nchoose = "Day first"\n'


def test_companies_refuses_answers_before_any_request(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "answers.toml").write_text(RULES)
    manifest = customers(acme=GOOD)
    at = ("--base-url", simulator.base_url)
    for option in (("--answers", "answers.toml"), ("--cancel-blocked-after", "30m")):
        for plan in ((), ("--plan",)):
            result = cli("run", manifest, *at, *option, *plan)
            assert result.code == 2, option
            assert option[0] in result.err
            assert "'companies'" in result.err
    assert simulator.count() == 0
    assert not list(tmp_path.glob("fleet.db*"))


def test_faults_of_the_answers_file_are_reported_before_any_request(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "answers.toml").write_text('[[answer]]\nquestion = "("\nchoose = "a"\n')
    at = ("--base-url", simulator.base_url)
    result = cli("run", customers(acme=GOOD), *at, "--answers", "answers.toml")
    assert result.code == 2
    assert "--answers 'answers.toml': entry 1: question='(': is not a regular expression" in result.err
    result = cli("run", customers(acme=GOOD), *at, "--answers", "none.toml")
    assert "--answers 'none.toml' cannot be read: No such file or directory" in result.err
    assert simulator.count() == 0


def test_the_answers_path_comes_from_the_manifest_folder_or_the_environment(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weekend"
    folder.mkdir()
    (folder / "a.csv").write_bytes(GOOD)
    (folder / "customers.toml").write_text(
        '[defaults]\nanswers = "rules.toml"\ncancel_blocked_after = "1h30m"\n'
        '[[company]]\nexternal_id = "a"\nname = "A"\nsource = "HubSpot"\nfiles = ["a.csv"]\n'
    )

    def shown() -> dict[str, tuple[str, str]]:
        lines = map(json.loads, cli("config", "weekend/customers.toml", "--json").out.splitlines())
        return {line["setting"]: (line["value"], line["from"]) for line in lines}

    assert shown()["answers"] == ("weekend/rules.toml", "manifest")
    assert shown()["cancel-blocked-after"] == ("1h30m", "manifest")
    monkeypatch.setenv("ASYNCMIG_ANSWERS", "mine.toml")
    assert shown()["answers"] == ("mine.toml", "ASYNCMIG_ANSWERS")


def test_the_settings_of_the_last_run_contain_answers_and_cancel_blocked_after() -> None:
    before = read_settings({"answers": "rules.toml", "cancel_blocked_after": "30m"})
    assert read_settings(before.given()) == before
    assert (before.answers, str(before.cancel_blocked_after)) == (Path("rules.toml"), "30m")
    assert Settings().migration_options().cancel_blocked_after is None


def test_workers_read_answers_and_cancel_blocked_after_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answers.toml").write_text(RULES)
    monkeypatch.setenv("ASYNCMIG_ANSWERS", str(tmp_path / "answers.toml"))
    monkeypatch.setenv("ASYNCMIG_CANCEL_BLOCKED_AFTER", "30m")
    options = _environment.migration_options()
    assert [rule.choose for rule in options.answers] == ["Day first"]
    assert options.cancel_blocked_after == 1800.0
    monkeypatch.setenv("ASYNCMIG_CANCEL_BLOCKED_AFTER", "soon")
    with pytest.raises(ValueError, match="ASYNCMIG_CANCEL_BLOCKED_AFTER='soon'"):
        _environment.migration_options()


@pytest.mark.parametrize("speed", [0.01, 1.0, 20.0, 60.0, 5000.0])
def test_no_time_out_is_shorter_than_two_real_seconds(speed: float) -> None:
    for name, seconds in asdict(timeouts_at(speed)).items():
        if name != "min_rate":
            assert seconds / speed >= 2.0, name
    assert timeouts_at(speed).total >= 60.0


def test_companies_refuses_live_connections_with_the_line_of_the_manifest(
    cli: Cli, simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(GOOD)
    (tmp_path / "customers.toml").write_text(
        '[[company]]\nexternal_id = "a"\nname = "A"\nsource = "HubSpot"\nfiles = ["a.csv"]\n'
        '[company.connection]\nsource_key = "salesforce"\n'
    )
    for plan in ((), ("--plan",)):
        result = cli("run", "customers.toml", "--base-url", simulator.base_url, *plan)
        assert result.code == 2
        assert "customers.toml: line 1: connection: 'salesforce' is not supported" in result.err
    assert simulator.count() == 0
    assert not list(tmp_path.glob("fleet.db*"))
