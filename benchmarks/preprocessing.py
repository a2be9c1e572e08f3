"""What pixel size and inversion matter: the sample slice as another microscope would store it.

The slice is rescaled, inverted and stored as 16 bits, then segmented with and without being told.

    python benchmarks/preprocessing.py --out docs/images/segmentation-preprocessing.jpg
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from emfast import Segmenter
from emfast.pictures import overlay
from emfast.quality.overlap import confusion
from emfast.segmentation.greys import Greys
from emfast.segmentation.overlays import shown

SAMPLE = files("emfast.data") / "sample"
GAP, TITLE = 8, 24


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="epfl-segmenter")
    parser.add_argument("--pixel-size", type=float, default=8.0, help="of the copy, in nm")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with Segmenter.open(options.model, options.engine, threads=options.threads) as segmenter:
        trained = segmenter.spec.pixel_size
        if trained is None:
            parser.error(f"{options.model} does not say its pixel size")
        image, mask = (Image.open(str(SAMPLE / f"{name}.png")) for name in ("image", "mask"))
        size = tuple(round(side * trained / options.pixel_size) for side in image.size)
        small = np.asarray(image.convert("F").resize(size, Image.Resampling.LANCZOS))
        stored = np.rint(np.clip(255 - small, 0, 255) * 200 + 1000).astype(np.uint16)
        truth = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        told = (options.pixel_size,) * 2
        runs = {
            "as it is": segmenter.segment(stored[None])[0],
            "--invert": segmenter.segment(stored[None], Greys(invert=True))[0],
            f"--pixel-size {told[0]:g}": segmenter.segment(stored[None], pixel_size=told)[0],
            f"--invert --pixel-size {told[0]:g}": segmenter.segment(
                stored[None], Greys(invert=True), told
            )[0],
        }
        original = segmenter.segment(np.asarray(image)[None])[0]
        print(f"{segmenter.info}; {size[0]} x {size[1]} pixels of {told[0]:g} nm")
        score = confusion(original, np.asarray(mask)).dice
        print(f"| original slice, {trained:g} nm | {score:.4f} |")
        panels = []
        for name, labels in runs.items():
            score = confusion(labels, truth).dice
            print(f"| {name} | {score:.4f} |")
            panels.append((f"{name}: Dice {score:.3f}", overlay(shown(stored), labels)))
    picture(panels).save(options.out)


def picture(panels: list[tuple[str, npt.NDArray[np.uint8]]]) -> Image.Image:
    """Panels with their titles, two in a row."""
    height, width = panels[0][1].shape[:2]
    rows = -(-len(panels) // 2)
    sheet = Image.new("RGB", (2 * width + GAP, rows * (height + TITLE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels):
        left, top = i % 2 * (width + GAP), i // 2 * (height + TITLE + GAP)
        draw.text((left + 2, top + 5), title, fill="black")
        sheet.paste(Image.fromarray(panel), (left, top + TITLE))
    return sheet


if __name__ == "__main__":
    main()
