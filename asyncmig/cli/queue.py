"""`asyncmig run --queue`: workers elsewhere do it; this process submits, follows and reports."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from asyncmig.companies.outcome import Outcome
from asyncmig.companies.spec import Spec
from asyncmig.distributed._servers import parse_server
from asyncmig.errors import InvalidInput

if TYPE_CHECKING:
    from asyncmig.distributed.saq import Asked

__all__ = ["follow", "queue_url"]

_LOOK_UP = 0.5


def queue_url(given: str) -> str:
    """Return the URL that `--queue` names: itself, or an environment variable that holds it.

    Raises `InvalidInput`, which shows no secret, for what is neither, and for a URL with a password: everybody on the
    machine could read it on the command line.
    """
    if url := os.environ.get(given):
        parse_server(given, url)
        return url
    if "://" not in given and "=" not in given:
        raise InvalidInput("queue", given, "is neither a URL nor an environment variable that holds one")
    if parse_server("queue", given).has_secret:
        why = "has a password: put it into an environment variable such as ASYNCMIG_QUEUE, and give that name"
        raise InvalidInput("queue", "***", why)
    return given


async def follow(
    url: str, specs: Sequence[Spec], asked: "Asked", is_over: Callable[[], bool]
) -> AsyncIterator[Outcome]:
    """Submit all of `specs`, and yield each outcome as it comes, until `is_over`. The jobs go on without it.

    What is not `asked` is as the workers do it.
    Files are named by absolute paths, which have to mean the same to the workers.
    """
    from asyncmig.distributed.saq import MigrationQueue  # only who queues needs the extra

    async with MigrationQueue(url) as queue:
        outcomes = queue.run([_absolute(spec) for spec in specs], **asked)
        coming = asyncio.ensure_future(anext(outcomes, None))
        try:
            while not is_over():
                await asyncio.wait([coming], timeout=_LOOK_UP)
                if not coming.done():
                    continue
                outcome = coming.result()
                if outcome is None:
                    return
                yield outcome
                coming = asyncio.ensure_future(anext(outcomes, None))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


def _absolute(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, files=tuple(path.absolute() for path in spec.files))
