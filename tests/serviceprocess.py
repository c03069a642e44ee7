"""The guide's service as a process with a faster clock.

python serviceprocess.py SPEED

It prints its port, and keeps its files in the current folder.
"""

import asyncio
import socket
import sys

import documents
import uvicorn

from asyncmig.simulator import fast_loop


def main(speed: float) -> None:
    names: dict[str, object] = {"__name__": "service"}
    exec(compile(documents.SERVICE, "service.py", "exec"), names)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)  # noqa: T201 - to its parent
    config = uvicorn.Config(names["app"], log_level="warning", timeout_graceful_shutdown=5)  # type: ignore[arg-type]
    with asyncio.Runner(loop_factory=lambda: fast_loop(speed)) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listening]))


if __name__ == "__main__":
    main(float(sys.argv[1]))
