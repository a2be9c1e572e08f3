"""The loop on a real GPU: its noise, its images, and what it costs beside the network."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from emfast.diffusion.device_sampling import DeviceLoop
from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import SAMPLERS, Sampler
from emfast.synthesis.batch import Trial, fastest_batch
from emfast.synthesis.denoiser import Generator
from engines.engine import EngineUnavailableError

pytestmark = pytest.mark.gpu
ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
SHAPE = (2, 256, 256)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here: TensorRT takes minutes for an engine."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMFAST_CACHE", str(cache))


def open_here(engine: str, batch: int, precision: str = "fp16") -> Generator:
    try:
        return Generator.open("epfl-denoiser", engine, precision, batch=batch)
    except EngineUnavailableError as error:
        pytest.skip(str(error))


def loop_of(generator: Generator, batch: int) -> DeviceLoop:
    place = generator.prepare(batch)
    assert place.name == "device", place
    loop = generator._loop
    assert loop is not None
    return loop


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_is_that_of_the_cpu(engine: str) -> None:
    """A sampler without steps leaves the noise that sampling starts from."""
    indices = [0, 5, 2**64 - 1, 7]
    with open_here(engine, 4) as generator:
        schedule = generator.spec.schedule
        loop = loop_of(generator, 4)
        for seed in (0, 2**64 - 1):
            noise = loop.sample(Sampler(schedule, [], None), seed, indices)
            expected = normal_noise(seed, indices, schedule.steps, SHAPE)
            np.testing.assert_allclose(noise, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_are_those_of_the_host(engine: str, sampler: str) -> None:
    eta = 0.5 if sampler == "ddim" else 0.0
    with open_here(engine, 2, "fp32") as generator:
        loop_of(generator, 2)
        images, masks = generator.draw([3, 8], 1, 20, sampler=sampler, eta=eta)
        again, _ = generator.draw([3, 8], 1, 20, sampler=sampler, eta=eta)
    with Generator.open("epfl-denoiser", "onnxruntime-cpu", "fp32") as generator:
        expected, wanted = generator.draw([3, 8], 1, 20, sampler=sampler, eta=eta)
    np.testing.assert_array_equal(images, again)
    error = np.mean((images.astype(np.float64) - expected) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-12)) > 40
    assert ((masks > 0) != (wanted > 0)).mean() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loop_costs_little_beside_the_network(engine: str) -> None:
    batch, steps = 64, 100
    with open_here(engine, batch) as generator:
        loop = loop_of(generator, batch)
        sampler = generator.spec.sampler(steps)
        loop.sample(sampler, 0, range(batch))  # sets up and captures
        network, whole = [], []
        for _ in range(5):  # in turn: clocks drift
            network.append(loop.network_seconds(steps))
            start = time.perf_counter()
            loop.sample(sampler, 0, range(batch))
            whole.append(time.perf_counter() - start)
        assert not loop.refusal
    assert 1 - min(network) / min(whole) < 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_is_chosen(engine: str) -> None:
    trials: list[Trial] = []
    with open_here(engine, 8) as generator:
        best = fastest_batch(generator, (256, 256), 8, trials.append)
    assert best in (1, 2, 4, 8)
    assert all(trial.seconds is not None for trial in trials)
