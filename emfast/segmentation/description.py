"""The entries of segment.json."""

from __future__ import annotations

import os
from typing import Any

from emfast.segmentation.decisions import Decisions
from emfast.segmentation.record import file_stamp
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from emfast.volumes import VolumeReader


def describe(
    reader: VolumeReader, segmenter: Segmenter, settings: Settings, decisions: Decisions
) -> dict[str, Any]:
    """What a run is asked for and how it reads the volume, ready for JSON.

    Runs that agree on it, but for the entries :data:`~emfast.segmentation.record.FREE`, write the
    same masks.
    """
    info, spec = reader.info, segmenter.spec
    values = range(1, spec.classes + 1) if spec.classes > 1 or settings.ones else [255]
    return {
        "input": os.path.abspath(info.path),
        "stamp": None if info.format == "images" else file_stamp(reader.path),
        "slices": info.slices,
        "size": None if info.size is None else list(info.size),
        "dtype": str(info.dtype),
        "axes": info.axes,
        "bundle": {"name": segmenter.bundle.manifest.name, "sha256": segmenter.bundle.sha256},
        "engine": segmenter.info.to_dict(),
        "passed_over": list(segmenter.passed_over),
        "threshold": spec.threshold,
        "normalize": spec.scope if spec.normalization == "standardize" else spec.normalization,
        "invert": settings.invert,
        "range": None if settings.limits is None else list(settings.limits),
        "pixel_size": None if decisions.pixel_size is None else list(decisions.pixel_size),
        "resampled": None if decisions.by is None else list(decisions.by),
        "tile": segmenter.tile,
        "overlap": segmenter.overlap,
        "flips": segmenter.flips,
        "median": settings.median,
        "values": dict(zip(spec.labels, values, strict=True)),
        "probability": settings.probability,
        "overlay": settings.overlay,
        "instances": None
        if settings.instances is None
        else {
            "method": settings.instances,
            "min_size": settings.min_size,
            "fill_holes": settings.fill_holes,
        },
        "decisions": list(decisions.lines),
        "complete": False,
    }
