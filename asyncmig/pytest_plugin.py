"""Pytest fixtures for the tests of a service that uses asyncmig.

Load the plugin in `conftest.py`:

```python
pytest_plugins = ["asyncmig.pytest_plugin"]
```

A test then gets a simulated account and a session, without a key and without a network:

```python
import pytest


@pytest.mark.asyncmig_simulator(seed=7, faults={"500-before": 0.2})
async def test_a_customer_is_set_up(asyncmig_simulator, asyncmig_session):
    async with asyncmig_session as session:
        source = (await session.companies.sources())[0]
        company = await session.companies.create(name="Acme", source=source.id, external_id="acme-001")
        run = await company.imports.start(rows=[{"Email": "ada@example.com", "Last Name": "Lovelace"}])
        assert (await run.wait()).report.inserted == 1
    assert asyncmig_simulator.verdict().duplicate_companies == 0
    assert asyncmig_simulator.ledger.over_the_limit == 0
```

The marker takes the arguments of `asyncmig.testing.Simulator`: `api` (the generation, `"companies"` or
`"migrations"`), `customers` (`Parks(...)` or `Fails(...)` by external id), `faults`, `variants` (behaviour that the
API's contract does not define), `pace`, `limit`, `seed` and others. If several markers set an option, the closest one
applies. With `api="migrations"`, annotate the fixture as `Simulator[asyncmig.simulator.migrations.World]`.

The fixtures are synchronous functions, so they work with pytest-asyncio, anyio's plugin and `asyncio.run`.
Without a virtual clock, a customer takes about half a second. The guide shows the tests of a FastAPI service.

The plugin is not registered as an entry point. Otherwise pytest would import asyncmig and aiohttp at every start in
each environment that has them, before the measurement of coverage begins.
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
    """A simulated account with the options of the markers. The closest marker takes precedence."""
    markers = list(reversed(list(request.node.iter_markers(_MARKER))))
    for marker in markers:
        if marker.args:
            raise pytest.UsageError(
                f"{_MARKER}{marker.args}: give the options by name, as in {_MARKER}(seed=7)"
            )
    return Simulator(**{name: value for marker in markers for name, value in marker.kwargs.items()})


@pytest.fixture
def asyncmig_session(asyncmig_simulator: Simulator) -> Session:
    """A session with `asyncmig_simulator`. Use it as `async with asyncmig_session as session:`."""
    return asyncmig_simulator.session()
