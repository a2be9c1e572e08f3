"""One Ray cluster of two CPUs for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emfast.cluster import connection
from emfast.cluster.connection import Cluster, connected
from tests.bundles import write_denoiser_bundle


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "cpu_count", lambda: 2)
        with connected("local") as cluster:
            yield cluster


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser")
