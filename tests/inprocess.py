"""The transport of `asyncmig.testing`, with faults that tests choose by path or by number of the request."""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

from asyncmig._io.transport import Timeouts
from asyncmig.simulator import Fault, Faults, Reply, Request, Served
from asyncmig.testing import Handle
from asyncmig.testing import InProcess as BaseInProcess

KEY = "key-that-nobody-may-see"
BASE_URL = BaseInProcess.BASE_URL
STORAGE_URL = BaseInProcess.STORAGE_URL


class InProcess(BaseInProcess):
    """Passes requests to a simulated world, with the faults that a test chooses."""

    def __init__(
        self,
        world: Served,
        *,
        latency: float = 0.1,
        rng: Random | None = None,
        fault: Callable[[str, str, int], Fault | None] = lambda method, path, number: None,
        faulty_endpoint: str = "",
        faults: Faults | None = None,
    ) -> None:
        """Create the transport.

        `fault` returns the fault of a request from its method, its path and its number. The n-th request to
        `faulty_endpoint` gets the fault `nth[n]`. `faults` applies to all other requests.
        """
        super().__init__(world, latency=latency, rng=rng, faults=faults)
        self.faulty_endpoint, self.nth, self.faults_met = faulty_endpoint, dict[int, Fault](), 0
        self.fault = fault
        self.disconnected = False
        self.requests: Counter[str] = Counter()
        self._numbers: Counter[tuple[str, str]] = Counter()

    def pick(self, request: Request, now: float) -> Fault:
        endpoint = self.world.endpoint_of(request)
        path = "/storage" if endpoint.endswith(" storage") else request.path
        self.requests[endpoint] += 1
        self._numbers[request.method, path] += 1
        if endpoint == self.faulty_endpoint and self.requests[endpoint] in self.nth:
            self.faults_met += 1
            return self.nth[self.requests[endpoint]]
        chosen = self.fault(request.method, path, self._numbers[request.method, path])
        return chosen or super().pick(request, now)

    async def arrive(self, handle: Handle, request: Request, fault: Fault, timeouts: Timeouts) -> Reply:
        if self.disconnected:
            await asyncio.Event().wait()  # the request does not arrive, and the client gets no error
        return await super().arrive(handle, request, fault, timeouts)
