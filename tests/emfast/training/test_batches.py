from __future__ import annotations

import numpy as np
import pytest
import torch

from emfast.training.augmentation import AUGMENTATIONS, Augmentation, augment
from emfast.training.batches import CROPS, ORDER, epoch_batch, flip_turn, generator, random_crops


def test_streams_depend_on_seed_iteration_and_stream_alone() -> None:
    draws = {
        key: tuple(generator(*key).integers(2**32, size=4))
        for key in [(0, 0, CROPS), (0, 1, CROPS), (1, 0, CROPS), (0, 0, ORDER)]
    }
    assert len(set(draws.values())) == 4
    assert tuple(generator(0, 1, CROPS).integers(2**32, size=4)) == draws[(0, 1, CROPS)]


def test_images_and_masks_are_cropped_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    crops = random_crops(images, 255 - images, 16, 32, rng, symmetries=range(8))
    assert crops.images.shape == (32, 16, 16)
    assert (crops.masks == 255 - crops.images).all()
    assert set(crops.slices) == {0, 1, 2}


def test_borders_are_cropped_too() -> None:
    """A corner is in more than a quarter as many crops as the middle; strips are not less seen."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((1, 80, 100), dtype=np.uint8)[1:]
    crops = random_crops(rows, columns, 16, 4000, rng, symmetries=range(8))
    seen = np.zeros((80, 100))
    np.add.at(seen, (crops.images, crops.masks), 1)
    expected = 4000 * 16 * 16 / (80 * 100)
    assert seen[[0, 0, -1, -1], [0, -1, 0, -1]] / expected == pytest.approx(0.3, abs=0.1)
    assert seen[40, 50] / expected == pytest.approx(1, abs=0.2)
    for strip in (seen[:16], seen[-16:], seen[:, :16], seen[:, -16:]):
        assert strip.mean() / expected == pytest.approx(1, abs=0.1)


def test_small_slices_are_not_cut_at_their_edges_alone() -> None:
    rng = np.random.default_rng(0)
    rows = np.indices((1, 300, 300))[1].astype(np.uint16).astype(np.uint8)
    crops = random_crops(rows, rows, 256, 1500, rng, symmetries=[0])
    first = crops.images[:, 0, 0]
    assert 0.25 < np.isin(first, (0, 300 - 256)).mean() < 0.45
    assert len(set(first.tolist())) == 300 - 256 + 1
    whole = random_crops(rows, rows, 300, 2, rng, symmetries=[0])
    assert (whole.images == rows).all()


def test_the_eight_symmetries_differ() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert len({flip_turn(image, i).tobytes() for i in range(8)}) == 8


def test_every_tile_once_an_epoch() -> None:
    seen = np.concatenate([epoch_batch(10, 4, 0, i) for i in range(3)])
    assert sorted(seen) == list(range(10))
    following = np.concatenate([epoch_batch(10, 4, 0, i) for i in range(3, 6)])
    assert sorted(following) == list(range(10))
    assert list(following) != list(seen)


def test_augmentation_moves_image_and_mask_alike() -> None:
    target = torch.zeros(4, 1, 64, 64)
    target[:, :, 20:40, 10:50] = 1
    only_moves = Augmentation(20, 0.05, 0.15, 0, 0, 0, 0, 0)
    x, moved = augment(target.clone(), target, only_moves, np.random.default_rng(0))
    assert not torch.equal(moved, target)
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    overlap = ((x > 0.5) == (moved > 0.5)).float().mean()
    assert overlap > 0.98


def test_elastic_bends_image_and_mask_alike() -> None:
    target = torch.zeros(8, 1, 128, 128)
    target[:, :, 40:88, 20:108] = 1
    bends = Augmentation(0, 0, 0, 0, 0, 0, 0, 6)
    x, bent = augment(target.clone(), target, bends, np.random.default_rng(0))
    changed = (bent != target).float().mean(dim=(1, 2, 3))
    # No two crops bend alike, and none by more than a few pixels along the object's border.
    assert len(set(changed.tolist())) == 8
    assert 0.01 < changed.mean() < 0.1
    assert ((x > 0.5) == (bent > 0.5)).float().mean() > 0.98


def test_greys_change_only_in_the_image() -> None:
    x, target = torch.randn(4, 1, 32, 32), torch.ones(4, 1, 32, 32)
    greys = Augmentation(0, 0, 0, 0.1, 0.2, 0.2, 0.5, 0)
    changed, same = augment(x, target, greys, np.random.default_rng(0))
    assert torch.equal(same, target)
    assert not torch.allclose(changed, x)


def test_presets_exist() -> None:
    assert AUGMENTATIONS["paper"].rotation == 7
    assert AUGMENTATIONS["elastic"].contrast > 0
