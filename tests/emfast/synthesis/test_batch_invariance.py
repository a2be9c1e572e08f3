"""The shipped denoiser gives an image the same bits in every batch and on any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emfast.diffusion.noise import normal_noise
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import BATCH_INVARIANT, Job, run_job
from emfast.synthesis.shard import Shard
from engines.bundle import open_bundle
from engines.onnxruntime import OnnxRuntimeEngine
from tests.sets import contents


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_evaluation(precision: str) -> None:
    bundle = open_bundle("epfl-denoiser")
    x = normal_noise(0, range(8), 350, (2, 256, 256)).astype(bundle.manifest.inputs[0].dtype)
    results = []
    for threads, batches in ((2, (8, 3, 1)), (1, (8,))):
        graph = bundle.graph(precision)
        with OnnxRuntimeEngine(graph, BATCH_INVARIANT[0], precision, threads) as engine:
            for batch in batches:
                parts = [
                    {"x": part, "timestep": np.full(len(part), 350, dtype=np.float32)}
                    for part in (x[i : i + batch] for i in range(0, 8, batch))
                ]
                results.append(np.concatenate([engine.run(p)["prediction"] for p in parts]))
    assert np.abs(results[0].astype(np.float32)).mean() > 0.1
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_set(tmp_path: Path) -> None:
    def draw(name: str, batch: int, threads: int, *shards: Shard) -> dict[str, bytes]:
        job = Job(count=8, seed=0, steps=3, size=(64, 64), batch=batch, pairs=False)
        with Generator.open("epfl-denoiser", BATCH_INVARIANT[0], "fp32", threads) as generator:
            for shard in shards:
                run_job(job, generator, tmp_path / name, shard)
        return contents(tmp_path / name)

    expected = draw("8", 8, 2, Shard())
    assert len(expected) == 16 + 5  # images and masks; job, manifest, metadata, contact sheet, card
    assert draw("3", 3, 1, Shard()) == expected
    assert draw("1", 1, 2, Shard()) == expected
    assert draw("shards", 2, 2, Shard(3, 3), Shard(1, 3), Shard(2, 3)) == expected
