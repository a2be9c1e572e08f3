"""Volumes on disk: read lazily, written in the same layout."""

from emfast.volumes.opening import create_like, open_volume
from emfast.volumes.volume import VolumeInfo, VolumeReader, VolumeWriter, VoxelSize

__all__ = [
    "VolumeInfo",
    "VolumeReader",
    "VolumeWriter",
    "VoxelSize",
    "create_like",
    "open_volume",
]
