"""SAQ's own command, on a faster clock, and with a wall-clock that may be wrong.

WORKER='{"speed": ..., ...}' python workerprocess.py
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from saq.__main__ import main as saq_command

from asyncmig import Session
from asyncmig.customers.options import MigrationOptions
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.redis import RedisWindow
from asyncmig.distributed.saq import worker_settings
from asyncmig.simulator import fast_loop

TOLD = json.loads(os.environ["WORKER"])


def settings() -> dict[str, object]:
    return worker_settings(
        TOLD["queue"],
        session=lambda: Session(shared=RedisWindow(TOLD["window"]), limits=TOLD["limits"]),
        journal=lambda: PostgresJournal(TOLD["database"], schema=TOLD["name"], lease=3.0),
        to=TOLD["to"],
        api=TOLD["api"],
        options=MigrationOptions(decide="approve"),
        concurrency=TOLD["concurrency"],
        name=TOLD["name"],
    )


def main() -> None:
    asyncio.new_event_loop = lambda: fast_loop(TOLD["speed"])
    wall: Any = time.time  # noqa: TID251 - the clock that is wrong
    time.time = lambda: wall() + TOLD["off"]  # noqa: TID251 - as above
    sys.argv = ["saq", "workerprocess.settings"]
    saq_command()


if __name__ == "__main__":
    main()
