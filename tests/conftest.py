"""What all tests share."""

import asyncio

import pytest

pytest_plugins = ["asyncmig.pytest_plugin", "pytester"]

# looptime asks the policy for the main thread's loop before each test. Python 3.11 makes one if none was ever set,
# nobody closes it, and the garbage collector's warning fails whichever test runs then. "None" counts as set.
asyncio.set_event_loop(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=200, help="how many random fleets to drive through faults")
    parser.addoption("--first-seed", type=int, default=0, help="the first of them")
    parser.addoption("--customers", type=int, default=10, help="of each of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed_of_faults" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-seed")
        metafunc.parametrize("seed_of_faults", range(first, first + metafunc.config.getoption("--seeds")))
