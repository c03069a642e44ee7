"""What tests of trouble share."""

import os

import pytest


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: no machine loses its power here, and there is much to write."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
