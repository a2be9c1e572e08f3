"""Draw where a segmenter is good and bad: the places of two slices, its outline beside the labels'.

python docs/images/samples.py IMAGES MASKS LABELS OUT.jpg: folders whose files have the same names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.data.image import read_image
from emfast.pictures import OUTLINE, outline
from emfast.quality.overlap import confusion

SIDE = 384
STRIDE = 16
LABELLED = (64, 224, 255)

Uint8 = npt.NDArray[np.uint8]


def busiest(counted: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """The window of SIDE x SIDE pixels that counts the most of them."""
    rows, columns = (range(0, size - SIDE + 1, STRIDE) for size in counted.shape)
    places = [(slice(y, y + SIDE), slice(x, x + SIDE)) for y in rows for x in columns]
    return max(places, key=lambda place: int(counted[place].sum()))


def draw(image: Uint8, mask: Uint8, label: Uint8) -> Uint8:
    """The image with both outlines, the mask's on top; uint8 (height, width, 3)."""
    rgb = np.repeat(image[..., None], 3, axis=2)
    rgb[outline(label)] = LABELLED
    rgb[outline(mask)] = OUTLINE
    return rgb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("images", "masks", "labels", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    slices = []
    for path in sorted(arguments.masks.iterdir()):
        mask, label = (
            (read_image(folder / path.name) > 0).astype(np.uint8)
            for folder in (arguments.masks, arguments.labels)
        )
        image = read_image(arguments.images / path.name)
        slices.append((confusion(mask, label).dice, path.name, image, mask, label))
    slices.sort(key=lambda found: found[0])
    # The best slice where it holds most objects, the worst where it errs most.
    places = (busiest(slices[-1][4] > 0), busiest(slices[0][3] != slices[0][4]))
    parts = []
    for (dice, name, *arrays), place in zip((slices[-1], slices[0]), places, strict=True):
        print(f"{name}, Dice {dice:.4f}: rows from {place[0].start}, columns from {place[1].start}")
        parts.append(draw(*(array[place] for array in arrays)))
    Image.fromarray(np.concatenate(parts, axis=1)).save(arguments.out, quality=90)


if __name__ == "__main__":
    main()
