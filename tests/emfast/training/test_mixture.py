from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emfast.data.stack import Stack
from emfast.training.checkpoint import load_checkpoint
from emfast.training.mixture import Mixture, Pool, Source
from emfast.training.presets import SEGMENTER_PRESETS
from emfast.training.segmenter import load_segmenter, train_segmenter
from emfast.training.trainer import CHECKPOINT
from engines.errors import UserError

SETTINGS = SEGMENTER_PRESETS["default"].override(
    crops=((32, 2),), iterations=2, warmup=1, validate_every=2
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def stack(grey: int, count: int, side: tuple[int, int], name: str) -> Stack:
    """Slices of one grey with noise, and masks of their left half."""
    rng = np.random.default_rng(grey)
    images = rng.normal(grey, 5, (count, *side)).astype(np.uint8)
    masks = np.zeros_like(images)
    masks[:, :, : side[1] // 2] = 1
    return Stack(images, masks, tuple(f"{name}{i}" for i in range(count)), name)


REAL = stack(60, 2, (96, 128), "real")
SYNTHETIC = stack(180, 50, (64, 64), "synthetic")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.5), (0.1, 0.1), (None, 0.893)])
def test_crops_come_from_the_sources_by_their_shares(share: float | None, expected: float) -> None:
    real = None if share is None else 1 - share
    pool = Pool(Mixture((Source(REAL, real), Source(SYNTHETIC, share, tiles=True))), tiles=False)
    crops = pool.crops(32, 2000, np.random.default_rng(0))
    synthetic = crops.images.mean(axis=(1, 2)) > 120
    assert abs(synthetic.mean() - expected) < 0.04
    assert np.array_equal(crops.slices >= len(REAL), synthetic)
    assert set(np.unique(crops.masks)) == {0, 1}


def test_greys_of_tiles_are_normalised_with_the_statistics_of_all_of_them() -> None:
    images = SYNTHETIC.images.copy()
    images[0] = 20
    tiles = Stack(images, SYNTHETIC.masks, SYNTHETIC.names, "tiles")
    pool = Pool(Mixture((Source(REAL), Source(tiles, tiles=True))), tiles=False)
    mean, deviation = pool.statistics(np.array([0, 2, 51]))
    assert mean == pytest.approx([REAL.images[0].mean(), images.mean(), images.mean()])
    assert deviation == pytest.approx([REAL.images[0].std(), images.std(), images.std()])


def test_one_source_gives_the_crops_of_its_stack() -> None:
    one = Pool(REAL, tiles=False).crops(32, 8, np.random.default_rng(3))
    same = Pool(Mixture((Source(REAL),)), tiles=False).crops(32, 8, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))


def test_fixed_tiles_of_all_sources_are_seen() -> None:
    real, synthetic = stack(60, 1, (512, 512), "r"), stack(180, 5, (256, 256), "s")
    pool = Pool(Mixture((Source(real), Source(synthetic, tiles=True))), tiles=True)
    assert len(pool) == 10 + 5
    images, _ = pool.take(np.array([0, 14]))
    assert images[0].mean() < 120 < images[1].mean()


@pytest.mark.parametrize(
    ("shares", "tiles", "message"),
    [
        ((0.5, 0.6), False, "together 1"),
        ((0.5, None), False, "or none"),
        ((1.0, 0.0), False, "above 0"),
        ((), False, "no sources"),
        ((0.5, 0.5), True, "takes no shares"),
    ],
)
def test_shares_that_cannot_be(shares: tuple[float | None, ...], tiles: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pool(Mixture(tuple(Source(REAL, share) for share in shares)), tiles)


def test_training_starts_from_the_averaged_weights_of_a_run(tmp_path: Path) -> None:
    train_segmenter(SETTINGS, REAL, None, {}, tmp_path / "first", "cpu")
    # A step of next to nothing leaves the weights where they began.
    still = SETTINGS.override(learning_rate=1e-30, weight_decay=0.0, iterations=1, seed=5)
    second = tmp_path / "second"
    train_segmenter(still, REAL, None, {}, second, "cpu", tmp_path / "first")
    first, _ = load_segmenter(tmp_path / "first")
    begun, meta = load_checkpoint(second / CHECKPOINT)
    for name, weight in first.named_parameters():
        assert torch.allclose(begun["network"][name], weight.detach(), atol=1e-6)
    with pytest.raises(UserError, match="other data: initial"):
        train_segmenter(still, REAL, None, {}, second, "cpu")
    assert meta["data"]["initial"]["sha256"]


def test_what_training_cannot_start_from_is_refused(tmp_path: Path) -> None:
    train_segmenter(SETTINGS, REAL, None, {}, tmp_path / "light", "cpu")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    full = SETTINGS.override(network="full")
    unit = SETTINGS.override(standardize=False)
    for settings, initial, message in [
        (full, "light", "is another network"),
        (unit, "light", "standardize"),
        (SETTINGS, "bundle", "is a bundle"),
        (SETTINGS, "nothing", "no such checkpoint"),
    ]:
        with pytest.raises(UserError, match=message):
            train_segmenter(settings, REAL, None, {}, tmp_path / "x", "cpu", tmp_path / initial)
