"""What OME-Zarr (0.4 and 0.5) says of its images: scales, axes and voxel size."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from emfast.volumes.axes import named_axes
from emfast.volumes.units import nanometres
from emfast.volumes.volume import VoxelSize

Json = dict[str, Any]


@dataclass(frozen=True)
class Multiscale:
    """One image in several scales.

    Attributes:
        group: path of the group that has them, "" for the root.
        content: the entry of ``multiscales`` in its attributes.
        version: of OME-Zarr.
        nested: whether the group's attributes are under a key of their own, as from 0.5 on.
    """

    group: str
    content: Json
    version: str
    nested: bool

    @classmethod
    def of(cls, group: str, attributes: Mapping[str, Any]) -> Multiscale | None:
        """The first image of a group; None where it is not one of OME's."""
        ome = attributes.get("ome", attributes)
        entries = ome.get("multiscales") if isinstance(ome, Mapping) else None
        if not entries:
            return None
        version = ome.get("version") or entries[0].get("version") or "0.4"
        return cls(group, entries[0], str(version), "ome" in attributes)

    @property
    def paths(self) -> list[str]:
        """The arrays' paths in the Zarr, the finest first."""
        return [f"{self.group}/{d['path']}".strip("/") for d in self.content["datasets"]]

    @property
    def axes(self) -> str | None:
        """Letters of the axes; None where they are not named or otherwise."""
        # Plain names before 0.4.
        entries = self.content.get("axes", [None])
        return named_axes([e.get("name") if isinstance(e, Mapping) else e for e in entries])

    def voxel_size(self, path: str) -> VoxelSize:
        """Of the array at ``path``."""
        axes = self.content.get("axes", [])
        scale = [1.0] * len(axes)
        dataset = self.content["datasets"][self.paths.index(path)]
        found = False
        for owner in (dataset, self.content):
            for transform in owner.get("coordinateTransformations", []):
                if transform.get("type") == "scale":
                    found = True
                    scale = [a * b for a, b in zip(scale, transform["scale"], strict=True)]
        sizes = {
            str(axis.get("name", "")).lower(): nanometres(value, axis.get("unit"))
            for axis, value in zip(axes, scale, strict=True)
            if isinstance(axis, Mapping) and found
        }
        return VoxelSize(sizes.get("z"), sizes.get("y"), sizes.get("x"))

    def attributes(self, path: str, channel: int | None, labels: bool) -> Json:
        """Attributes of a group with the array at ``path`` alone.

        Args:
            path: of the array in the Zarr.
            channel: where an axis of channels has been put into the array, or None.
            labels: whether the values are labels of objects.
        """
        content = deepcopy({k: v for k, v in self.content.items() if k not in ("type", "metadata")})
        dataset = content["datasets"][self.paths.index(path)]
        content["datasets"] = [dataset]
        if channel is not None:
            content.get("axes", []).insert(channel, {"name": "c", "type": "channel"})
            for owner in (dataset, content):
                for transform in owner.get("coordinateTransformations", []):
                    for kind, neutral in (("scale", 1.0), ("translation", 0.0)):
                        if kind in transform:
                            transform[kind].insert(channel, neutral)
        ome: Json = {"multiscales": [content]}
        if labels:
            ome["image-label"] = {"version": self.version}
        return {"ome": {"version": self.version, **ome}} if self.nested else ome
