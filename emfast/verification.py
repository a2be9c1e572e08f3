"""How graphs and engines are judged: tolerances, real slices, whole samplings of a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.channels import Channel, decode, encode
from emfast.data.sample import read_sample
from emfast.data.stack import Stack
from emfast.diffusion.noise import normal_noise
from emfast.diffusion.sampling import sample
from emfast.diffusion.spec import DenoiserSpec
from emfast.progress import progress
from emfast.quality.overlap import confusion
from emfast.segmentation.preprocessing import SegmenterSpec, label_map, normalize
from engines.bundle import Manifest
from engines.errors import UserError
from export.verify import Check, Measure, Outputs, Run, Tolerance, output_check

# Largest errors of an output relative to its root mean square. At the first timesteps a denoiser
# predicts noise of about 1/100 of the image's scale, of which FP16 rounds away some percent as soon
# as it holds the image; the image that is sampled does not feel it. There INT8 errs by as much as
# the prediction's size, and by several times that at single pixels of masks:
# emfast.quantization judges what comes of it. Zeros for a prediction would err by 0.8 in the mean.
SEGMENTER = {
    "fp32": Tolerance(1e-3, 1e-4),
    "fp16": Tolerance(5e-2, 5e-3),
    "int8": Tolerance(2.0, 1e-2),
}
DENOISER = {
    "fp32": Tolerance(1e-3, 1e-4),
    "fp16": Tolerance(2e-1, 2e-2),
    "int8": Tolerance(8.0, 7.5e-1),
}
# A whole sampling with the same noise: least PSNR of the image, in dB, and Dice of the mask.
TRAJECTORY = {"fp32": (60.0, 0.999), "fp16": (40.0, 0.98), "int8": (30.0, 0.9)}
# The mask of a segmented slice: least Dice.
MASK = {"fp32": 0.999, "fp16": 0.99, "int8": 0.98}
# Steps of the sampling that every new engine of a denoiser is compared by.
ENGINE_STEPS = 20
# The PSNR of two 8-bit images that are equal, which has no finite value.
PSNR_EQUAL = 100.0
CROPS = 2


def crops(
    stack: Stack, size: tuple[int, int], multiple: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str]:
    """A few crops of a stack with their masks, spread over it.

    Args:
        stack: slices with masks.
        size: height and width; less where the slices are smaller.
        multiple: that height and width must be divisible by.

    Returns:
        Images and masks, uint8 (CROPS, height, width), and where they are from, in words.

    Raises:
        UserError: no masks, or slices smaller than ``multiple``.
    """
    masks = stack.labels()
    count, *slice_size = stack.images.shape
    height, width = (
        min(a, b) // multiple * multiple for a, b in zip(size, slice_size, strict=True)
    )
    if not height or not width:
        raise UserError(f"{stack.source}: slices are smaller than {multiple} pixels")
    chosen = [i * count // CROPS for i in range(CROPS)]
    windows = []
    for i, z in enumerate(chosen):
        y = (slice_size[0] - height) * (i + 1) // (CROPS + 1)
        x = (slice_size[1] - width) * (i + 1) // (CROPS + 1)
        windows.append((z, slice(y, y + height), slice(x, x + width)))
    names = ", ".join(dict.fromkeys(stack.names[z] for z in chosen))
    return (
        np.stack([stack.images[w] for w in windows]),
        np.stack([masks[w] for w in windows]),
        f"{CROPS} crops of {width} x {height} pixels from {names}",
    )


def noisy_batches(
    spec: DenoiserSpec, x0: npt.NDArray[np.float32], multiple: int
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Inputs of a denoiser at five timesteps, from the first to the last, and of another shape.

    Args:
        spec: of the denoiser.
        x0: clean channels, float32 (batch, channels, height, width).
        multiple: that height and width must be divisible by.
    """
    last = spec.schedule.steps - 1
    batches = {f"t = {t}": noisy_batch(spec, x0, t) for t in timesteps(spec, 5)}
    half = x0.shape[2] // 2 // multiple * multiple
    if half:
        middle = batches[f"t = {last // 2}"]
        batches[f"t = {last // 2}, {x0.shape[3]} x {half} pixels"] = {
            "x": np.ascontiguousarray(middle["x"][:1, :, :half]),
            "timestep": middle["timestep"][:1],
        }
    return batches


