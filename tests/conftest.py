"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.gpu import NoGpuError, gpus

if TYPE_CHECKING:
    from tests.fake_gpu import FakeGpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the reason."""
    try:
        gpus()
    except NoGpuError as error:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {error}"))


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C reaches this process and those it starts: jobs in a shell's background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(autouse=True)
def _own_engine_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests neither read nor fill the user's cache of engines."""
    monkeypatch.setenv("EMFAST_CACHE", str(tmp_path / "engine-cache"))


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A stand-in GPU with the real TensorRT-RTX: see tests/fake_gpu.py."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    from tests.fake_gpu import install

    return install(monkeypatch)
