"""The base of imports and destination exports: a run that is polled until it ends."""

from collections.abc import AsyncIterator, Hashable
from typing import ClassVar, Generic, TypeVar

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.lifecycle import Lifecycle, Phase
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, SecondChannel, Watch
from asyncmig.companies.wire import RunState
from asyncmig.errors import InvalidInput, RunCanceled, RunFailed

__all__ = ["Run"]

_OF_UNKNOWN_AGE = "of unknown age"
"""The poll group of runs whose start is unknown. Their durations say nothing about other runs."""


StateT = TypeVar("StateT", bound=RunState)


class Run(Generic[StateT]):
    """The handle of a run of a company."""

    ENDPOINT: ClassVar[Endpoint]
    LIFECYCLE: ClassVar[Lifecycle]

    __slots__ = ("_began", "_context", "_kind", "_watch", "company_id", "id")

    def __init__(
        self,
        context: SessionContext,
        kind: type[StateT],
        company_id: str,
        run_id: str,
        *,
        age: float | None,
        group: Hashable = None,
        second: SecondChannel[StateT] | None = None,
        status: str = "",
    ) -> None:
        """`age`: seconds since the run started; None if unknown. `group`: runs with about the same duration.

        `status`: the status in the reply that named the run. If the run has ended or is parked, it is read at once.
        """
        if self.LIFECYCLE.phase(status) is not Phase.ACTIVE:
            age = None
        self._context, self._kind = context, kind
        self.company_id: str = company_id
        self.id: str = run_id
        self._began = age is not None
        """Whether the start of the run is known."""
        self._watch: Watch[StateT] = context.poller.watch(
            (self.ENDPOINT.key, company_id, run_id),
            gate=context.gate(self.ENDPOINT),
            read=self._read,
            lifecycle=self.LIFECYCLE,
            started=context.poller.now() - (age or 0.0),
            group=group if self._began else _OF_UNKNOWN_AGE,
            second=second,
            ids=self._ids(),
            event_ids=self._event_ids,
        )
        self._watch.announced(status)

    def __repr__(self) -> str:
        status = self.state.status if self.state else "not read yet"
        return f"<{type(self).__name__} {self.id} of company {self.company_id}: {status}>"

    @property
    def state(self) -> StateT | None:
        """The last reading; None before the first one."""
        latest = self._watch.latest
        return latest.value if latest else None

    async def wait(self, *, through_parks: bool = False) -> StateT:
        """Wait until the run completes or parks, and return that reading.

        ```python
        async with asyncio.timeout(7200):
            done = await run.wait()
        ```

        `through_parks=True` also waits while the run is parked, until another process decides it. Any number of
        tasks may wait: they share the polls. For a deadline, use `asyncio.timeout`. Raises `RunFailed` or
        `RunCanceled` if the run ended so, and the same errors as `updates`.
        """
        self._check_id()
        while True:
            state = (await self._watch.wait(through_parks=through_parks)).value
            if state.status == "failed":
                raise RunFailed(self.id, state.error or "")
            if state.status == "canceled":
                raise RunCanceled(self.id, state.error or "canceled")
            if not self._is_outdated(state):
                return state
            await self.read()

    def _is_outdated(self, state: StateT) -> bool:
        """Return whether a reading shows a parked run whose questions were already decided."""
        return False

    async def updates(self) -> AsyncIterator[StateT]:
        """Yield each change of status or progress text once, until the run has ended.

        ```python
        async for state in run.updates():
            print(state.status, state.progress_message)
        ```

        Raises `AuthError`, `SessionClosed`, and `NotFound` for a run that the server has not known for 30 s.
        """
        self._check_id()
        async for reading in self._watch.updates():
            yield reading.value

    async def read(self) -> StateT:
        """Read the run as soon as its poll interval allows. Tasks that wait at the same time share one reading.

        ```python
        state = await run.read()
        ```

        The interval grows from 2 s for a new run to 30 s for an old one. Raises the same errors as `updates`.
        """
        self._check_id()
        return (await self._watch.refresh()).value

    async def _read(self, slot: Slot) -> Reading[StateT]:
        call = Call(endpoint=self.ENDPOINT, ids=self._ids())
        state = await self._context.caller.send_once(call, self._kind, slot)
        reading = Reading(status=state.status, progress=state.progress_message, value=state)
        self._watch.report(reading, began=self._began)
        return reading

    def _check_id(self) -> None:
        if not self.id:
            raise InvalidInput("run_id", "", "is unknown: the server did not say which run it is")

    def _event_ids(self) -> dict[str, str]:
        return {"company": self.company_id, "run": self.id}

    def _ids(self) -> dict[str, str]:
        return {"id": self.company_id, "run_id": self.id}
