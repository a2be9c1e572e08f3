"""What a run makes of a volume's greys and pixel size: decided once, told and recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emfast.segmentation.greys import Greys
from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.segmentation.resampling import factors, grown
from emfast.volumes.volume import VolumeInfo
from engines.bundle import open_bundle
from engines.errors import UserError


@dataclass(frozen=True)
class Decisions:
    """How a volume is read.

    Attributes:
        greys: how to read its greys; without the statistics of the volume.
        pixel_size: height and width of a pixel in nm, or None where nobody says.
        by: growth of rows and columns before the network, or None.
        lines: the same in words.
    """

    greys: Greys
    pixel_size: tuple[float, float] | None
    by: tuple[float, float] | None
    lines: tuple[str, ...]


def decide(
    info: VolumeInfo,
    spec: SegmenterSpec,
    invert: bool = False,
    limits: tuple[float, float] | None = None,
    pixel_size: float | None = None,
) -> Decisions:
    """Decide what the volume and the user leave open.

    Args:
        info: of the volume.
        spec: of the segmenter.
        invert: whether black is white.
        limits: darkest and brightest grey.
        pixel_size: edge of a pixel in nm, instead of what the file says.

    Raises:
        UserError: pixel sizes that cannot be, or that the network cannot be told about.
    """
    size, by, line = _pixel_size(info, spec, pixel_size)
    greys = Greys(invert, limits)
    return Decisions(greys, size, by, (_volume(info), _greys(info, spec, greys), line))


def network_size(
    model: str | Path, info: VolumeInfo, pixel_size: float | None
) -> tuple[int, int] | None:
    """Height and width of the slices as a bundle's network will see them; None if they differ.

    Raises:
        UserError: no such bundle, or as :func:`decide`.
    """
    spec = SegmenterSpec.from_dict(open_bundle(model, "segmenter").manifest.model)
    by = decide(info, spec, pixel_size=pixel_size).by
    return info.size if info.size is None or by is None else grown(info.size, by)


def _volume(info: VolumeInfo) -> str:
    size = "different sizes" if info.size is None else f"{info.size[1]} x {info.size[0]} pixels"
    noun = "slice" if info.slices == 1 else "slices"
    note = f"; {info.note}" if info.note else ""
    return f"volume: {info.slices} {noun} of {size}, {info.dtype}, axes {info.axes}{note}"


def _greys(info: VolumeInfo, spec: SegmenterSpec, greys: Greys) -> str:
    if spec.normalization == "unit":
        low, high = greys.limits or (0, 255)
        text = f"greys: from {low:g}, black, to {high:g}, white"
    elif spec.scope == "volume":
        text = "greys: standardised by the mean and deviation of the volume"
    else:
        text = "greys: each slice standardised by its own mean and deviation"
    if greys.limits and spec.normalization != "unit":
        text += f", clipped to {greys.limits[0]:g} to {greys.limits[1]:g}"
    elif spec.normalization != "unit" and info.dtype != "uint8":
        text += ", single pixels far from all others clipped"
    return text + (", then inverted" if greys.invert else ", not inverted")


def _pixel_size(
    info: VolumeInfo, spec: SegmenterSpec, given: float | None
) -> tuple[tuple[float, float] | None, tuple[float, float] | None, str]:
    trained = spec.pixel_size
    if given is not None:
        if trained is None:
            raise UserError(
                f"pixel size {given:g} nm: the model does not say which pixel size it was trained "
                "on, so that slices cannot be resampled to it; leave --pixel-size out"
            )
        size: tuple[float, float] | None = (given, given)
        source = "as given"
    elif info.voxel.y is not None and info.voxel.x is not None:
        size, source = (info.voxel.y, info.voxel.x), "as the file says"
    else:
        size, source = None, ""
    if size is None:
        if trained is None:
            return None, None, "pixel size: not known, neither the volume's nor the model's"
        return (
            None,
            None,
            f"pixel size: the file does not say; taken as the model's {trained:g} nm, or say it "
            "with --pixel-size",
        )
    text = f"pixel size: {_nanometres(size)} nm, {source}"
    if trained is None:
        return size, None, f"{text}; the model does not say its own: not resampled"
    by = factors(size, trained)
    if by is None:
        return size, None, f"{text}; the model's is {trained:g} nm: not resampled"
    return size, by, f"{text}; resampled to the model's {trained:g} nm and back"


def _nanometres(size: tuple[float, float]) -> str:
    return f"{size[0]:g}" if size[0] == size[1] else f"{size[0]:g} (rows) x {size[1]:g} (columns)"
