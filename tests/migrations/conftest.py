"""Fixtures: a scripted account, and sessions with it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import pytest

from asyncmig import Session
from asyncmig.migrations.migration import Migration

from .server import BASE_URL, Account

KEY = "key-that-nobody-may-see"
OpenMigration = Callable[..., AbstractAsyncContextManager[Migration]]


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def open_migration(account: Account) -> OpenMigration:
    """Return a function that opens a session with a new migration; without hourly limits, unless a test sets them."""

    @asynccontextmanager
    async def migration(limits: str = "per-endpoint", **options: object) -> AsyncIterator[Migration]:
        async with Session(
            KEY,
            BASE_URL,
            transport=account,
            rng=Random(3),
            limits=limits,
            **options,  # type: ignore[arg-type]
        ) as session:
            yield await session.migrations.create(name="Acme", source="HubSpot", external_id="acme")

    return migration
