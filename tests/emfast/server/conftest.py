from __future__ import annotations

from collections.abc import Iterator

import pytest

from emfast.segmentation.segmenter import Segmenter
from tests.emfast.server.serving import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that all tests share that leave it as it is; a request may hold a million pixels."""
    limits = ("--max-pixels", "1048576", "--max-bytes", "2000000", "--client-timeout", "2")
    options = (*limits, "--max-batch", "16")
    with serving(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.fixture(scope="session")
def segmenter() -> Iterator[Segmenter]:
    """The server's, alone."""
    with Segmenter.open(engine="onnxruntime-cpu", precision="fp32", threads=1) as opened:
        yield opened
