"""The seam to the network, for a transport of your own: `Session(transport=...)`.

    class Recorded:
        @asynccontextmanager
        async def exchange(self, method, url, *, headers, body, timeouts):
            yield answer                       # has `status`, `headers` and `chunks()`; raise `Lost` for none

        async def aclose(self): ...

It sends one request once: no redirect, no repetition. The API key is in `headers`, only for the API's own host.
"""

from asyncmig._io.transport import AiohttpTransport, Answer, Body, Lost, Timeouts, Transport

__all__ = ["AiohttpTransport", "Answer", "Body", "Lost", "Timeouts", "Transport"]
