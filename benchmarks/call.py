"""The CPU time of a call, compared with bare aiohttp and msgspec: python benchmarks/call.py [--rounds 15]

The server runs in a separate process and is reached over loopback. CPU time is that of the client process. Each
round measures all clients in turn. The limit delays no call. The ratios are medians over the rounds.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import aiohttp
import msgspec

from asyncmig import Session
from asyncmig.companies.wire import Sources

KEY = "a-key-for-the-benchmark"
BODY = msgspec.json.encode({"sources": [{"id": f"src_{n}", "name": f"Source {n}"} for n in range(10)]})
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
Use = Callable[[], Awaitable[object]]


class Server(asyncio.Protocol):
    """Sends the same answer to each request as soon as its headers are complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._head = transport, b""

    def data_received(self, data: bytes) -> None:
        *requests, self._head = (self._head + data).split(b"\r\n\r\n")
        self._transport.write(ANSWER * len(requests))


def serve(port: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def cost(use: Use, at_once: int, calls: int) -> float:
    """Return the CPU time of one call in seconds."""

    async def several() -> None:
        for _ in range(calls // at_once):
            await use()

    began = time.process_time()
    await asyncio.gather(*(several() for _ in range(at_once)))
    return (time.process_time() - began) / calls


async def report(url: str, rounds: int, calls: int) -> None:
    async with aiohttp.ClientSession() as http, Session(KEY, url, limit=10**7) as session:

        async def bare() -> Sources:
            async with http.get(f"{url}/sources", headers={"x-api-key": KEY}) as response:
                response.raise_for_status()
                return msgspec.json.decode(await response.read(), type=Sources)

        async def raw() -> Sources:
            return (await session.request("GET", "/sources")).json(Sources)

        clients: dict[str, Use] = {
            "aiohttp and msgspec": bare,
            "companies.sources": session.companies.sources,
            "session.request": raw,
        }
        print("| calls at once |", " | ".join(f"{name}, µs | ratio" for name in clients), "|")
        print("|---" * (1 + 2 * len(clients)), "|", sep="")
        for at_once in (1, 50):
            costs: dict[str, list[float]] = {name: [] for name in clients}
            for _ in range(rounds + 1):
                for name, use in clients.items():
                    costs[name].append(await cost(use, at_once, calls))
            cells = [f"{at_once}"]
            theirs, *_ = each_round = [costs[name][1:] for name in clients]  # the first round warms up
            for ours in each_round:
                ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                cells += [f"{1e6 * statistics.median(ours):.0f}", f"{ratio:.2f}"]
            print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=500, help="calls in a round")
    asked = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    port, theirs = processes.Pipe()
    server = processes.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        asyncio.run(report(f"http://127.0.0.1:{port.recv()}", asked.rounds, asked.calls))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
