"""Fixtures for the tests of a service that uses asyncmig. In your `conftest.py`:

    pytest_plugins = ["asyncmig.pytest_plugin"]

It is no entry point on purpose: that would import asyncmig, and aiohttp with it, at every start of pytest in every
environment that has it, and before a coverage measurement begins.

    @pytest.mark.looptime                                          # a virtual clock: `pip install looptime`
    @pytest.mark.asyncmig_simulator(faults={"500-before": 0.1})    # the arguments of `asyncmig.testing.Simulator`
    async def test_onboarding(asyncmig_simulator, asyncmig_session):
        async with asyncmig_session as session:
            await onboard(session, "acme-001")
        assert asyncmig_simulator.verdict().duplicate_companies == 0

The fixtures are plain functions, so that they go with pytest-asyncio, anyio's plugin, and `asyncio.run`. Without a
virtual clock, polls take the seconds that they take.
"""

import pytest

from asyncmig.session import Session
from asyncmig.testing import Simulator

__all__ = ["asyncmig_session", "asyncmig_simulator", "pytest_configure"]

_MARKER = "asyncmig_simulator"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", f"{_MARKER}(**options): how the simulated Migration API behaves.")


@pytest.fixture
def asyncmig_simulator(request: pytest.FixtureRequest) -> Simulator:
    """An account of a simulated Migration API, made with the options of the markers; the closest marker wins."""
    markers = list(reversed(list(request.node.iter_markers(_MARKER))))
    for marker in markers:
        if marker.args:
            raise pytest.UsageError(
                f"{_MARKER}{marker.args}: give the options by name, as in {_MARKER}(seed=7)"
            )
    return Simulator(**{name: value for marker in markers for name, value in marker.kwargs.items()})


@pytest.fixture
def asyncmig_session(asyncmig_simulator: Simulator) -> Session:
    """A session with `asyncmig_simulator`, in process; enter it: `async with asyncmig_session as session:`."""
    return asyncmig_simulator.session()
