"""The voxel size that a TIFF says: OME's, ImageJ's, or pixels per centimetre or inch."""

from __future__ import annotations

from xml.etree.ElementTree import Element, XMLPullParser

import tifffile

from emfast.volumes.units import nanometres
from emfast.volumes.volume import VoxelSize

# A resolution in pixels per centimetre or inch is a voxel size only below this: 72 or 300 per inch
# are for printers, and no electron microscope's pixel is as large as 1 micrometre.
LARGEST_PIXEL_NM = 1000.0
PRINTERS_UNITS = ("cm", "inch")
# OME's XML is read up to its first image, which comes within so many characters: what a stranger
# sends could take a hundred times its length in memory.
OME_HEAD = 2**20


def tiff_voxel_size(tiff: tifffile.TiffFile, flavour: str | None = None) -> VoxelSize:
    """The voxel size of the first image, without reading any pixels.

    Args:
        tiff: of at least one page.
        flavour: "ome", "imagej" or "plain", where it is known from the file's series.
    """
    if flavour is None:
        flavour = "ome" if tiff.is_ome else "imagej" if tiff.is_imagej else "plain"
    if flavour == "ome":
        return _ome(tiff.ome_metadata)
    # Pixels per unit, (1, 1) where the file does not say.
    x, y = (1 / r if r else None for r in tiff.pages.first.resolution)
    if flavour == "imagej":
        metadata = tiff.imagej_metadata or {}
        unit = metadata.get("unit")
        if unit not in PRINTERS_UNITS and nanometres(1, unit) is not None:
            spacing = metadata.get("spacing")
            return VoxelSize(nanometres(spacing, unit), nanometres(y, unit), nanometres(x, unit))
    units = (int(tifffile.RESUNIT.CENTIMETER), int(tifffile.RESUNIT.INCH))
    unit = dict(zip(units, PRINTERS_UNITS, strict=True)).get(int(tiff.pages.first.resolutionunit))
    sizes = [nanometres(size, unit) for size in (y, x)]
    if None in sizes or max(s for s in sizes if s) > LARGEST_PIXEL_NM:
        return VoxelSize(None, None, None)
    return VoxelSize(None, *sizes)


def _ome(xml: str | None) -> VoxelSize:
    parser: XMLPullParser[Element] = XMLPullParser(("start",))
    parser.feed((xml or "")[:OME_HEAD])
    pixels: dict[str, str] = {}
    for event in parser.read_events():
        element = event[-1]
        if isinstance(element, Element) and element.tag.rpartition("}")[2] == "Pixels":
            pixels = element.attrib
            break

    def size(axis: str) -> float | None:
        # The schema's unit where none is written.
        unit = pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")
        return nanometres(pixels.get(f"PhysicalSize{axis}"), unit)

    return VoxelSize(size("Z"), size("Y"), size("X"))
