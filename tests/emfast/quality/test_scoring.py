from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from emfast.quality.overlap import Confusion, confusion
from emfast.quality.scoring import find_masks, score_files
from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
PREDICTED = RNG.integers(0, 2, (6, 9, 11), dtype=np.uint8)
LABELLED = RNG.integers(0, 2, (6, 9, 11), dtype=np.uint8)


def folder(path: Path, masks: Uint8, numbers: Sequence[int], value: int = 255) -> Path:
    path.mkdir(parents=True)
    for i in numbers:
        Image.fromarray(masks[i] * np.uint8(value)).save(path / f"slice{i:04d}.png")
    return path


def tiff(path: Path, masks: Uint8, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, masks * np.uint8(value), photometric="minisblack")
    return path


def expected(numbers: Sequence[int]) -> Confusion:
    return confusion(PREDICTED[list(numbers)], LABELLED[list(numbers)])


def test_folders_are_matched_by_name(tmp_path: Path) -> None:
    scores = score_files(
        folder(tmp_path / "p", PREDICTED, range(6)),
        folder(tmp_path / "l", LABELLED, range(6), value=1),
    )
    assert scores.pooled == expected(range(6))
    assert scores.slices == "0-5"
    assert scores.unlabelled == 0
    assert [name for name, _ in scores.per_slice] == [f"slice{i:04d}" for i in range(6)]
    assert scores.per_slice[3][1] == expected([3])


def test_labels_may_cover_a_part(tmp_path: Path) -> None:
    scores = score_files(
        folder(tmp_path / "p", PREDICTED, range(6)), folder(tmp_path / "l", LABELLED, [1, 2, 5])
    )
    assert scores.pooled == expected([1, 2, 5])
    assert scores.slices == "1-2,5"
    assert scores.unlabelled == 3


def test_slices_count_in_the_longer_of_the_two(tmp_path: Path) -> None:
    all_predicted = folder(tmp_path / "p", PREDICTED, range(6))
    some_labelled = folder(tmp_path / "l", LABELLED, [1, 4, 5])
    scores = score_files(all_predicted, some_labelled, "3-5")
    assert scores.pooled == expected([4, 5])
    assert (scores.slices, scores.unlabelled) == ("4-5", 1)

    some_predicted = folder(tmp_path / "p2", PREDICTED, [4, 5])
    all_labelled = folder(tmp_path / "l2", LABELLED, range(6))
    scores = score_files(some_predicted, all_labelled, "4-5")
    assert scores.pooled == expected([4, 5])
    assert (scores.slices, scores.unlabelled) == ("4-5", 0)


def test_tiffs_are_matched_in_order(tmp_path: Path) -> None:
    predicted = tiff(tmp_path / "volume.tif", PREDICTED)
    for labels in (
        tiff(tmp_path / "truth.tif", LABELLED, value=1),
        folder(tmp_path / "l", LABELLED, range(6)),
    ):
        assert score_files(predicted, labels, "1,3").pooled == expected([1, 3])
        # The other way round, the same slices are false the other way round.
        swapped = score_files(labels, predicted, "1,3").pooled
        assert (swapped.fp, swapped.fn) == (expected([1, 3]).fn, expected([1, 3]).fp)


def test_pages_named_like_files_are_matched_by_name(tmp_path: Path) -> None:
    scores = score_files(
        tiff(tmp_path / "slice.tif", PREDICTED), folder(tmp_path / "l", LABELLED, [0, 4])
    )
    assert scores.pooled == expected([0, 4])


def test_single_images_of_any_name(tmp_path: Path) -> None:
    predicted = folder(tmp_path / "p", PREDICTED, [2])
    labels = folder(tmp_path / "l", LABELLED, [2]) / "slice0002.png"
    labels = labels.rename(tmp_path / "truth.png")
    for prediction in (predicted, predicted / "slice0002.png"):
        scores = score_files(prediction, labels)
        assert scores.pooled == expected([2])
        assert scores.labels == labels


