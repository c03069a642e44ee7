"""Upload and download of one large file, compared with bare aiohttp: python benchmarks/transfer.py [--mib 1024]

A server in a separate process (bare aiohttp, loopback) sends generated CSV and discards uploads. Each transfer runs
in a new process, after a small transfer as a warm-up. asyncmig and its peers take turns. The peer is written by hand
with bare aiohttp: it uses chunks of 256 KiB, the same files and the same fsync. During an upload it hashes the
content, as asyncmig does for the journal; "no hash" omits this. During a download it counts line ends, because a
client must count to notice a truncated file (asyncmig counts records); "no count" omits this. `--rounds` sets the
number of rounds.

Throughput is the median over the rounds, and the ratio compares it with the peer. CPU is that of the client process.
Growth is the increase of its resident memory from before the transfer to its peak (Linux). Lag is the delay of a
timer of 5 ms: the 99th percentile and the maximum.
"""

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypedDict

import aiohttp
from aiohttp import web

from asyncmig import Session
from asyncmig.companies import Sheet

KEY = "a-key-for-the-benchmark"
CHUNK = 256 * 1024
MIB = 1024 * 1024
WARM = 8 * MIB
HEADER = b"Id,Email,First Name,Last Name,Notes\r\n"
LIMIT_OF_GROWTH, GOAL = 60.0, 0.9


class Measured(TypedDict):
    seconds: float
    growth: float
    cpu: float
    lag: float
    worst: float


def block(quoted: bool) -> bytes:
    """Return about 1 MiB of records. With `quoted`, all cells are in quotes and some contain line ends."""
    lines = [
        f'"{n}","p{n}@example.org","Ada","Lovelace {n}","said ""hello""{chr(10) if n % 10 == 0 else " "}again"\r\n'
        if quoted
        else f"{n},p{n}@example.org,Ada,Lovelace {n},said hello again and again\r\n"
        for n in range(16_000)
    ]
    return "".join(lines).encode()


# The server


