"""A cache of engines for tests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from engines.cache import EngineCache


@pytest.fixture
def cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> EngineCache:
    """An empty cache, whose messages ``caplog`` shows."""
    caplog.set_level(logging.INFO, "engines.cache")
    return EngineCache(tmp_path / "cache")
