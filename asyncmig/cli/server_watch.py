"""What responses say about the key and the server: a refused key, or a server of another API generation."""

import asyncio
from collections.abc import Mapping
from typing import final

from asyncmig import generations
from asyncmig.cli.interrupts import Interrupts
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import AsyncmigError, InvalidInput
from asyncmig.events import Event, RequestDone
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal
from asyncmig.session import Session

__all__ = ["ServerWatch", "check_generation"]


@final
class ServerWatch:
    """Records whether the API key was refused, and ends the run if the server speaks another API generation.

    The first 404 of a request that creates a customer is the reason to find out.
    """

    __slots__ = ("_api", "_asking", "_creation", "_interrupts", "_session", "key_refused")

    def __init__(self, session: Session, api: str, interrupts: Interrupts) -> None:
        self._session, self._api, self._interrupts = session, api, interrupts
        self._creation = next(iter(generations.find(api).requests_before_run), None)
        self._asking: asyncio.Task[str | None] | None = None
        self.key_refused: bool = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, RequestDone) or event.is_external:
            return
        if event.status == 401:
            self.key_refused = True
        if event.status == 404 and event.endpoint == self._creation and self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="asyncmig generation")

    async def _ask(self) -> str | None:
        other = await _spoken_instead(self._session, self._api)
        if other is not None:
            self._interrupts.stop(_wrong(self._api, other).reason)
        return other

    async def check(self, journal: DatabaseJournal | None, before: Mapping[str, CustomerRecord]) -> None:
        """Raise `InvalidInput` if the server speaks another API generation.

        Then the journal forgets the customers that it did not have `before`: the server has nothing of them.
        """
        other = None if self._asking is None else await self._asking
        if other is None:
            return
        if journal is not None:
            records = await read_records(journal)
            for external_id, record in records.items():
                if external_id not in before and not record.ids:
                    await journal.forget(external_id)
        raise _wrong(self._api, other)


async def check_generation(session: Session, api: str) -> None:
    """Raise `InvalidInput` if the server speaks another API generation than `api`, and that can be told."""
    if (other := await _spoken_instead(session, api)) is not None:
        raise _wrong(api, other)


def _wrong(api: str, other: str) -> InvalidInput:
    return InvalidInput("api", api, f"the server speaks the API generation {other!r}: add --api {other}")


async def _spoken_instead(session: Session, api: str) -> str | None:
    """Return the API generation that the server speaks instead of `api`; None if it may be `api`."""
    if (probe := generations.find(api).probe) is None:
        return None
    method, _, template = probe.partition(" ")
    try:
        listed: object = (await session.request(method, template)).json()
    except AsyncmigError:
        return None
    return generations.spoken_instead(api, listed)
