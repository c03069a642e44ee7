"""The guide's worker for SAQ, arq or procrastinate as a process, with a faster clock and shorter intervals.

python jobprocess.py saq|arq|procrastinate SPEED JOURNAL_SCHEMA
"""

import asyncio
import logging
import os
import sys
from functools import partial
from typing import Any

import documents
from saq.__main__ import main as saq_command

from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.jobs import runners
from asyncmig.simulator import fast_loop

KINDS = {"saq": "MigrationQueue", "arq": "WorkerSettings", "procrastinate": "migrate_task"}
"""A word that occurs only in the code blocks of each recipe."""
PRELUDE = "import asyncmig, os; from pathlib import Path"


def recipe(*kinds: str) -> dict[str, Any]:
    """Return the names that the guide's recipes define.

    They are the names of the block that all recipes share, and of the blocks that contain one of `kinds`.
    """
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(PRELUDE, names)
    for block in documents.GUIDE.blocks("python"):
        if "def run_customer" in block or any(kind in block for kind in kinds):
            exec(block.replace('cron="* * * * *"', 'cron="* * * * * *"'), names)  # every second
    return names


def recipe_with_schema(kind: str, schema: str) -> dict[str, Any]:
    """Return a recipe with its journal in `schema`, and with a lease that ends soon after a worker has died."""
    runners._RETRIES["held"] = 1.0
    names = recipe(KINDS[kind])
    names["PostgresJournal"] = partial(PostgresJournal, schema=schema, lease=2.0)
    return names


def saq_settings() -> dict[str, Any]:
    settings: dict[str, Any] = recipe_with_schema("saq", os.environ["JOB_SCHEMA"])["settings"]
    settings["timers"]["sweep"] = 1
    return settings


def main(kind: str, speed: float, schema: str) -> None:
    logging.basicConfig(level=logging.INFO)
    if kind == "saq":
        os.environ["JOB_SCHEMA"] = schema
        asyncio.new_event_loop = lambda: fast_loop(speed)
        sys.argv = ["saq", "jobprocess.saq_settings"]
        saq_command()
        return
    names = recipe_with_schema(kind, schema)
    loop = fast_loop(speed)
    asyncio.set_event_loop(loop)
    if kind == "arq":
        import arq

        names["DEAD_AFTER"] = 2
        settings = names["WorkerSettings"]
        settings.queue_name = schema
        arq.run_worker(settings)
    else:
        jobs = names["tasks"].job_manager
        jobs.get_stalled_jobs = partial(jobs.get_stalled_jobs, seconds_since_heartbeat=4)
        loop.run_until_complete(names["work"]())


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
