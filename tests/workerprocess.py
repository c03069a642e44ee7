"""The `saq` command, with a faster clock, and with a wall clock that may be wrong.

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

CONFIG = json.loads(os.environ["WORKER"])


def settings() -> dict[str, object]:
    return worker_settings(
        CONFIG["queue"],
        session=lambda: Session(shared=RedisWindow(CONFIG["window"]), limits=CONFIG["limits"]),
        journal=lambda: PostgresJournal(CONFIG["database"], schema=CONFIG["name"], lease=3.0),
        to=CONFIG["to"],
        api=CONFIG["api"],
        options=MigrationOptions(decide="approve"),
        concurrency=CONFIG["concurrency"],
        name=CONFIG["name"],
    )


def main() -> None:
    asyncio.new_event_loop = lambda: fast_loop(CONFIG["speed"])
    wall: Any = time.time  # noqa: TID251 - the wall clock, to be shifted
    time.time = lambda: wall() + CONFIG["off"]  # noqa: TID251 - as above
    sys.argv = ["saq", "workerprocess.settings"]
    saq_command()


if __name__ == "__main__":
    main()
