"""A worker as SAQ's command starts it, on a faster clock, and with a wall-clock that may be wrong.

python workerprocess.py SPEED SECONDS_OFF
"""

import asyncio
import sys
import time
from typing import Any

from saq.worker import start

from asyncmig.simulator.clock import fast_loop


def main(speed: float, off: float) -> None:
    asyncio.new_event_loop = lambda: fast_loop(speed)
    wall: Any = time.time  # noqa: TID251 - the clock that is wrong
    time.time = lambda: wall() + off  # noqa: TID251 - as above
    start("asyncmig.distributed.saq.settings")


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
