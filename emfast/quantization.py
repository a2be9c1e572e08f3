"""INT8 graphs: what they are calibrated on, and what they must keep beyond other graphs.

The errors of an INT8 graph are too large to be judged by single numbers of its output. What counts
is that masks are as good, and that a sampled set looks the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emfast.channels import decode
from emfast.data.stack import Stack
from emfast.diffusion.spec import DenoiserSpec
from emfast.quality.overlap import confusion
from emfast.segmentation.preprocessing import SegmenterSpec, label_map, normalize
from emfast.segmentation.tiling import pad
from emfast.verification import noisy_batch, sampling, timesteps
from engines.bundle import open_bundle
from engines.onnxruntime import OnnxRuntimeEngine
from export.quantization import Calibration
from export.verify import Check, Measure, Outputs, Run

Uint8 = npt.NDArray[np.uint8]

# Slices for each of calibration and check.
SLICES = 4
# Timesteps that a denoiser is calibrated at.
TIMESTEPS = 12
# Images of the set that is sampled.
IMAGES = 4
# Most that Dice against labels may lose.
DICE_LOSS = 0.003
# Most that the statistics of a set may change, relative to the reference's.
CHANGE = 0.1
# Most that the faithfulness of a set may lose: the Dice of its masks against what the shipped
# segmenter sees in its images. It is not relative, since it is near 0 for other data than EPFL's.
FAITHFULNESS_LOSS = 0.05
SEGMENTER = "epfl-segmenter"


def segmenter_calibration(spec: SegmenterSpec, stack: Stack, multiple: int) -> Calibration:
    """Whole slices; where there are several, others than :func:`labels_check` takes.

    Args:
        spec: of the segmenter.
        stack: slices, with or without masks.
        multiple: that height and width must be divisible by.
    """
    chosen = _spread(range(1, len(stack), 2) or range(1))
    batches = [_slice(spec, stack, z, multiple) for z in chosen]
    return Calibration(batches, _names(stack, chosen), iterated=False)


def denoiser_calibration(
    spec: DenoiserSpec, x0: npt.NDArray[np.float32], source: str
) -> Calibration:
    """Noisy crops, from the first timestep to the last.

    Inputs of a sampling gave no better ranges: they lack the first timesteps, or are many.

    Args:
        spec: of the denoiser.
        x0: clean channels, float32 (batch, channels, height, width).
        source: where they are from, in words.
    """
    batches = [noisy_batch(spec, x0, t) for t in timesteps(spec, TIMESTEPS)]
    text = f"{source}, at {len(batches)} timesteps"
    return Calibration(batches, text, iterated=True, counter="timestep")


def labels_check(spec: SegmenterSpec, stack: Stack, multiple: int) -> Check:
    """A check that masks of whole slices are as good as the reference's.

    Args:
        spec: of the segmenter.
        stack: slices with masks.
        multiple: that height and width must be divisible by.
    """
    chosen = _spread(range(0, len(stack), 2))
    height, width = stack.images.shape[1:]
    labels = stack.labels()[chosen]

    def run(network: Run) -> Outputs:
        maps = []
        for z in chosen:
            probability = network(_slice(spec, stack, z, multiple))["probability"]
            maps.append(label_map(probability.astype(np.float32), spec.threshold))
        return {"labels": np.concatenate(maps)[:, :height, :width]}

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        reference, dice = (confusion(_labels(o), labels).dice for o in (expected, got))
        name = f"loss of Dice against the labels of {_names(stack, chosen)}, from {reference:.4f}"
        return [Measure(name, reference - dice, DICE_LOSS)]

    return Check(run, judge, ("int8",))


def set_check(spec: DenoiserSpec, steps: int | None) -> Check:
    """A check that a sampled set looks like the reference's with the same noise.

    Args:
        spec: of the denoiser.
        steps: of the sampling; all of the schedule's by default.
    """

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        reference, values = (set_statistics(spec, o["x"]) for o in (expected, got))
        loss = reference.pop("faithfulness") - values.pop("faithfulness")
        changes = [
            Measure(f"set of {IMAGES}: change of {name}", _change(value, values[name]), CHANGE)
            for name, value in reference.items()
        ]
        return [
            *changes,
            Measure(f"set of {IMAGES}: loss of faithfulness", loss, FAITHFULNESS_LOSS),
        ]

    return Check(sampling(spec, steps, range(IMAGES)), judge, ("int8",))


def set_statistics(spec: DenoiserSpec, x: npt.NDArray[np.generic]) -> dict[str, float]:
    """Grey mean and deviation, masks' area and faithfulness of a set; NaN if any number is.

    Args:
        spec: of the denoiser.
        x: float32 (images, channels, height, width).
    """
    names = "grey mean", "grey deviation", "mask area", "faithfulness"
    if not np.isfinite(x).all():
        return dict.fromkeys(names, float("nan"))
    images, masks = decode(spec.channels, x.astype(np.float32))
    faithfulness = confusion(_segmented(images), masks).dice
    values = images.mean(), images.std(), (masks > 0).mean(), faithfulness
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _segmented(images: Uint8) -> Uint8:
    """The masks that the shipped segmenter sees."""
    bundle = open_bundle(SEGMENTER, "segmenter")
    spec = SegmenterSpec.from_dict(bundle.manifest.model)
    height, width = images.shape[1:]
    x = pad(normalize(images, spec.normalization), bundle.manifest.multiple)
    with OnnxRuntimeEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32") as engine:
        probability = engine.run({"x": x})["probability"].astype(np.float32)
    return label_map(probability, spec.threshold)[:, :height, :width]


def _change(reference: float, value: float) -> float:
    """Relative to ``reference``; infinite where only that is 0."""
    if reference == value:
        return 0.0
    return abs(value - reference) / reference if reference else float("inf")


def _slice(
    spec: SegmenterSpec, stack: Stack, index: int, multiple: int
) -> dict[str, npt.NDArray[np.float32]]:
    return {"x": pad(normalize(stack.images[index : index + 1], spec.normalization), multiple)}


def _names(stack: Stack, chosen: list[int]) -> str:
    return f"slice {', '.join(stack.names[z] for z in chosen)}"


def _labels(outputs: Outputs) -> Uint8:
    return outputs["labels"].astype(np.uint8)


def _spread(indices: range) -> list[int]:
    """At most :data:`SLICES` of them, evenly spread."""
    count = len(indices)
    return [indices[i * count // SLICES] for i in range(SLICES)] if count > SLICES else [*indices]
