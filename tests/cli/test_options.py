"""The syntax of rates and limits, and the printed command that continues a run."""

from pathlib import Path

import pytest

from asyncmig import Limits
from asyncmig._core.limits import Rate, parse_rate
from asyncmig.cli.last_run import read_settings
from asyncmig.cli.settings import Options
from asyncmig.errors import InvalidInput

from .conftest import Cli


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/60s", Rate(100, 60.0)),
        ("100/60", Rate(100, 60.0)),
        ("5/m", Rate(5, 60.0)),
        ("10/1.5s", Rate(10, 1.5)),
        (" 1000/1H ", Rate(1000, 3600.0)),
    ],
)
def test_parse_rate_accepts_valid_rates(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "100", "100/", "0/60s", "100/0s", "-1/60s", "a/b", "100/60s/2", "1e3/60s"]
)
def test_parse_rate_rejects_other_texts(text: str) -> None:
    with pytest.raises(InvalidInput, match="rate"):
        parse_rate(text)


def test_the_command_that_continues_contains_only_options_that_are_not_defaults() -> None:
    options = Options(
        manifest=Path("my customers.csv"),
        rate=Rate(50, 60.0),
        speed=60.0,
        base_url="http://127.0.0.1:1/api/v1",
    )
    assert options.command() == (
        "asyncmig run 'my customers.csv' --rate 50/60s --speed 60 --base-url http://127.0.0.1:1/api/v1"
    )
    assert options.command(decide="approve-safe").count("--decide approve-safe") == 1
    assert Options(manifest=Path("c.csv")).command() == "asyncmig run c.csv"


def test_an_error_of_the_operating_system_exits_2_with_one_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    for out in ("taken", "taken/below"):
        result = cli("demo", "--out", out, "--customers", "1")
        assert (result.code, "taken is not a folder" in result.err) == (2, True), result.err
    result = cli("sim", "--ledger", "none/ledger.json")
    assert (result.code, result.err) == (2, "Error: none/ledger.json: No such file or directory\n")


@pytest.mark.parametrize("limits", ["by-class", "agent=50/1h,runs=5", "endpoint=60/60s"])
def test_limits_are_read_and_written_without_a_change(limits: str) -> None:
    settings = read_settings({"limits": limits})
    assert settings.all_limits == Limits.parse(limits)
    assert read_settings(settings.given()) == settings


def test_limits_and_rate_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="give one or the other"):
        _ = read_settings({"limits": "by-class", "rate": "50/60s"}).all_limits


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("agent=600/1h,reads=30/60s", "agent=600/1h"),
        ("runs=5", "runs=5"),
        ("per-minute", "per-minute"),
        ("endpoint=50/60s", "endpoint=50/60s"),
        ("reads=30/60s", "by-class"),
    ],
)
def test_the_command_that_continues_names_only_limits_that_differ(given: str, shown: str) -> None:
    options = Options(manifest=Path("customers.csv"), limits=Limits.parse(given))
    assert options.command() == f"asyncmig run customers.csv --limits {shown}"
    assert read_settings(options.given()).limits == options.limits