async def serve(quoted: bool) -> None:
    records = block(quoted)

    async def download(request: web.Request) -> web.StreamResponse:
        size = int(request.match_info["company"])
        response = web.StreamResponse(headers={"Content-Type": "text/csv"})
        whole, left = divmod(size - len(HEADER), len(records))
        cut = records.rfind(b"\r\n", 0, left) + 2 if left > 1 else 0
        response.content_length = len(HEADER) + whole * len(records) + cut
        await response.prepare(request)
        await response.write(HEADER)
        view = memoryview(records)
        for each in [view] * whole + [view[:cut]]:
            for start in range(0, len(each), CHUNK):
                await response.write(each[start : start + CHUNK])
        return response

    async def ask(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(
            {"upload_url": f"http://{request.host}/bytes", "upload_ref": "r"}, status=201
        )

    async def sink(request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return web.Response(status=200 if size == request.content_length else 400)

    app = web.Application()
    app.router.add_get("/api/v1/companies/{company}/export.csv", download)
    app.router.add_post("/api/v1/companies/{company}/uploads", ask)
    app.router.add_put("/bytes", sink)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent process ends


# The clients. The id of a company is the size of its only sheet.


async def ours_down(url: str, size: int, folder: Path) -> None:
    async with Session(KEY, url) as session:
        company = session.companies.open(str(size), sheets=[Sheet(id="s", name="Sheet")])
        await company.download(to=folder)


async def ours_up(url: str, size: int, folder: Path) -> None:
    async with Session(KEY, url) as session:
        await session.companies.open(str(size)).upload(folder / f"{size}.csv")


async def bare_down(url: str, size: int, folder: Path, *, counts: bool = True) -> None:
    rows = 0
    async with aiohttp.ClientSession() as http:
        query = {"sheet_id": "s", "filter": "valid"}
        async with http.get(
            f"{url}/companies/{size}/export.csv", params=query, headers={"x-api-key": KEY}
        ) as answer:
            answer.raise_for_status()
            part = folder / "Sheet.csv.part"
            with part.open("wb") as file:
                async for chunk in answer.content.iter_chunked(CHUNK):
                    if counts:
                        rows += chunk.count(b"\n")
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / "Sheet.csv")


async def bare_up(url: str, size: int, folder: Path, *, hashes: bool = True) -> None:
    path, digest = folder / f"{size}.csv", hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if hashes:
                    digest.update(chunk)
                yield chunk

    async with aiohttp.ClientSession() as http:
        asked = {"name": path.name, "content_type": "text/csv", "size": path.stat().st_size}
        async with http.post(
            f"{url}/companies/{size}/uploads", json=asked, headers={"x-api-key": KEY}
        ) as answer:
            target = await answer.json()
        headers = {"Content-Type": "text/csv", "Content-Length": str(asked["size"])}
        async with http.put(target["upload_url"], data=chunks(), headers=headers) as answer:
            answer.raise_for_status()


CLIENTS = {
    "bare up": bare_up,
    "ours up": ours_up,
    "no hash up": partial(bare_up, hashes=False),
    "bare down": bare_down,
    "ours down": ours_down,
    "no count down": partial(bare_down, counts=False),
}


def resident_now() -> float:
    """Return `VmRSS`, and reset the peak to it."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> float:
    """Return `VmRSS` (now) or `VmHWM` (the peak) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


async def late(lags: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        lags.append(loop.time() - due)


async def transfer(name: str, url: str, size: int, folder: Path) -> Measured:
    client = CLIENTS[name]
    await client(url, WARM, folder)
    before = resident_now()
    lags: list[float] = []
    watcher = asyncio.create_task(late(lags))
    began, busy = time.perf_counter(), time.process_time()
    await client(url, size, folder)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    watcher.cancel()
    lags.sort()
    return Measured(
        seconds=seconds,
        cpu=cpu,
        growth=resident("VmHWM") - before,
        lag=lags[int(len(lags) * 0.99)] * 1000 if lags else 0.0,
        worst=max(lags, default=0.0) * 1000,
    )


# The comparison


def run(name: str, url: str, size: int, folder: Path) -> Measured:
    line = [
        sys.executable,
        __file__,
        "--client",
        name,
        "--url",
        url,
        "--bytes",
        str(size),
        "--dir",
        str(folder),
    ]
    measured: Measured = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
    return measured


def write_csv(path: Path, size: int, records: bytes) -> None:
    with path.open("wb") as file:
        file.write(HEADER)
        while file.tell() < size:
            file.write(records[: size - file.tell()])


def compare(size: int, rounds: int, quoted: bool, folder: Path) -> bool:
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", *["--quoted"] * quoted],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/api/v1"
    for each in (WARM, size):
        write_csv(folder / f"{each}.csv", each, block(quoted))
    results: dict[str, list[Measured]] = {name: [] for name in CLIENTS}
    try:
        for _ in range(rounds):
            for name, measured in results.items():
                measured.append(run(name, url, size, folder))
    finally:
        server.communicate()
    for name, measured in results.items():
        show(name, size, measured, results["bare up" if name.endswith("up") else "bare down"])
    return all(
        ratio(results[f"ours {way}"], results[f"bare {way}"]) >= GOAL
        and max(each["growth"] for each in results[f"ours {way}"]) < LIMIT_OF_GROWTH
        for way in ("up", "down")
    )


def ratio(ours: list[Measured], peer: list[Measured]) -> float:
    return median(each["seconds"] for each in peer) / median(each["seconds"] for each in ours)


def show(name: str, size: int, measured: list[Measured], peer: list[Measured]) -> None:
    print(
        f"| {name} | {size / MIB / median(each['seconds'] for each in measured):.0f} "
        f"| {ratio(measured, peer):.2f} | {median(each['cpu'] for each in measured):.2f} "
        f"| {max(each['growth'] for each in measured):.0f} "
        f"| {median(each['lag'] for each in measured):.1f} | {max(each['worst'] for each in measured):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="64 MiB, three rounds")
    parser.add_argument("--quoted", action="store_true", help="every cell in quotes, line ends in some")
    parser.add_argument(
        "--dir", type=Path, help="where the files go (default: the system's temporary folder)"
    )
    for name in ("--serve", "--client", "--url", "--bytes"):  # options of the child processes
        parser.add_argument(
            name, help=argparse.SUPPRESS, **({"action": "store_true"} if name == "--serve" else {})
        )
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(asked.quoted))
    elif asked.client:
        print(json.dumps(asyncio.run(transfer(asked.client, asked.url, int(asked.bytes), asked.dir))))
    else:
        mib, rounds = (64, 3) if asked.quick else (asked.mib, asked.rounds)
        print(f"{mib} MiB, median of {rounds} rounds\n")
        print("| client | MiB/s | ratio | CPU, s | growth, MiB | lag p99, ms | worst, ms |")
        print("|---|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory(dir=asked.dir) as folder:
            sys.exit(not compare(mib * MIB, rounds, asked.quoted, Path(folder)))


if __name__ == "__main__":
    main()
