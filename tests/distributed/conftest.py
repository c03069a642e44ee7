"""Servers, one of each for all tests of a process."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from servers import RedisServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def prefix() -> str:
    """Begins the names of one test."""
    return f"asyncmig-test-{uuid4().hex}"
