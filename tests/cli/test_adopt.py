"""`asyncmig adopt`: the way on from a creation that was never answered."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asyncmig import Journal
from asyncmig.cli.app import app


def test_it_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    ended = CliRunner().invoke(app, ["adopt", "acme-001", "c-1", "--journal", str(path)])
    assert ended.exit_code == 0
    assert "Run again to go on" in ended.stderr

    async def states() -> dict[str, bytes]:
        async with Journal(path) as journal:
            return await journal.states()

    assert b'"company_id":"c-1"' in asyncio.run(states())["acme-001"]


@pytest.mark.parametrize("arguments", [["a b", "c-1"], ["acme", " "]])
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    ended = CliRunner().invoke(app, ["adopt", *arguments, "--journal", str(tmp_path / "fleet.db")])
    assert ended.exit_code != 0
