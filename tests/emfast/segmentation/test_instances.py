from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from emfast.segmentation.instances import METHODS, Method, label_instances
from emfast.segmentation.slabs import InstanceLabeler
from engines.errors import UserError


def plane(*rows: str) -> np.ndarray:
    return np.array([[c != "." for c in row] for row in rows])


def noise(density: float, shape: tuple[int, int, int] = (13, 30, 40), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


def disks(*disks: tuple[float, float, float], shape: tuple[int, int] = (50, 90)) -> np.ndarray:
    y, x = np.indices(shape)
    inside = [(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column, radius in disks]
    return np.logical_or.reduce(inside)


def streamed(mask: np.ndarray, slab: int, method: Method, **options: object) -> np.ndarray:
    """Labels written slab by slab, each slice once and in order."""
    written: list[np.ndarray] = []

    def write(start: int, labels: np.ndarray) -> None:
        assert start == sum(len(part) for part in written)
        written.append(labels.copy())

    labeler = InstanceLabeler(method, slab=slab, **options)  # type: ignore[arg-type]
    advanced: list[int] = []
    count = labeler.label(len(mask), lambda a, b: mask[a:b], write, advanced.append)
    result = np.concatenate(written)
    assert count == result.max(initial=0)
    assert sum(advanced) == labeler.readings * len(mask)
    return result


def test_objects_are_numbered_in_order_and_corners_join() -> None:
    mask = np.stack([plane("..#.#", "#..#.", "#...."), plane("....#", ".....", "##...")])
    labels = label_instances(mask, method="components2d")
    assert labels.dtype == np.uint32
    expected = [
        [[0, 0, 1, 0, 1], [2, 0, 0, 1, 0], [2, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 3], [0, 0, 0, 0, 0], [4, 4, 0, 0, 0]],
    ]
    np.testing.assert_array_equal(labels, expected)
    expected[1] = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [2, 2, 0, 0, 0]]
    np.testing.assert_array_equal(label_instances(mask, method="components3d"), expected)


@pytest.mark.parametrize("density", [0.02, 0.06, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_components_are_those_of_scipy(density: float, dtype: type) -> None:
    mask = noise(density)
    values = mask.astype(dtype) * dtype(1 if dtype is np.bool_ else 255)
    expected, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    labels = label_instances(values, method="components3d")
    np.testing.assert_array_equal(labels, expected)
    assert labels.max() == count
    before = 0
    planes = label_instances(values, method="components2d")
    for labelled, one in zip(planes, mask, strict=True):
        expected, count = ndimage.label(one, structure=np.ones((3, 3)))
        np.testing.assert_array_equal(labelled, np.where(expected > 0, expected + before, 0))
        before += count


@pytest.mark.parametrize("density", [0.4, 0.7, 0.9])
def test_holes_are_those_of_scipy(density: float) -> None:
    mask = noise(density)
    expected, _ = ndimage.label(ndimage.binary_fill_holes(mask), structure=np.ones((3, 3, 3)))
    assert (expected > 0).sum() > mask.sum()
    labels = label_instances(mask, method="components3d", fill_holes=True)
    np.testing.assert_array_equal(labels, expected)
    planes = label_instances(mask, method="components2d", fill_holes=True)
    filled = np.stack([ndimage.binary_fill_holes(one) for one in mask])
    np.testing.assert_array_equal(planes > 0, filled)


def test_small_objects_are_left_out_and_the_rest_numbered_anew() -> None:
    mask = plane("#..##", "...#.", "##...")[None]
    labels = label_instances(mask, method="components2d", min_voxels=2)
    np.testing.assert_array_equal(labels[0], [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0], [2, 2, 0, 0, 0]])
    assert label_instances(mask, method="components3d", min_voxels=3).max() == 1


@pytest.mark.parametrize("method", ["watershed2d", "watershed3d"])
def test_a_watershed_cuts_at_the_neck(method: Method) -> None:
    """Of two overlapping disks each pixel belongs to the one whose centre is nearer."""
    mask = disks((25, 25, 16), (25, 53, 16))[None]
    depth = 1
    if method == "watershed3d":
        # The distance is 3D: outside the volume counts as outside the object.
        depth = 41
        mask = np.repeat(mask, depth, axis=0)
    assert label_instances(mask, method="components3d").max() == 1
    labels = label_instances(mask, method=method)
    middle = labels[depth // 2]
    left, right = middle[25, 25], middle[25, 53]
    assert {left, right} == set(np.unique(middle)) - {0} and len({left, right}) == 2
    columns = np.broadcast_to(np.arange(middle.shape[1]), middle.shape)
    clear = (middle > 0) & (np.abs(columns - 39) > 1)
    np.testing.assert_array_equal((middle == left)[clear], (columns < 39)[clear])
    np.testing.assert_array_equal(labels > 0, mask)


def test_a_watershed_leaves_shapes_without_a_neck_whole() -> None:
    one = disks((25, 25, 16), (25, 33, 16))  # a neck of 0.97 of the radius
    tube = np.zeros((50, 90), bool)
    tube[20:31, 3:87] = True
    tube[19, 40:50] = True  # slightly thicker in the middle
    for shape in (one, tube):
        labels = label_instances(shape[None], method="watershed2d")
        np.testing.assert_array_equal(labels[0], shape)


def test_a_neck_is_judged_by_the_size_of_its_parts() -> None:
    """The same shape at twice the size is cut into the same two parts, and with voxels twice as
    tall the stretched one."""
    small = disks((25, 25, 10), (25, 42, 10))
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    tall = small.repeat(2, axis=1)
    for shape, spacing in ((small, (1, 1, 1)), (large, (1, 1, 1)), (tall, (1, 2, 1))):
        labels = label_instances(shape[None], method="watershed2d", spacing=spacing)
        assert labels.max() == 2


def test_parts_of_all_objects_are_numbered_in_order() -> None:
    mask = disks((25, 15, 10), (25, 32, 10), (25, 70, 10))[None]
    labels = label_instances(mask, method="watershed2d")
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(1, 4)]
    assert labels.max() == 3 and firsts == sorted(firsts)
    assert label_instances(mask, method="watershed2d", min_voxels=310).max() == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_mask_has_no_instances(method: Method) -> None:
    empty = np.zeros((2, 8, 9), bool)
    labels = label_instances(empty, method=method, fill_holes=True, min_voxels=3)
    assert labels.dtype == np.uint32 and labels.shape == empty.shape and not labels.any()
    assert not streamed(empty, 1, method, fill_holes=True).any()


@pytest.mark.parametrize("slab", [1, 2, 5, 100])
@pytest.mark.parametrize("fill_holes", [False, True])
@pytest.mark.parametrize("density", [0.03, 0.08, 0.6, 0.9])
def test_slabs_give_what_the_whole_gives(slab: int, fill_holes: bool, density: float) -> None:
    mask = noise(density, seed=slab)
    for method in METHODS[:3]:
        if method == "watershed2d" and slab != 5:
            continue
        options = {"min_voxels": 3, "fill_holes": fill_holes}
        whole = label_instances(mask, method=method, min_voxels=3, fill_holes=fill_holes)
        np.testing.assert_array_equal(streamed(mask, slab, method, **options), whole)


def test_an_object_that_parts_and_meets_again_is_one() -> None:
    """A U whose arms are joined in the last slab alone, and a ring of it around a hole."""
    mask = np.zeros((9, 5, 7), bool)
    mask[:, 2, 1] = mask[:, 2, 5] = True
    mask[8, 2, 1:6] = True
    mask[4, 0, 3] = True
    expected = mask.astype(np.uint32)
    expected[4, 0, 3] = 2
    np.testing.assert_array_equal(streamed(mask, 2, "components3d"), expected)
    # A cavity across a cut is filled; a tunnel to the first slice is not.
    solid = np.ones((9, 5, 7), bool)
    solid[3:5, 2, 2] = False
    solid[:2, 2, 4] = False
    filled = streamed(solid, 2, "components3d", fill_holes=True)
    assert filled[3:5, 2, 2].all() and not filled[:2, 2, 4].any()


def test_slabs_keep_one_slab_in_memory() -> None:
    seen: list[int] = []

    def read(start: int, stop: int) -> np.ndarray:
        seen.append(stop - start)
        return noise(0.05, (stop - start, 8, 9), start)

    labeler = InstanceLabeler("components3d", fill_holes=True, slab=4)
    labeler.label(10, read, lambda start, labels: None)
    assert seen == 3 * [4, 4, 2] and labeler.readings == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: label_instances(m, method="blobs"), "unknown instance method 'blobs'"),
        (lambda m: label_instances(m[0], method="components2d"), r"mask is bool of shape \(4, 5\)"),
        (lambda m: label_instances(m * 0.5, method="components2d"), "mask is float64"),
        (lambda m: label_instances(m, method="components2d", min_voxels=-1), "at least -1 voxels"),
        (lambda m: InstanceLabeler("blobs"), "accepted: components2d"),
    ],
)
def test_mistakes_are_told(call: Callable[[np.ndarray], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(np.zeros((3, 4, 5), bool))


@pytest.mark.parametrize(
    ("module", "method", "package"),
    [
        ("cc3d", "components2d", "connected-components-3d"),
        ("fastremap", "components3d", "fastremap"),
        ("skimage.morphology", "watershed2d", "scikit-image"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, method: Method, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    mask = np.ones((1, 4, 5), bool)
    with pytest.raises(UserError, match=rf"need {package}, which .* 'emfast\[labels\]'"):
        label_instances(mask, method=method, fill_holes=True)
