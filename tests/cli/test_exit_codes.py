"""Exit codes for faults outside of a run: an unusable journal, and file names that are not UTF-8."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from asyncmig import Failed, Fleet, InvalidInput, MemoryJournal, Session, Spec, migrate
from asyncmig.cli.exit_codes import RESUMABLE, USAGE, code_of_error
from asyncmig.errors import JournalError, JournalUnavailable

from .conftest import KEY, SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
Customers = Callable[..., Path]
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def short_busy_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncmig.journal.sqlite_file.BUSY", 0.05)


@pytest.fixture(params=["EXCLUSIVE", "IMMEDIATE"])
def locked(
    request: pytest.FixtureRequest, cli: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> Iterator[tuple[object, ...]]:
    """Lock a journal as another program does. Return the arguments of the run that wrote it."""
    arguments = ("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", simulator.base_url)
    assert cli(*arguments).code == 0
    with closing(sqlite3.connect(tmp_path / "fleet.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE" if request.param == "EXCLUSIVE" else "SELECT 1")
        other.execute(f"BEGIN {request.param}")
        other.execute("DELETE FROM holders")
        yield arguments


@pytest.mark.usefixtures("short_busy_timeout")
def test_commands_exit_75_when_another_program_keeps_the_journal_locked(
    cli: Cli, locked: tuple[object, ...], simulator: Simulator
) -> None:
    before = simulator.count()
    for command in (locked, ("adopt", "acme", "0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11"), ("retry",)):
        result = cli(*command)
        assert result.code == 75, (command, result.err)
        assert "locked" in result.err
        assert "Traceback" not in result.err
    assert simulator.count() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to read-only files")
def test_run_exits_2_when_the_journal_is_read_only(cli: Cli, customers: Customers, tmp_path: Path) -> None:
    (tmp_path / "fleet.db").touch(mode=0o400)
    assert cli("run", customers(acme=GOOD)).code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JournalUnavailable("fleet.db", "the disk is full"), RESUMABLE),
        (JournalError("fleet.db", "this file is not a journal"), USAGE),
        (OSError(errno.ENOSPC, "No space left on device"), RESUMABLE),
        (OSError(errno.EMFILE, "Too many open files"), RESUMABLE),
        (OSError(errno.EIO, "Input/output error"), RESUMABLE),
        (OSError(errno.EROFS, "Read-only file system"), USAGE),
        (PermissionError(errno.EACCES, "Permission denied"), USAGE),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), USAGE),
        (OSError("no number"), USAGE),
    ],
)
def test_temporary_errors_have_exit_code_75_and_others_2(error: Exception, code: int) -> None:
    assert code_of_error(error) == code


@pytest.mark.parametrize(
    ("place", "files"),
    [
        (f"{NOT_UTF8}.csv", "in/*.csv"),
        (f"{NOT_UTF8}.csv", "in/**"),
        (f"{NOT_UTF8}.csv", "in/caf?.csv"),
        (f"{NOT_UTF8}/deals.csv", "in/*/*.csv"),
        (f"{NOT_UTF8}/deals.csv", "**/deals.csv"),
    ],
)
def test_run_exits_2_for_an_input_file_whose_name_is_not_utf8(
    cli: Cli, simulator: Simulator, tmp_path: Path, place: str, files: str
) -> None:
    path = tmp_path / "in" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    manifest = tmp_path / "customers.csv"
    lines = f"external_id,name,source,files\nacme,Acme,HubSpot,{files}\n"
    manifest.write_text(lines, encoding="utf-8")
    result = cli("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url)
    assert result.code == 2, result.err
    assert "is not UTF-8: rename it" in result.err
    assert simulator.count() == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--out", "--journal", "--report", "manifest", "folder"])
def test_run_exits_2_for_an_option_or_folder_whose_path_is_not_utf8(
    customers: Customers, simulator: Simulator, tmp_path: Path, option: str
) -> None:
    manifest, folder = customers(acme=GOOD), tmp_path
    arguments = ["--speed", str(SPEED), "--base-url", simulator.base_url]
    if option == "manifest":
        manifest = manifest.rename(tmp_path / f"{NOT_UTF8}.csv")
    elif option == "folder":
        folder = tmp_path / NOT_UTF8
        folder.mkdir()
    else:
        arguments += [option, NOT_UTF8]
    ended = subprocess.run(
        [sys.executable, "-m", "asyncmig", "run", manifest, *arguments],
        cwd=folder,
        env={**os.environ, "VERN_API_KEY": KEY},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert b"is not UTF-8: rename it" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert simulator.count() == 0


@pytest.mark.looptime
async def test_the_library_refuses_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / f"{NOT_UTF8}.csv"
    path.write_bytes(GOOD)
    spec = Spec(external_id="acme", name="Acme", source="s", files=(path,))
    async with Session(KEY, "http://127.0.0.1:9/api/v1") as session:
        with pytest.raises(InvalidInput, match="not UTF-8"):
            Fleet(session, journal=MemoryJournal(), to=tmp_path / NOT_UTF8)
        with pytest.raises(InvalidInput, match="not UTF-8"):
            await migrate(session, spec, journal=MemoryJournal(), to=tmp_path / NOT_UTF8)
        outcome = await migrate(session, spec, journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Failed)
    assert json.dumps(outcome.error)
    outcome.error.encode()
