from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from emfast.channels import encode, standard_channels
from emfast.data.sample import read_sample
from emfast.data.stack import Stack
from emfast.diffusion.schedule import cosine_schedule
from emfast.diffusion.spec import DenoiserSpec
from emfast.quantization import (
    IMAGES,
    denoiser_calibration,
    labels_check,
    segmenter_calibration,
    set_check,
    set_statistics,
)
from emfast.segmentation.preprocessing import SegmenterSpec, normalize
from engines.errors import UserError
from export.verify import Run, verify

SEGMENTER = SegmenterSpec(1, ("mitochondria",), "unit", 0.5)
DENOISER = DenoiserSpec(
    cosine_schedule(30), standard_channels(140.0, 30.0), "fixed_small", True, (32, 48)
)


@pytest.fixture(scope="module")
def stack() -> Stack:
    """Nine slices of one grey each, the mask of which is their left half."""
    images = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None], (9, 10, 20)).copy()
    masks = np.zeros_like(images)
    masks[:, :, :10] = 1
    return Stack(images, masks, tuple("abcdefghi"), "test")


def left(columns: int) -> Run:
    """A segmenter that sees an object in the first columns of every slice."""

    def run(inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[np.generic]]:
        probability = np.zeros_like(inputs["x"])
        probability[..., :columns] = 1
        return {"probability": probability}

    return run


def test_calibration_and_check_take_other_slices_where_there_are_enough(stack: Stack) -> None:
    calibration = segmenter_calibration(SEGMENTER, stack, 8)
    batches = calibration.batches
    assert calibration.source == "slice b, d, f, h"
    assert [b["x"].shape for b in batches] == [(1, 1, 16, 24)] * 4
    calibrated = {round(255 * float(b["x"].max())) for b in batches}
    seen: set[int] = set()

    def network(
        inputs: Mapping[str, npt.NDArray[np.generic]],
    ) -> dict[str, npt.NDArray[np.generic]]:
        assert inputs["x"].shape == (1, 1, 16, 24)
        seen.add(round(255 * float(inputs["x"].max())))
        return left(10)(inputs)

    labels_check(SEGMENTER, stack, 8).run(network)
    assert len(calibrated) == len(seen) == 4
    assert not calibrated & seen
    (only,) = segmenter_calibration(SEGMENTER, stack.select([3]), 8).batches
    assert round(255 * float(only["x"].max())) == 3


def test_a_loss_of_dice_against_labels_fails(stack: Stack) -> None:
    check = labels_check(SEGMENTER, stack, 8)
    # The reference is wrong in one column, which INT8 mends: no loss.
    (measure,) = verify(left(11), {"int8": left(10)}, [check])["int8"]
    assert measure.value == pytest.approx(2 * 10 / (11 + 10) - 1)
    with pytest.raises(UserError) as error:
        verify(left(10), {"int8": left(9)}, [check])
    assert "int8: loss of Dice against the labels of slice a, c, e, g, from 1.0000 0.05263" in str(
        error.value
    )
    # Other precisions are judged by their output.
    assert verify(left(10), {"fp16": left(3)}, [check]) == {"fp16": []}


def test_a_denoiser_is_calibrated_from_the_first_timestep_to_the_last() -> None:
    x0 = np.full((2, 2, 64, 64), 0.25, dtype=np.float32)
    calibration = denoiser_calibration(DENOISER, x0, "a crop")
    assert calibration.source == "a crop, at 12 timesteps"
    assert calibration.iterated
    steps = [batch["timestep"] for batch in calibration.batches]
    assert all(t.shape == (2,) and t.dtype == np.float32 for t in steps)
    assert [steps[0][0], steps[-1][0]] == [0, 29]
    deviations = [float(batch["x"].std()) for batch in calibration.batches]
    assert deviations == pytest.approx(sorted(deviations), abs=0.02)
    assert deviations[0] == pytest.approx(
        np.sqrt(1 - DENOISER.schedule.alphas_cumprod[0]), rel=0.02
    )


def real_pairs() -> npt.NDArray[np.float32]:
    sample = read_sample()
    windows = [(slice(y, y + 256), slice(x, x + 256)) for y in (0, 256) for x in (300, 600)]
    images = np.stack([sample.images[0][w] for w in windows])
    masks = np.stack([sample.labels()[0][w] for w in windows])
    return encode(DENOISER.channels, images, masks)


def test_statistics_of_a_set() -> None:
    x = real_pairs()
    statistics = set_statistics(DENOISER, x)
    assert statistics["grey mean"] == pytest.approx(140 + 60 * x[:, 0].mean(), abs=0.1)
    assert statistics["grey deviation"] == pytest.approx(60 * x[:, 0].std(), rel=0.01)
    # The median of masks rounds corners.
    assert statistics["mask area"] == pytest.approx((x[:, 1] > 0).mean(), rel=0.005)
    # The shipped segmenter finds the real objects, and not those of another place.
    assert statistics["faithfulness"] > 0.8
    shifted = x.copy()
    shifted[:, 1] = shifted[::-1, 1]
    assert set_statistics(DENOISER, shifted)["faithfulness"] < 0.3
    x[0, 0, 0, 0] = np.nan
    assert all(np.isnan(value) for value in set_statistics(DENOISER, x).values())


def test_a_set_that_changes_fails() -> None:
    check = set_check(DENOISER, 2)
    x = real_pairs()
    assert all(measure.passed for measure in check.judge("int8", {"x": x}, {"x": x}))

    def failed(changed: npt.NDArray[np.float32]) -> list[str]:
        measures = check.judge("int8", {"x": x}, {"x": changed})
        return [
            measure.name.removeprefix("set of 4: ") for measure in measures if not measure.passed
        ]

    brighter, wider, displaced = x.copy(), x.copy(), x.copy()
    brighter[:, 0] += 0.3
    assert "change of grey mean" in failed(brighter)
    wider[:, 1, :16] = 0.5
    assert "change of mask area" in failed(wider)
    displaced[:, 1] = displaced[::-1, 1]
    assert failed(displaced) == ["loss of faithfulness"]
    assert len(failed(np.full_like(x, np.nan))) == 4


def test_a_set_is_sampled_together() -> None:
    shapes = []

    def network(
        inputs: Mapping[str, npt.NDArray[np.generic]],
    ) -> dict[str, npt.NDArray[np.generic]]:
        shapes.append(inputs["x"].shape)
        return {"prediction": np.zeros_like(inputs["x"])}

    check = set_check(DENOISER, 3)
    assert check.run(network)["x"].shape == (IMAGES, 2, 32, 48)
    assert shapes == [(IMAGES, 2, 32, 48)] * 3
    assert check.precisions == ("int8",)


def test_slices_are_normalised_as_a_whole(stack: Stack) -> None:
    spec = SegmenterSpec(1, ("mitochondria",), "standardize", 0.5)
    noisy = np.random.default_rng(0).integers(0, 255, (1, 10, 20), dtype=np.uint8)
    (batch,) = segmenter_calibration(spec, Stack(noisy, None, ("a",), "test"), 8).batches
    np.testing.assert_array_equal(batch["x"][..., :10, :20], normalize(noisy, "standardize"))
