from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from emfast.channels import decode
from emfast.diffusion.sampling import sample
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import schema
from engines.engine import Array
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.sets import contents

pytest.importorskip("openvino", reason="needs the extra openvino")
JOB = Job(count=6, seed=7, steps=10, size=(32, 48), batch=4, pairs=False, reuse=3)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    bundle = write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser")
    return Generator.open(bundle, "openvino", threads=1)


@pytest.mark.parametrize("interval", [1, 2, 3, 50])
def test_features_are_computed_in_every_so_many_steps(generator: Generator, interval: int) -> None:
    """The features of this denoiser are its prediction, so that reuse repeats it."""
    predictions: list[Array] = []

    def denoise(x: np.ndarray, timestep: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        step = len(predictions)
        if step % interval == 0:
            inputs = {"x": x, "timestep": timestep}
            predictions.append(generator.engine.run(inputs)["prediction"])
        else:
            predictions.append(predictions[-1])
        return predictions[-1].astype(np.float32)  # the loop overwrites it

    spec = generator.spec
    drawn = sample(denoise, spec.sampler(10), 7, range(4), (2, 32, 48))
    expected = decode(spec.channels, drawn)
    got = generator.draw(range(4), seed=7, steps=10, reuse=interval)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    if interval > 1:
        plain, _ = generator.draw(range(4), seed=7, steps=10)
        assert (got[0] != plain).any()


def test_it_is_recorded_and_settled(generator: Generator, tmp_path: Path) -> None:
    run_job(JOB, generator, tmp_path / "set")
    record = json.loads((tmp_path / "set/job.json").read_text())
    lines = (tmp_path / "set/manifest.jsonl").read_text().splitlines()
    metadata = json.loads((tmp_path / "set/metadata.jsonl").read_text().splitlines()[0])
    for place in (record, metadata, *map(json.loads, lines)):
        assert place["reuse"] == 3
    for line in lines:
        Draft202012Validator(schema()).validate(json.loads(line))
    card = " ".join((tmp_path / "set/README.md").read_text().split())
    assert "--sampler ddpm --steps 10 --reuse 3" in card
    assert "10 steps, deep features kept for 3" in card
    with pytest.raises(UserError, match="reuse was 3, is not given"):
        run_job(replace(JOB, reuse=1), generator, tmp_path / "set")


def test_a_set_without_it_is_as_ever(generator: Generator, tmp_path: Path) -> None:
    run_job(replace(JOB, reuse=1), generator, tmp_path / "set")
    assert "reuse" not in (tmp_path / "set/job.json").read_text()
    assert "reuse" not in (tmp_path / "set/manifest.jsonl").read_text()


def test_a_set_that_grows_has_the_bytes_of_one_that_was_drawn_at_once(
    generator: Generator, tmp_path: Path
) -> None:
    run_job(replace(JOB, count=3), generator, tmp_path / "grown")
    run_job(JOB, generator, tmp_path / "grown")
    run_job(JOB, generator, tmp_path / "whole")
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("engine", "features", "interval", "message"),
    [
        ("onnxruntime-cpu", "deep_features", 3, "onnxruntime-cpu runs a graph in one piece; give"),
        ("openvino", "mean", 3, "holds no tensor 'deep_features'; export the denoiser again"),
        ("openvino", "deep_features", 0, "--reuse 0: must be at least 1"),
    ],
)
def test_where_it_cannot_be(
    tmp_path: Path, engine: str, features: str, interval: int, message: str
) -> None:
    bundle = write_denoiser_bundle(tmp_path / "denoiser", features=features)
    with Generator.open(bundle, engine, threads=1) as generator:
        with pytest.raises(UserError, match=message):
            run_job(replace(JOB, reuse=interval), generator, tmp_path / "set")
        assert not (tmp_path / "set").exists()
