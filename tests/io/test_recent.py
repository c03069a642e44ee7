"""What was sent in the last minute is known to the next process, however long the log before it is."""

import time
from pathlib import Path

import pytest

from asyncmig._io.recent import RecentLog


@pytest.mark.parametrize("old", [0, 20_000])
def test_what_is_young_stays_in_a_log_that_is_cut(tmp_path: Path, old: int) -> None:
    path, now = tmp_path / "recent", time.time()  # noqa: TID251 - what the log is in
    hour = "".join(f"sent {now - 4000:.3f} GET /x\ndone {now - 4000:.3f} GET /x\n" for _ in range(old))
    path.write_text(hour, encoding="utf-8")
    for count in (1, 2, 3):
        log = RecentLog(path, speed=1.0)
        log.open()
        log.note("sent", "GET /x")
        log.note("done", "GET /x")
        log.note("sent", "POST /x")
        log.close()
        ages = RecentLog(path, speed=1.0).ages()
        assert len([age for age in ages["GET /x"] if age < 60.0]) == count
        assert ages["POST /x"] == [0.0] * count
    assert path.stat().st_size < 300_000


def test_others_go_on_appending_to_a_log_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "recent"
    path.write_text("done 1.000 GET /x\n" * 20_000, encoding="utf-8")
    first, second = RecentLog(path, speed=1.0), RecentLog(path, speed=1.0)
    first.open()
    first.note("sent", "GET /x")
    path.write_text(path.read_text(encoding="utf-8") + "done 1.000 GET /x\n" * 20_000, encoding="utf-8")
    second.open()
    first.note("sent", "GET /x")
    assert RecentLog(path, speed=1.0).ages() == {"GET /x": [0.0, 0.0]}
    first.close()
    second.close()