def test_masks_are_found_in_runs_and_data_sets(tmp_path: Path) -> None:
    run = tiff(tmp_path / "run" / "masks" / "volume.tif", PREDICTED)
    assert find_masks(tmp_path / "run") == run
    data = tmp_path / "data" / "training"
    folder(data / "images", PREDICTED, range(6))
    folder(data / "masks", LABELLED, range(6))
    assert find_masks(tmp_path / "data") == data / "masks"
    tiff(tmp_path / "epfl" / "training.tif", PREDICTED)
    truth = tiff(tmp_path / "epfl" / "training_groundtruth.tif", LABELLED)
    assert find_masks(tmp_path / "epfl") == truth
    assert score_files(tmp_path / "run", tmp_path / "data").pooled == expected(range(6))
    assert score_files(tmp_path / "run", tmp_path / "epfl").labels == truth


def test_labels_without_a_prediction(tmp_path: Path) -> None:
    predicted = folder(tmp_path / "p", PREDICTED, [0, 1])
    labels = folder(tmp_path / "l", LABELLED, range(6))
    with pytest.raises(UserError, match=r"no prediction for slice0002.*--slices"):
        score_files(predicted, labels)
    with pytest.raises(UserError, match="no prediction for slice0003"):
        score_files(predicted, labels, "3")
    with pytest.raises(UserError, match="there is no slice 7"):
        score_files(predicted, labels, "7")


def test_no_label_among_the_slices(tmp_path: Path) -> None:
    predicted = folder(tmp_path / "p", PREDICTED, range(6))
    with pytest.raises(UserError, match="has no label for any"):
        score_files(predicted, folder(tmp_path / "l", LABELLED, [1]), "2-3")


def test_nothing_to_match_by(tmp_path: Path) -> None:
    predicted = tiff(tmp_path / "volume.tif", PREDICTED)
    labels = tiff(tmp_path / "truth.tif", LABELLED[:4])
    with pytest.raises(UserError, match="has 6 slices and .* has 4, and no name is common"):
        score_files(predicted, labels)
    for i, path in enumerate(sorted(folder(tmp_path / "l", LABELLED, range(6)).iterdir())):
        path.rename(path.with_name(f"other{i}.png"))
    with pytest.raises(UserError, match="is slice0000 there and other0 here"):
        score_files(folder(tmp_path / "p", PREDICTED, range(6)), tmp_path / "l")


def test_sizes_must_match(tmp_path: Path) -> None:
    predicted = folder(tmp_path / "p", PREDICTED, range(2))
    labels = folder(tmp_path / "l", LABELLED[:, :, :10], range(2))
    with pytest.raises(UserError, match="prediction is 11 x 9 pixels, but its label is 10 x 9"):
        score_files(predicted, labels)


def test_masks_have_two_values(tmp_path: Path) -> None:
    predicted = folder(tmp_path / "p", PREDICTED, range(2))
    grey = RNG.integers(0, 256, (2, 9, 11), dtype=np.uint8)
    labels = folder(tmp_path / "l", grey, range(2), value=1)
    with pytest.raises(UserError, match=r"l, slice slice0000: has \d+ different values"):
        score_files(predicted, labels)


def test_json_values(tmp_path: Path) -> None:
    scores = score_files(
        folder(tmp_path / "p", PREDICTED, range(6)), folder(tmp_path / "l", LABELLED, [0, 1])
    )
    assert scores.to_dict() == {
        "predictions": str(tmp_path / "p"),
        "labels": str(tmp_path / "l"),
        "slices": "0-1",
        "scored": 2,
        "unlabelled": 4,
        "pooled": expected([0, 1]).to_dict(),
        "per_slice": [
            {"slice": "slice0000", **expected([0]).to_dict()},
            {"slice": "slice0001", **expected([1]).to_dict()},
        ],
    }


def test_two_annotators_of_real_slices(epfl: Path) -> None:
    second = epfl.parent / "epfl6" / "mitochondria"
    if not second.is_dir():
        pytest.skip("the second annotation is not beside the EPFL stack")
    scores = score_files(epfl, second)
    assert len(scores.per_slice) == 42
    assert scores.unlabelled == 123
    dice = [counts.dice for _, counts in scores.per_slice]
    assert scores.pooled.dice == pytest.approx(0.8761, abs=5e-5)
    assert np.mean(dice) == pytest.approx(0.8709, abs=5e-5)
    assert min(dice) == pytest.approx(0.8182, abs=5e-5)
