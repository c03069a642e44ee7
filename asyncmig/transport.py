"""The interface to the network, for a transport of your own: `Session(transport=...)`.

A transport sends each request once. It must not follow redirects, and must not repeat a request. `headers` contain
the API key only if the request goes to the host of the API. This transport records what it sends:

```python
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from asyncmig.transport import AiohttpTransport, Body, Response, Timeouts


class Recorder:
    def __init__(self) -> None:
        self.inner = AiohttpTransport()
        self.sent: list[str] = []

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncGenerator[Response]:
        self.sent.append(f"{method} {url}")
        async with self.inner.exchange(method, url, headers=headers, body=body, timeouts=timeouts) as response:
            yield response  # has `status`, `headers` and `chunks()`

    async def aclose(self) -> None:
        await self.inner.aclose()


async with asyncmig.Session(transport=Recorder()) as session:
    await session.companies.sources()
```

Raise `Lost` if no complete response arrives; with `sent=False` if the request cannot have arrived.
"""

from asyncmig._io.aiohttp_transport import AiohttpTransport
from asyncmig._io.transport import Body, Lost, Response, Timeouts, Transport

__all__ = ["AiohttpTransport", "Body", "Lost", "Response", "Timeouts", "Transport"]
