"""The interface to the network, for a transport of your own: `Session(transport=...)`.

A transport sends one request once. It follows no redirect and repeats nothing. The API key is in `headers`, and
only for the host of the API. This one records what it sends:

```python
from contextlib import asynccontextmanager

from asyncmig.transport import AiohttpTransport


class Recorder:
    def __init__(self):
        self.inner, self.sent = AiohttpTransport(), []

    @asynccontextmanager
    async def exchange(self, method, url, *, headers, body, timeouts):
        self.sent.append((method, url))
        async with self.inner.exchange(method, url, headers=headers, body=body, timeouts=timeouts) as answer:
            yield answer  # has `status`, `headers` and `chunks()`

    async def aclose(self):
        await self.inner.aclose()


async with asyncmig.Session(transport=Recorder()) as session:
    await session.companies.sources()
```

Raise `Lost` if no response came, or not all of it; `sent=False` says that the request cannot have arrived.
"""

from asyncmig._io.transport import AiohttpTransport, Body, Lost, Response, Timeouts, Transport

__all__ = ["AiohttpTransport", "Body", "Lost", "Response", "Timeouts", "Transport"]
