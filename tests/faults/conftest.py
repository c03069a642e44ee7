"""Fixtures for the tests of faults."""

import os

import pytest


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `os.fsync` with a function that does nothing. No test simulates a loss of power, and waits are slow."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
