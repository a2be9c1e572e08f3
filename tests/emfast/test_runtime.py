"""From a bundle to a verified TensorRT engine in the cache, on the stand-in GPU.

Engines are built by the real TensorRT-RTX, on its ahead-of-time path; see tests/fake_gpu.py.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from emfast import Generator, Segmenter
from emfast.engine_files import build_engine, gpu_identity, keep, make_recipe
from emfast.runtime import denoiser_shapes, open_runtime, segmenter_shapes
from engines.bundle import Bundle, open_bundle
from engines.cache import EngineCache
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.plan import BuildOptions, Profile, Range
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

if TYPE_CHECKING:
    from tests.fake_gpu import FakeGpu

RTX = "tensorrt-rtx"
# Small, since the largest shape is verified too.
TILE = 512


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter_bundle(tmp_path / "segmenter"))


@pytest.fixture
def slices() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 64, 96), dtype=np.uint8)


def segment(bundle: Bundle, slices: np.ndarray, **options: object) -> tuple[np.ndarray, str]:
    """Masks, and the name of the engine that gave them."""
    with Segmenter.open(bundle.path, tile=TILE, **options) as segmenter:
        return segmenter.segment(slices), segmenter.info.engine


def store_ahead(bundle: Bundle, profile: Profile | None = None) -> EngineCache:
    """A cache with an engine that was built without a GPU."""
    cache = EngineCache()
    options = BuildOptions(targets=("sm86", "sm120"))
    built = profile or segmenter_shapes(bundle.manifest, TILE).built
    recipe = make_recipe(bundle, "fp32", RTX, built, options, None)
    keep(cache, build_engine(bundle, recipe, None))
    return cache


def test_the_first_run_builds_and_later_ones_do_not(
    fake_gpu: FakeGpu, bundle: Bundle, slices: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    masks, engine = segment(bundle, slices)
    assert engine == RTX
    assert fake_gpu.builds == 1
    assert (
        "building a TensorRT-RTX" in caplog.text
        and "verified on 1 of the sample slice" in caplog.text
    )
    np.testing.assert_array_equal(masks, segment(bundle, slices, engine="onnxruntime-cpu")[0])
    caplog.clear()
    again, _ = segment(bundle, slices)
    np.testing.assert_array_equal(again, masks)
    assert fake_gpu.builds == 1
    assert caplog.text.count("\n") == 1 and "from the cache" in caplog.text
    (entry,) = EngineCache().entries()
    (verification,) = entry.verifications
    assert verification.gpu == str(gpu_identity(RTX))
    assert {"Dice of the mask"} < {m["name"] for m in verification.measures}


def test_a_denoiser_draws_the_same_as_on_the_cpu(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    folder = write_denoiser_bundle(tmp_path / "denoiser")
    with Generator.open(folder, RTX, batch=3) as generator:
        images, masks = generator.draw(range(5), seed=1)
    with Generator.open(folder, "onnxruntime-cpu") as generator:
        expected, expected_masks = generator.draw(range(5), seed=1)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(masks, expected_masks)
    (entry,) = EngineCache().entries()
    assert entry.recipe.profile.batch == Range(1, 4, 4)
    names = {measure["name"] for measure in entry.verifications[0].measures}
    assert {"20 steps: PSNR of the image", "20 steps: Dice of the mask"} < names


@pytest.mark.parametrize("name", ["epfl-segmenter", "epfl-denoiser"])
def test_the_shipped_bundles_pass_in_fp16(
    fake_gpu: FakeGpu, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built for real; the numbers that are verified are those of the graph in onnxruntime."""
    monkeypatch.setattr("emfast.verification.ENGINE_STEPS", 3)
    bundle = open_bundle(name)
    shapes = (
        denoiser_shapes(1, (64, 64))
        if name == "epfl-denoiser"
        else segmenter_shapes(bundle.manifest, 256)
    )
    with open_runtime(bundle, shapes).engine as engine:
        assert (engine.info.engine, engine.info.precision) == (RTX, "fp16")
    (entry,) = EngineCache().entries()
    assert entry.recipe.graph == bundle.manifest.files["model-fp16.onnx"]
    assert entry.facts["layers"]["CONVOLUTION HALF"] > 10


@pytest.mark.parametrize("noise", [0.01, float("nan")])
def test_an_engine_that_differs_is_dropped_with_its_numbers(
    fake_gpu: FakeGpu, bundle: Bundle, slices: np.ndarray, noise: float
) -> None:
    fake_gpu.noise = noise
    with Segmenter.open(bundle.path, tile=TILE) as segmenter:
        assert segmenter.info.device.startswith("CPU")
        (reason,) = (line for line in segmenter.passed_over if line.startswith(RTX))
    number = "nan" if np.isnan(noise) else "0.0"
    assert "verification against onnxruntime-cpu" in reason
    assert f"maximum error {number}" in reason and "(at most 0.001)" in reason
    assert EngineCache().entries() == []
    with pytest.raises(EngineUnavailableError, match=r"engine tensorrt-rtx: verification against"):
        Segmenter.open(bundle.path, RTX, tile=TILE)


