"""Disk errors during a fleet: each statement of the journal fails once, and each file operation on a sheet."""

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

from .test_kills import comparable, customers, files, remove_journal, server_state, simulated

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_fsync")]


class FailingConnection(Failing):
    """A connection whose n-th statement fails. It does not synchronise with the disk."""

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), parameters)


async def fleet(transport: InProcess, specs: list[Spec], out: Path, journal: Journal) -> dict[str, Outcome]:
    async with (
        Session(KEY, BASE_URL, transport=transport, rng=Random(1)) as session,
        journal,
        Fleet(session, journal=journal, to=out, decide="approve", export="canary") as fleet,
    ):
        return {outcome.external_id: outcome async for outcome in fleet.run(specs)}


@pytest.mark.parametrize(
    ("code", "late"),
    [(sqlite3.SQLITE_FULL, False), (sqlite3.SQLITE_IOERR, True)],
    ids=["full, not executed", "I/O error, executed"],
)
def test_a_failed_journal_statement_is_reported_and_the_next_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, late: bool, stride: int
) -> None:
    caplog.set_level(logging.ERROR)
    specs = [spec for spec in customers(tmp_path / "in") if spec.external_id == "parks"]
    path, out = tmp_path / "fleet.db", tmp_path / "out"

    def opened(left: int) -> Journal:
        def connect(uri: str) -> sqlite3.Connection:
            db = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False, factory=FailingConnection
            )
            db.left, db.late, db.code = counter, late, code
            return db

        counter = [left]
        journal = Journal(path, threaded=False, connect=connect)
        counters.append(counter)
        return journal

    async def failing(number: int) -> tuple[dict[str, Outcome], object]:
        transport = simulated()
        try:
            await fleet(transport, specs, out, opened(number))
        except JournalError as error:
            errors.append(error.reason)
        assert transport.open == 0
        assert not list(tmp_path.rglob("*.part"))
        outcomes = await fleet(transport, specs, out, opened(0))
        if isinstance(outcomes["parks"], Unknown):
            await adopt_logged_company(path, caplog.text)
            unknown.append(number)
            outcomes = await fleet(transport, specs, out, opened(0))
        return outcomes, server_state(transport)

    counters: list[list[int]] = []
    errors: list[str] = []
    unknown: list[int] = []
    expected: object = None
    for number in chain([0], range(1 + late % stride, 1000, stride)):
        shutil.rmtree(out, ignore_errors=True)
        remove_journal(tmp_path)
        caplog.clear()
        outcomes, server = run(failing(number))
        result = comparable(outcomes), server, files(out)
        expected = expected or result  # the first result: in run 0, no statement fails
        assert result == expected, number
        if counters[-2 if number not in unknown else -3][0] > 0:
            break
    print(f"{number} statements; {len(errors)} errors, {len(unknown)} companies adopted")  # noqa: T201
    assert len(errors) > 50 // stride
    assert all(
        "the disk is full" in reason or "disk cannot be" in reason or "closed" in reason for reason in errors
    )


async def adopt_logged_company(path: Path, log: str) -> None:
    """Adopt the company that the log names. The client received its id, and could not write it to the journal."""
    command = re.search(r"`asyncmig adopt (\S+) (\S+)`", log)
    assert command is not None, log
    async with Journal(path, threaded=False) as journal:
        await adopt(journal, *command.groups())


class FailingFile:
    """A file that is open for writing. The n-th operation on all such files fails."""

    def __init__(self, file: IO[bytes], operations: "Operations") -> None:
        self._file, self._operations = file, operations

    def close(self) -> None:
        self._file.close()  # the descriptor is closed even if the last bytes cannot be written
        self._operations.count()

    def __getattr__(self, name: str) -> object:
        self._operations.count()
        return getattr(self._file, name)


class Operations:
    """Counts file operations, and raises an error in the chosen one. `left` is the number of operations up to it."""

    def __init__(self) -> None:
        self.left, self.code = 0, errno.ENOSPC

    def count(self, *name: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code), *name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "error"])
def test_a_failed_file_operation_leaves_the_customer_pending_and_the_next_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stride: int
) -> None:
    specs = [spec for spec in customers(tmp_path / "in") if spec.external_id in ("parks", "fails")]
    path, out, operations = tmp_path / "fleet.db", tmp_path / "out", Operations()
    operations.code = code
    real_open, real_replace = Path.open, Path.replace

    def opened(file: Path, mode: str = "r", *args: object, **options: object) -> object:
        if not file.name.endswith(".part") or out not in file.parents:
            return real_open(file, mode, *args, **options)  # type: ignore[call-overload]
        operations.count(str(file))
        return FailingFile(real_open(file, mode, *args, **options), operations)  # type: ignore[call-overload]

    def replace(file: Path, target: Path) -> Path:
        if out in file.parents:  # the send log is not in this folder
            operations.count(str(file))
        return real_replace(file, target)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "replace", replace)

    async def failing(number: int) -> bool:
        """Let the operation with this number fail. Return whether there was such an operation."""
        transport = simulated()
        operations.left = number
        first = await fleet(transport, specs, out, Journal(path, threaded=False))
        failed = operations.left <= 0 < number
        if failed:
            pending = first["parks"]
            assert isinstance(pending, Pending)
            assert os.strerror(code) in pending.error
            assert str(out) in pending.error
        assert not list(tmp_path.rglob("*.part"))
        present = files(out)
        assert all(present[name] == content for name, content in reference.items() if name in present)
        operations.left = 0
        again = await fleet(transport, specs, out, Journal(path, threaded=False))
        assert isinstance(again["parks"], Delivered)
        return failed

    reference: dict[str, bytes] = {}
    for number in chain([0], range(1 + (code == errno.EIO) % stride, 1000, stride)):
        shutil.rmtree(out, ignore_errors=True)
        remove_journal(tmp_path)
        failed = run(failing(number))
        reference = reference or files(out)
        assert files(out) == reference
        if number and not failed:
            break
    print(f"{number} operations")  # noqa: T201
    assert number > 15