def timesteps(spec: DenoiserSpec, count: int) -> list[int]:
    """At most ``count`` timesteps, evenly spread from the first to the last."""
    last = spec.schedule.steps - 1
    return sorted({last * i // (count - 1) for i in range(count)})


def noisy_batch(
    spec: DenoiserSpec, x0: npt.NDArray[np.float32], timestep: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Inputs of a denoiser at one timestep from clean channels, as for :func:`noisy_batches`."""
    alpha = spec.schedule.alphas_cumprod[timestep]
    noise = normal_noise(0, range(len(x0)), timestep, x0.shape[1:])
    x = np.float32(np.sqrt(alpha)) * x0 + np.float32(np.sqrt(1 - alpha)) * noise
    return {"x": x, "timestep": np.full(len(x0), timestep, dtype=np.float32)}


def trajectory_check(
    spec: DenoiserSpec, steps: int | None, size: tuple[int, int] | None = None
) -> Check:
    """A check that samples one image with the same noise on each engine.

    Args:
        spec: of the denoiser.
        steps: of the sampling; all of the schedule's by default.
        size: height and width of the image; what the model was trained for by default.
    """
    run = sampling(spec, steps, [0], size)

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        psnr_limit, dice_limit = TRAJECTORY[precision]
        name = f"{len(spec.sampler(steps).steps)} steps: "
        psnr, dice = compare_samples(spec.channels, expected["x"], got["x"])
        return [
            Measure(f"{name}PSNR of the image", psnr, psnr_limit, at_least=True),
            Measure(f"{name}Dice of the mask", dice, dice_limit, at_least=True),
        ]

    return Check(run, judge)


def sampling(
    spec: DenoiserSpec,
    steps: int | None,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
) -> Callable[[Run], Outputs]:
    """What samples the images of seed 0 with these indices, together, on an engine.

    Args:
        spec, steps, size: as for :func:`trajectory_check`.
        indices: of the images in the set.
    """
    sampler = spec.sampler(steps)
    shape = (len(spec.channels), *(size or spec.size))

    def run(network: Run) -> Outputs:
        def denoise(
            x: npt.NDArray[np.float32], timestep: npt.NDArray[np.float32]
        ) -> npt.NDArray[np.float32]:
            prediction = network({"x": x, "timestep": timestep})["prediction"]
            return np.asarray(prediction, dtype=np.float32)

        with progress("verifying a sampling", len(sampler.steps)) as advance:
            return {"x": sample(denoise, sampler, 0, indices, shape, advance)}

    return run


def compare_samples(
    channels: Sequence[Channel], expected: npt.NDArray[Any], got: npt.NDArray[Any]
) -> tuple[float, float]:
    """PSNR of the images in dB and Dice of the masks, NaN where any number is not finite.

    Args:
        channels: of the denoiser.
        expected, got: float32 (batch, len(channels), height, width).
    """
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("nan"), float("nan")
    image, mask = decode(channels, expected)
    other_image, other_mask = decode(channels, got)
    error = float(np.mean((image.astype(np.float64) - other_image) ** 2))
    psnr = 10 * float(np.log10(255**2 / error)) if error else PSNR_EQUAL
    return psnr, confusion(other_mask, mask).dice


def mask_check(spec: SegmenterSpec, images: npt.NDArray[np.uint8]) -> Check:
    """A check that segments slices with each engine.

    Args:
        spec: of the segmenter.
        images: uint8 (slices, height, width), greys in [0, 255].
    """
    x = normalize(images, spec.normalization)

    def run(network: Run) -> Outputs:
        probability = np.asarray(network({"x": x})["probability"], dtype=np.float32)
        return {"labels": label_map(probability, spec.threshold)}

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        masks = (outputs["labels"].astype(np.uint8) for outputs in (got, expected))
        dice = confusion(*masks).dice
        return [Measure("Dice of the mask", dice, MASK[precision], at_least=True)]

    return Check(run, judge)


def engine_checks(
    manifest: Manifest, size: tuple[int, int] | None = None, batch: int = 1
) -> tuple[tuple[Check, ...], str]:
    """The checks of an engine of a bundle, on the sample slice.

    Args:
        manifest: of the bundle.
        size: height and width that the engine takes; by default the slice's for a segmenter, and
            what it was trained for for a denoiser.
        batch: images that run together, each another view of the slice; a sampling is of one.

    Returns:
        The checks, and what they use, in words.
    """
    sample_slice = read_sample()
    if manifest.kind == "segmenter":
        spec = SegmenterSpec.from_dict(manifest.model)
        images = _views(sample_slice.images, size or sample_slice.images.shape[1:], batch)
        batches = {f"{_pixels(images)} pixels": {"x": normalize(images, spec.normalization)}}
        checks = output_check(batches, SEGMENTER), mask_check(spec, images)
        return checks, f"{batch} of the sample slice, {_pixels(images)} pixels"
    denoiser = DenoiserSpec.from_dict(manifest.model)
    size = size or denoiser.size
    stacks = sample_slice.images, sample_slice.labels()
    images, masks = (_views(stack, size, batch) for stack in stacks)
    x0 = encode(denoiser.channels, images, masks)
    batches = {
        name: inputs
        for name, inputs in noisy_batches(denoiser, x0, manifest.multiple).items()
        if inputs["x"].shape == x0.shape
    }
    steps = min(ENGINE_STEPS, denoiser.schedule.steps)
    checks = output_check(batches, DENOISER), trajectory_check(denoiser, steps, size)
    what = f"{batch} of the sample slice, {_pixels(images)} pixels, and a sampling of {steps} steps"
    return checks, what


def _views(
    images: npt.NDArray[np.uint8], size: tuple[int, ...], count: int
) -> npt.NDArray[np.uint8]:
    """``count`` different images of a size from one slice (1, height, width)."""
    shifts = (np.roll(images, (29 * i, 53 * i), axis=(1, 2)) for i in range(count))
    return np.concatenate([_fit(shifted, size) for shifted in shifts])


def _fit(images: npt.NDArray[np.uint8], size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The middle of slices (n, height, width), mirrored at the border where they are too small."""
    missing = [max(0, want - has) for want, has in zip(size, images.shape[1:], strict=True)]
    images = np.pad(images, [(0, 0), *((m // 2, m - m // 2) for m in missing)], mode="symmetric")
    y, x = ((has - want) // 2 for want, has in zip(size, images.shape[1:], strict=True))
    return np.ascontiguousarray(images[:, y : y + size[0], x : x + size[1]])


def _pixels(images: npt.NDArray[np.uint8]) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"
