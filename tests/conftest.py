"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def epfl() -> Path:
    """The folder of the real EPFL stack, which holds ``training/``."""
    folder = os.environ.get("EMFAST_EPFL")
    if not folder:
        pytest.skip("EMFAST_EPFL does not name the folder of the EPFL stack")
    return Path(folder)


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subprocesses that tests start do not fight over the cores by spinning."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
