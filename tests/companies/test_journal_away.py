"""A journal that cannot be reached for a while: what the server answered meanwhile is not lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from asyncmig import Delivered, JournalError, MemoryJournal, Spec, migrate
from asyncmig.journal import ClaimPort, Event

from .conftest import Opens

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]


class AwayJournal:
    """A journal whose writes and releases fail while `is_away` says so."""

    def __init__(self, is_away: Callable[[str], bool]) -> None:
        self.inner, self.is_away = MemoryJournal(), is_away

    def check(self, kind: str) -> None:
        if self.is_away(kind):
            raise JournalError("postgresql://db/fleet", "connection refused")

    async def claim(self, external_id: str) -> "AwayClaim":
        self.check("claim")
        return AwayClaim(self, await self.inner.claim(external_id))

    async def states(self) -> dict[str, bytes]:
        return await self.inner.states()

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        return await self.inner.events(external_id, after=after, limit=limit)


class AwayClaim:
    def __init__(self, journal: AwayJournal, claim: ClaimPort) -> None:
        self._journal, self._claim = journal, claim
        self.external_id, self.token = claim.external_id, claim.token

    @property
    def state(self) -> bytes | None:
        return self._claim.state

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        self._journal.check(kind)
        await self._claim.write(kind, detail, state)

    async def release(self) -> None:
        await self._claim.release()
        self._journal.check("release")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()


async def test_an_outcome_stands_although_the_claim_cannot_be_released(
    opens: Opens, customer: Customer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = AwayJournal(lambda kind: kind == "release")
    async with opens() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
    assert isinstance(outcome, Delivered)
    assert "connection refused" in caplog.text