def test_an_engine_that_was_built_ahead_is_verified_on_first_use(
    fake_gpu: FakeGpu, bundle: Bundle, slices: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    cache = store_ahead(bundle)
    assert cache.entries()[0].verifications == ()
    assert fake_gpu.builds == 1
    assert segment(bundle, slices)[1] == RTX
    assert "was never verified on NVIDIA Stand-in" in caplog.text
    assert len(cache.entries()[0].verifications) == 1
    caplog.clear()
    segment(bundle, slices)
    assert "verif" not in caplog.text
    assert fake_gpu.builds == 1


def test_one_that_fails_there_is_removed_and_built_anew(
    fake_gpu: FakeGpu, bundle: Bundle, slices: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    cache = store_ahead(bundle)
    source = next(iter(fake_gpu.built.values()))
    other = open_bundle(write_segmenter_bundle(bundle.path.parent / "other", gain=1.0))
    for digest in fake_gpu.built:
        fake_gpu.built[digest] = replace(source, graph=other.graph("fp32"))
    assert segment(bundle, slices)[1] == RTX
    assert "was removed: verification against" in caplog.text
    assert fake_gpu.builds == 2
    assert [entry.recipe.gpu for entry in cache.entries()] == [gpu_identity(RTX)]


def test_an_engine_for_one_size_is_preferred(
    fake_gpu: FakeGpu, bundle: Bundle, slices: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    store_ahead(bundle, Profile.fixed(1, 64, 96))
    segment(bundle, slices, size=(64, 96))
    assert fake_gpu.builds == 1
    segment(bundle, slices)  # of unknown size: that engine does not do
    assert fake_gpu.builds == 2
    assert "the nearest cached engine takes batch 1, width 96, height 64, not" in caplog.text
    caplog.clear()
    segment(bundle, slices, size=(64, 96))
    assert "(batch 1, width 96, height 64) from the cache" in caplog.text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"driver": "570.00"}, "was built under driver 570.00, not 580.65.06"),
        ({"name": "NVIDIA Other"}, r"was built for NVIDIA Other \(sm86\), not for NVIDIA Stand-in"),
    ],
)
def test_another_machine_is_told_and_a_new_engine_built(
    fake_gpu: FakeGpu,
    bundle: Bundle,
    slices: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    part: dict[str, str],
    message: str,
) -> None:
    segment(bundle, slices)
    cache = EngineCache()
    (entry,) = cache.entries()
    assert entry.recipe.gpu is not None
    elsewhere = replace(entry.recipe, gpu=replace(entry.recipe.gpu, **part))
    cache.put(elsewhere, entry.read(), {}, 1.0)
    cache.discard(entry)
    caplog.clear()
    assert segment(bundle, slices)[1] == RTX
    assert re.search(message, caplog.text)
    assert fake_gpu.builds == 2


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_engine_is_told_and_built_anew(
    fake_gpu: FakeGpu,
    bundle: Bundle,
    slices: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    masks, _ = segment(bundle, slices)
    path = EngineCache().entries()[0].path
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-100])
    caplog.clear()
    again, engine = segment(bundle, slices)
    assert engine == RTX
    np.testing.assert_array_equal(again, masks)
    assert path.name in caplog.text and fake_gpu.builds == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(
    fake_gpu: FakeGpu,
    bundle: Bundle,
    slices: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMFAST_CACHE", str(tmp_path / "file" / "cache"))
    assert segment(bundle, slices)[1] == RTX
    assert "the engine serves this run only" in caplog.text


def test_a_failed_build_is_a_reason(
    fake_gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("model.onnx: no kernel for this layer")

    monkeypatch.setattr("emfast.engine_files.build", fail)
    with Segmenter.open(bundle.path, tile=TILE) as segmenter:
        assert "tensorrt-rtx passed over: model.onnx: no kernel for this layer" in (
            segmenter.passed_over
        )


def test_a_card_that_tensorrt_rtx_is_not_made_for(
    fake_gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fake_gpu.COMPUTE_CAPABILITY", (9, 0))
    with pytest.raises(
        EngineUnavailableError,
        match=r"is not made for NVIDIA Stand-in \(compute capability 9.0\), only for sm75, sm80",
    ):
        Segmenter.open(bundle.path, RTX, tile=TILE)


def test_the_set_records_what_ran(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    from emfast.synthesis.job import Job, run_job

    folder = write_denoiser_bundle(tmp_path / "denoiser")
    with Generator.open(folder) as generator:
        run_job(Job(2, 0, 5, (32, 48), 2, False), generator, tmp_path / "set")
    record = json.loads((tmp_path / "set" / "job.json").read_text())
    assert record["engine"]["name"] == RTX
    entry = json.loads((tmp_path / "set" / "manifest.jsonl").read_text().splitlines()[1])
    # Not which of a machine's GPUs: shards on several of them end with the same bytes.
    assert (entry["engine"], entry["device"]) == (RTX, "NVIDIA Stand-in")


def test_batches_share_engines_by_powers_of_two() -> None:
    assert denoiser_shapes(1, (8, 8)).built.batch == Range(1, 1, 1)
    assert denoiser_shapes(5, (8, 8)).built.batch == Range(1, 8, 8)
    shapes = denoiser_shapes(64, (256, 128))
    assert shapes.built == Profile(Range(1, 64, 64), Range.fixed(256), Range.fixed(128))
    assert shapes.needed == Profile.fixed(64, 256, 128)


def test_segmenter_shapes_hold_every_slice(bundle: Bundle) -> None:
    shapes = segmenter_shapes(bundle.manifest, 2048)
    assert shapes.built.height == Range(16, 768, 2048)
    assert shapes.built.admits(shapes.needed)
    known = segmenter_shapes(bundle.manifest, 2048, (100, 5000))
    assert known.needed == Profile.fixed(1, 112, 2048)
    assert known.built.admits(known.needed)
