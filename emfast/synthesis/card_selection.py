"""What the card of a selected set says of the selection."""

from __future__ import annotations

from typing import Any

from emfast.synthesis.markdown import paragraph, table


def selection_section(selection: dict[str, Any]) -> str:
    """By what images were kept, and how many were not.

    Args:
        selection: what ``job.json`` of a selected set says of it.
    """
    images, accepted, rules = selection["images"], selection["accepted"], selection["rules"]
    segmenter, real = selection["segmenter"], selection["real"]
    parts = [
        paragraph(
            f"Of {images} images {accepted} are kept, {100 * accepted / images:.1f} %. REAL is "
            f"`{real['name']}`, {real['slices']} slices from {real['first']} to {real['last']} "
            f"(SHA-256 of their files `{real['sha256']}`). The segmenter is `{segmenter['name']}` "
            f"(SHA-256 of its manifest.json `{segmenter['sha256']}`), {segmenter['precision']} on "
            f"{segmenter['runtime']}."
        ),
        table(["to be kept, an image needs", ""], _limits(rules)),
    ]
    if selection["reasons"]:
        counts = sorted(selection["reasons"].items(), key=lambda item: -item[1])
        told = [(selection["meanings"][name], count) for name, count in counts]
        parts.append(table(["rejected", "images"], told))
        parts.append(
            paragraph(
                "An image may have several reasons. `rejected.jsonl` has those of each, "
                "`rejected.png` shows examples, and docs/selection.md of emfast says what the "
                "scores mean."
            )
        )
    if selection["repaired"] is not None:
        parts.append(
            paragraph(
                f"Masks are repaired: holes filled and specks dropped in {selection['repaired']} "
                "of the kept ones. The manifest tells for each what was changed, and the SHA-256 "
                "of the mask that was drawn."
            )
        )
    return "\n\n".join(parts)


def _limits(rules: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            "agreement of its mask with the segmenter, Dice",
            f"{rules['agreement']:g} or more, or at most {100 * rules['disagreement']:.3g} % of "
            "the pixels differ",
        ),
        (
            "distance to real tiles in feature space, 1 for a middling real tile",
            f"at most {rules['distance']:.3g}",
        ),
        ("similarity to any real place", f"at most {rules['similarity']:.3g}"),
        ("specks inside", f"at most {rules['specks']}"),
        ("share of object pixels", f"at most {rules['area']:.3g}"),
        (
            "objects, and those cut by the border",
            f"at most {rules['objects']}, and {rules['cut']}",
        ),
    ]
    if rules["best"] is not None:
        rows.append(("rank among those that pass", f"the best {100 * rules['best']:.3g} %"))
    if rules["first"] is not None:
        rows.append(("place among those that pass", f"the first {rules['first']}"))
    if rules["match"]:
        rows.append(("area and number of objects", "in the mix of real tiles"))
    return rows
