"""One instance of a service without HTTP. It resumes the journal, accepts customers, and drains at SIGTERM.

python fleetprocess.py SPEED JOURNAL OUT FOLDER COUNT

It prints `accepted` once it has accepted its customers. At the end, it prints `stopped` after SIGTERM, and otherwise
`ended` when all its migrations have ended.
"""

import asyncio
import signal
import sys
from pathlib import Path

from farm import customers
from msgspec.structs import replace

from asyncmig import Fleet, Session
from asyncmig.journal import open_journal
from asyncmig.simulator import fast_loop


async def main(place: str, out: str, folder: str, count: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        open_journal(place, lease=3.0) as journal,
        Session(shared="local") as session,
        Fleet(session, journal=journal, to=out, decide="approve", concurrency=8) as fleet,
    ):
        futures = await fleet.resume()
        for spec in customers(Path(folder), count):
            name = f"{Path(folder).name}-{spec.external_id}"
            futures[name] = await fleet.accept(replace(spec, external_id=name, name=f"Customer {name}"))
        print("accepted", flush=True)  # noqa: T201 - to its parent
        ended = asyncio.ensure_future(asyncio.wait(futures.values()) if futures else asyncio.sleep(0))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await fleet.drain(10.0)
        ended.cancel()
        stopping.cancel()
        await asyncio.wait([ended, stopping])
    print("stopped" if stop.is_set() else "ended", flush=True)  # noqa: T201 - to its parent


if __name__ == "__main__":
    speed, *texts, number = sys.argv[1:]
    with asyncio.Runner(loop_factory=lambda: fast_loop(float(speed))) as runner:
        runner.run(main(*texts, int(number)))
