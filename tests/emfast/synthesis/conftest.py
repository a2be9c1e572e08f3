"""A denoiser and a finished set for tests that only look at sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from tests.bundles import write_denoiser_bundle

JOB = Job(count=11, seed=7, steps=6, size=(32, 48), batch=4, pairs=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A denoiser of a few nodes."""
    bundle = write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser")
    return Generator.open(bundle, "onnxruntime-cpu", threads=1)


@pytest.fixture(scope="session")
def finished(tiny: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 11 pairs, not to be changed."""
    folder = tmp_path_factory.mktemp("sets") / "finished"
    run_job(JOB, tiny, folder)
    return folder
