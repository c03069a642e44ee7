"""A disk that fails under a whole fleet: the journal's statements one by one, and each operation on a sheet."""

import errno
import logging
import os
import re
import shutil
import sqlite3
from itertools import chain
from pathlib import Path
from random import Random
from typing import IO

import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import run
from test_journal_file import Failing

from asyncmig import Delivered, Fleet, Journal, JournalError, Outcome, Pending, Session, Spec, Unknown, adopt

from .test_kills import customers, files, made, remove_journal, simulated, told

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_fsync")]


class Disk(Failing):
    """A connection that fails at its n-th statement; it does not wait for a real disk."""

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), parameters)


async def fleet(wire: InProcess, specs: list[Spec], out: Path, journal: Journal) -> dict[str, Outcome]:
    async with (
        Session(KEY, BASE_URL, transport=wire, rng=Random(1)) as session,
        journal,
        Fleet(session, journal=journal, to=out, decide="approve", export="canary") as fleet,
    ):
        return {outcome.external_id: outcome async for outcome in fleet.run(specs)}


@pytest.mark.parametrize(
    ("code", "late"),
    [(sqlite3.SQLITE_FULL, False), (sqlite3.SQLITE_IOERR, True)],
    ids=["full, and not done", "error, and done"],
)
def test_whichever_statement_of_the_journal_fails_the_fleet_says_so_and_goes_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, late: bool, stride: int
) -> None:
    caplog.set_level(logging.ERROR)
    specs = [spec for spec in customers(tmp_path / "in") if spec.external_id == "parks"]
    path, out = tmp_path / "fleet.db", tmp_path / "out"

    def opened(left: int) -> Journal:
        def connect(uri: str) -> sqlite3.Connection:
            db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Disk)
            db.left, db.late, db.code = counter, late, code
            return db

        counter = [left]
        journal = Journal(path, threaded=False, connect=connect)
        counters.append(counter)
        return journal

    async def failing(number: int) -> tuple[dict[str, Outcome], object]:
        wire = simulated()
        try:
            await fleet(wire, specs, out, opened(number))
        except JournalError as error:
            errors.append(error.reason)
        assert wire.open == 0
        assert not list(tmp_path.rglob("*.part"))
        outcomes = await fleet(wire, specs, out, opened(0))
        if isinstance(outcomes["parks"], Unknown):
            await adopt_as_was_said(path, caplog.text)
            unknown.append(number)
            outcomes = await fleet(wire, specs, out, opened(0))
        return outcomes, made(wire)

    counters: list[list[int]] = []
    errors: list[str] = []
    unknown: list[int] = []
    expected: object = None
    for number in chain([0], range(1 + late % stride, 1000, stride)):
        shutil.rmtree(out, ignore_errors=True)
        remove_journal(tmp_path)
        caplog.clear()
        outcomes, server = run(failing(number))
        result = told(outcomes), server, files(out)
        expected = expected or result  # of number 0: no statement failed
        assert result == expected, number
        if counters[-2 if number not in unknown else -3][0] > 0:
            break
    print(f"{number} statements; {len(errors)} errors, {len(unknown)} companies to adopt")  # noqa: T201
    assert len(errors) > 50 // stride
    assert all(
        "the disk is full" in reason or "disk cannot be" in reason or "closed" in reason for reason in errors
    )


async def adopt_as_was_said(path: Path, log: str) -> None:
    """Adopt the company that the log names: its id was known, and could not be written down."""
    said = re.search(r"`asyncmig adopt (\S+) (\S+)`", log)
    assert said is not None, log
    async with Journal(path, threaded=False) as journal:
        await adopt(journal, *said.groups())


class Sheet:
    """A file that is written, and fails at the n-th operation of all such files."""

    def __init__(self, file: IO[bytes], operations: "Operations") -> None:
        self._file, self._operations = file, operations

    def close(self) -> None:
        self._file.close()  # what is open is closed also where the last bytes did not fit
        self._operations.one()

    def __getattr__(self, name: str) -> object:
        self._operations.one()
        return getattr(self._file, name)


class Operations:
    def __init__(self) -> None:
        self.left, self.code = 0, errno.ENOSPC

    def one(self, *name: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code), *name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "error"])
def test_whichever_operation_on_a_sheet_fails_the_customer_is_pending_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stride: int
) -> None:
    specs = [spec for spec in customers(tmp_path / "in") if spec.external_id in ("parks", "fails")]
    path, out, operations = tmp_path / "fleet.db", tmp_path / "out", Operations()
    operations.code = code
    real_open, real_replace = Path.open, Path.replace

    def opened(file: Path, mode: str = "r", *args: object, **options: object) -> object:
        if not file.name.endswith(".part") or out not in file.parents:
            return real_open(file, mode, *args, **options)  # type: ignore[call-overload]
        operations.one(str(file))
        return Sheet(real_open(file, mode, *args, **options), operations)  # type: ignore[call-overload]

    def replace(file: Path, target: Path) -> Path:
        if out in file.parents:  # not the send log's
            operations.one(str(file))
        return real_replace(file, target)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "replace", replace)

    async def failing(number: int) -> bool:
        """Let one operation fail, and return whether there was one."""
        wire = simulated()
        operations.left = number
        first = await fleet(wire, specs, out, Journal(path, threaded=False))
        failed = operations.left <= 0 < number
        if failed:
            pending = first["parks"]
            assert isinstance(pending, Pending)
            assert os.strerror(code) in pending.error
            assert str(out) in pending.error
        assert not list(tmp_path.rglob("*.part"))
        there = files(out)
        assert all(there[name] == content for name, content in whole.items() if name in there)
        operations.left = 0
        again = await fleet(wire, specs, out, Journal(path, threaded=False))
        assert isinstance(again["parks"], Delivered)
        return failed

    whole: dict[str, bytes] = {}
    for number in chain([0], range(1 + (code == errno.EIO) % stride, 1000, stride)):
        shutil.rmtree(out, ignore_errors=True)
        remove_journal(tmp_path)
        failed = run(failing(number))
        whole = whole or files(out)
        assert files(out) == whole
        if number and not failed:
            break
    print(f"{number} operations")  # noqa: T201
    assert number > 15
