"""The sources of settings (option, environment, manifest, default), and the checks of their values."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import KEY, SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
MANIFEST = """
[defaults]
decide = "approve-safe"
rate = "50/60s"
out = "delivered"
{more}

[[company]]
external_id = "acme"
name = "Acme Inc"
source = "HubSpot"
templates = ["Contacts"]
files = ["a*.csv"]
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    def write(more: str = "") -> Path:
        folder = tmp_path / "weekend"
        folder.mkdir(exist_ok=True)
        (folder / "acme.csv").write_bytes(GOOD)
        path = folder / "customers.toml"
        path.write_text(MANIFEST.format(more=more), encoding="utf-8")
        return path

    return write


def settings(out: str) -> dict[str, tuple[str, str]]:
    rows = [line.split(maxsplit=1) for line in out.splitlines()[2:] if line.strip()]
    return {name: tuple(rest.rsplit(maxsplit=1)) for name, rest in rows}  # type: ignore[misc]


def test_settings_come_from_option_environment_manifest_and_default_in_this_order(
    cli: Cli, manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCMIG_RATE", "40/60s")
    monkeypatch.setenv("ASYNCMIG_DECIDE", "reject")
    monkeypatch.setenv("VERN_BASE_URL", "http://127.0.0.1:9/api/v1")
    result = cli("config", manifest(), "--decide", "approve")
    assert result.code == 0
    found = settings(result.out)
    assert found["decide"] == ("approve", ["command", "line"][-1]) or "command line" in result.out
    assert found["rate"] == ("40/60s", "ASYNCMIG_RATE")
    assert found["out"][0].endswith("weekend/delivered")
    assert found["out"][1] == "manifest"
    assert found["concurrency"] == ("500", "default")
    assert found["base-url"] == ("http://127.0.0.1:9/api/v1", "VERN_BASE_URL")
    assert KEY not in result.out
    assert "API key" in result.out
    assert "not set" not in result.out
    monkeypatch.delenv("VERN_API_KEY")
    assert "not set" in cli("config", manifest()).out


def test_run_uses_the_defaults_of_a_toml_manifest(
    cli: Cli, manifest: Callable[..., Path], simulator: Simulator
) -> None:
    path = manifest()
    assert cli("run", path, "--speed", SPEED, "--base-url", simulator.base_url).code == 0
    assert (path.parent / "delivered/acme/Contacts.csv").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("concurency = 5", "defaults.concurency: is not a setting; there are scope, rate"),
        ("retries = [1]", "defaults.retries: must be a string, a number, true or false"),
        ("filter = 'some'", "--filter"),
        ("speed = 'fast'", "--speed"),
        ("max-duration = 'long'", "must look like 90s, 45m or 1h30m"),
    ],
)
def test_wrong_defaults_of_a_manifest_exit_2_and_are_named(
    cli: Cli, manifest: Callable[..., Path], more: str, message: str
) -> None:
    result = cli("run", manifest(more))
    assert result.code == 2
    assert message in result.err


def test_a_wrong_environment_variable_exits_2_and_is_named(
    cli: Cli, manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCMIG_CONCURRENCY", "none")
    result = cli("run", manifest())
    assert result.code == 2
    assert "concurrency" in result.err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VERN_BASE_URL", "https://user:secret@api.example.org/api"),
        ("VERN_BASE_URL", "https://user:s#secret@api.example.org/api"),
        ("HTTPS_PROXY", "socks5://user:secret@proxy.example.org:1080"),
        ("HTTPS_PROXY", "user:1/secret@proxy.example.org:1080"),
    ],
)
def test_an_unusable_address_exits_2_and_its_credentials_are_not_printed(
    cli: Cli, manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("VERN_BASE_URL", "https://api.example.org/api")
    monkeypatch.setenv(variable, value)
    result = cli("run", manifest())
    assert result.code == 2
    assert variable in result.err
    assert "secret" not in result.err + result.out + cli("config", manifest()).out


def test_a_wrong_value_exits_2_and_is_named_with_its_source(
    cli: Cli, manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, message = manifest("max-duration = 'long'"), "'long' must look like 90s, 45m or 1h30m"
    result = cli("config", path)
    assert result.code == 2
    assert f"{message} (from [defaults] of the manifest)" in result.err
    monkeypatch.setenv("ASYNCMIG_MAX_DURATION", "long")
    assert f"{message} (from ASYNCMIG_MAX_DURATION)" in cli("config", path).err
    assert cli("config", path, "--max-duration", "long").err.rstrip().endswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[defaults]\ndecide = approve\n", "line 2: manifest: is not TOML"),
        (b"external_id,name,source,templates,files\n", "line 1: manifest: is not TOML"),
        (b"[defaults]\nout = '\xff'\n", "line 2: manifest: is not UTF-8"),
        (b"PK\x03\x04", "is a ZIP archive or an Excel workbook"),
        (b"deep = " + b"[" * 5000, "is not TOML"),
    ],
    ids=("value", "csv", "encoding", "workbook", "depth"),
)
def test_config_exits_2_for_a_manifest_that_is_not_toml(
    cli: Cli, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "customers.toml").write_bytes(content)
    result = cli("config", "customers.toml")
    assert (result.code, result.out) == (2, "")
    assert f"customers.toml: {message}" in result.err


@pytest.mark.parametrize(
    ("name", "content", "decide"),
    [
        ("customers.toml", "[defaults]\ndecide = 'approve'\n", ("approve", "manifest")),
        ("customers.toml", "\n", ("park", "default")),
        ("customers.toml", "[defaults]\n[[company]]\nname = 3\n", ("park", "default")),
        ("customers.csv", "external_id,name\n", ("park", "default")),
        ("customers.json", "[]", ("park", "default")),
    ],
)
def test_settings_are_shown_for_manifests_without_customers_and_in_other_formats(
    cli: Cli, tmp_path: Path, name: str, content: str, decide: tuple[str, str]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    result = cli("config", name)
    assert result.code == 0
    assert settings(result.out)["decide"] == decide
