"""A comparison as one HTML page that holds everything it shows."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined
from PIL import Image

from emfast import __version__
from emfast.data.tiles import Tiles
from emfast.pictures import outline, overlay
from emfast.quality import scores
from emfast.quality.charts import (
    OTHER,
    REAL,
    SYNTHETIC,
    decibel_chart,
    grey_chart,
    shares_chart,
    spectrum_chart,
)
from emfast.quality.comparison import Comparison, Example
from emfast.quality.image_scores import SPECK
from emfast.quality.measures import (
    Measures,
    mean_spectrum,
    total_greys,
    total_object_greys,
)
from emfast.quality.novelty import Match
from emfast.quality.sets import split_halves

Uint8 = npt.NDArray[np.uint8]

TEMPLATE = Path(__file__).parent / "report.html.j2"
SAMPLES = 8
PAIRS = 6
SEEN = (40, 140, 255)
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Chart:
    """A chart with what it shows, in words."""

    source: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """One or several pictures side by side, with a line below."""

    sources: tuple[str, ...]
    caption: str


def render(comparison: Comparison) -> str:
    """The page of a comparison, HTML without references to anything outside it."""
    # Autoescaping is on: names of files and models come from the user.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    c = comparison
    sets = {"Synthetic": c.synthetic_tiles, "Real": c.real_set.tiles}
    page: str = template.render(
        version=__version__,
        facts=c.facts,
        rows=c.rows,
        groups=scores.GROUPS,
        summary=[scores.SCORES[name] for name in scores.SUMMARY],
        samples={title: _samples(tiles) for title, tiles in sets.items()},
        charts=_charts(c),
        examples={
            "Least agreement": _examples(c, c.worst),
            "Middling": _examples(c, c.middling),
            "Best": _examples(c, c.best),
        },
        copies=_copies(c),
        coincidences=_coincidences(c),
        coincidence=scores.number(c.novelty.coincidence, 2),
        threshold=scores.number(c.novelty.threshold, 2),
    )
    return page


def _samples(tiles: Tiles) -> list[Picture]:
    """Images evenly over a set, plain and with their masks outlined."""
    chosen = np.linspace(0, len(tiles) - 1, min(SAMPLES, len(tiles))).round().astype(int)
    pairs = zip(tiles.images[chosen], tiles.stack().labels()[chosen], strict=True)
    return [Picture((_jpeg(image), _jpeg(overlay(image, mask))), "") for image, mask in pairs]


def _charts(c: Comparison) -> dict[str, list[Chart]]:
    """Charts by the name of their group."""
    real, synthetic = c.real_measures, c.synthetic_measures
    sets = (("real", REAL, real), ("synthetic", SYNTHETIC, synthetic))

    def areas(measures: Sequence[Measures]) -> list[float]:
        return [m.area_fraction for m in measures]

    def sizes(measures: Sequence[Measures]) -> list[float]:
        return [float(component.area) for m in measures for component in m.components]

    def dices(measures: Sequence[Measures]) -> list[float]:
        return [m.agreement.dice for m in measures]

    found, side = c.novelty, c.facts["synthetic"]["size"]
    in_first = split_halves(np.array([tile.slice for tile in c.real_set.tiles.origins]))
    first, second = (
        [m for m, inside in zip(real, part, strict=True) if inside]
        for part in (in_first, ~in_first)
    )
    similarities = (
        ("real, far slices", REAL, [m.similarity for m in found.coincidences]),
        ("real, next slice", OTHER, found.neighbours),
        ("synthetic", SYNTHETIC, [m.similarity for m in found.matches]),
    )
    most = max(areas(real) + areas(synthetic)) or 1.0
    largest = max([*sizes(real), *sizes(synthetic), 2.0 * SPECK])
    charts = {
        "grey": [
            (grey_chart(c.real_set.greys, total_greys(synthetic)), "Whole images."),
            (
                grey_chart(c.real_set.object_greys, total_object_greys(synthetic)),
                "Mitochondria.",
            ),
        ],
        "texture": [
            (
                spectrum_chart(mean_spectrum(real), mean_spectrum(synthetic), side),
                "Mean power spectra of real tiles and synthetic images.",
            ),
            (
                decibel_chart(
                    [
                        ("synthetic", SYNTHETIC, mean_spectrum(synthetic)),
                        ("real, first half", REAL, mean_spectrum(first)),
                        ("real, second half", OTHER, mean_spectrum(second)),
                    ],
                    mean_spectrum(real),
                    side,
                ),
                "The same against all real tiles. Above 0 there is too much of a detail.",
            ),
        ],
        "masks": [
            (
                shares_chart(
                    [(name, color, areas(m)) for name, color, m in sets],
                    "area of mitochondria in an image",
                    (0.0, most),
                    percent=True,
                ),
                "Share of the images.",
            ),
            (
                shares_chart(
                    [(name, color, sizes(m)) for name, color, m in sets],
                    "size of an object in pixels",
                    (1.0, largest),
                    mark=SPECK,
                    logarithmic=True,
                ),
                f"Share of the objects; left of the dashed line, {SPECK} pixels, are specks.",
            ),
        ],
        "agreement": [
            (
                shares_chart(
                    [(name, color, dices(m)) for name, color, m in sets], "Dice", (0.0, 1.0)
                ),
                "Share of the images. Where neither the mask nor the segmenter has an object, Dice "
                "is 1.",
            )
        ],
        "copies": [
            (
                shares_chart(similarities, "similarity", (0.0, 1.0), mark=found.threshold),
                "Share of the images. Right of the dashed line are near copies. Grey: tiles and "
                "the same place of the next slice, nearly copies where slices lie close.",
            )
        ],
    }
    return {
        group: [Chart(_data("image/svg+xml", svg.encode()), text) for svg, text in drawn]
        for group, drawn in charts.items()
    }


def _examples(c: Comparison, examples: Sequence[Example]) -> list[Picture]:
    """Images with the outlines of their masks and of what the segmenter sees."""
    masks = c.synthetic_tiles.stack().labels()
    pictures = []
    for example in examples:
        rgb = overlay(c.synthetic_tiles.images[example.index], masks[example.index])
        rgb[outline(example.seen)] = SEEN
        dice = c.synthetic_measures[example.index].agreement.dice
        text = f"{c.names[example.index]}: Dice {dice:.2f}"
        pictures.append(Picture((_jpeg(rgb),), text))
    return pictures


def _copies(c: Comparison) -> list[Picture]:
    """The synthetic images that are most similar to a real place, each beside that place."""
    found = sorted(
        zip(c.novelty.searched, c.novelty.matches, strict=True), key=lambda f: -f[1].similarity
    )
    return [
        _pair(c, c.synthetic_tiles.images[index], match, c.names[index])
        for index, match in found[:PAIRS]
    ]


def _coincidences(c: Comparison) -> list[Picture]:
    """The real tiles that are most similar to a place of a far slice, each beside that place."""
    found = sorted(
        zip(c.novelty.tiles, c.novelty.coincidences, strict=True), key=lambda f: -f[1].similarity
    )
    tiles = c.real_set.tiles
    return [
        _pair(c, tiles.images[index], match, c.real.names[tiles.origins[index].slice])
        for index, match in found[: PAIRS // 2]
    ]


def _pair(c: Comparison, image: Uint8, match: Match, name: str) -> Picture:
    place = match.window(c.real.image(match.slice), len(image))
    text = (
        f"Similarity {match.similarity:.2f}: {name} | {c.real.names[match.slice]}, "
        f"x {match.x}, y {match.y}"
    )
    return Picture((_jpeg(image), _jpeg(place)), text)


def _jpeg(pixels: Uint8) -> str:
    """A data URI of grey or RGB pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return _data("image/jpeg", file.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
