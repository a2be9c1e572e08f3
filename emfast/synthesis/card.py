"""The card of a set: README.md, from which a reader can cite, repeat and judge it.

Its header is what the Hugging Face Hub and ``datasets`` read.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from emfast.synthesis.card_reading import reading_folders, reading_tars
from emfast.synthesis.card_scores import score_tables
from emfast.synthesis.card_selection import selection_section
from emfast.synthesis.manifest import METADATA
from emfast.synthesis.markdown import paragraph, table
from emfast.synthesis.summary import Summary

CARD = "README.md"
CONTACT = "contact.png"
# Classes of the Hub's size_categories: most images and name.
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
LARGEST = "10M<n<100M"


def card(
    record: dict[str, Any],
    summary: Summary,
    manifest_sha256: str,
    tars: Sequence[str] = (),
) -> str:
    """Write the card of a set.

    Args:
        record: what ``job.json`` says.
        summary: of all its images.
        manifest_sha256: of ``manifest.jsonl``, which holds those of all images.
        tars: names of the tars, for a set that is packed; none for a folder of images.
    """
    parts = [
        _header(record, summary, tars),
        _introduction(record, summary),
        "## Repeat it",
        _repetition(record, summary, manifest_sha256),
        *_selected(record),
        "## Scores",
        score_tables(record["model"], summary),
        "## Read it",
        reading_tars(record, tars) if tars else reading_folders(record),
        "## Judge it",
        _judgement(),
        "## Limits",
        _limits(record),
        "## Data and licence",
        _terms(record),
        "## Cite it",
        _citation(record, summary, manifest_sha256),
    ]
    return "\n\n".join(parts) + "\n"


def _selected(record: dict[str, Any]) -> list[str]:
    selection = record.get("selection")
    return ["## Selection", selection_section(selection)] if selection else []


def command(record: dict[str, Any]) -> str:
    """The command that draws a set."""
    model, engine = record["model"], record["engine"]
    drawn = record["selection"]["drawn"] if "selection" in record else record["count"]
    eta = [] if record["eta"] is None else ["--eta", record["eta"]]
    reuse = ["--reuse", record["reuse"]] if "reuse" in record else []
    batch = [] if record["batch"] is None else ["--batch", record["batch"]]
    lines = [
        ["emfast", "generate", "--out", "SET", "--count", drawn, "--seed", record["seed"]],
        ["--model", model["name"] if model["shipped"] else "BUNDLE"],
        ["--sampler", record["sampler"], *eta, "--steps", record["steps"], *reuse],
        ["--size", *record["size"], *batch],
        ["--engine", engine["name"], "--precision", engine["precision"]],
    ]
    if record["pairs"]:
        lines[-1].append("--rgb")
    return " \\\n  ".join(shlex.join(str(word) for word in line) for line in lines)


def _header(record: dict[str, Any], summary: Summary, tars: Sequence[str]) -> str:
    size = next((name for most, name in SIZES if summary.images < most), LARGEST)
    paths = ["*.tar"] if tars else [METADATA, "images/*.png", "masks/*.png"]
    if record["pairs"] and not tars:
        paths.append("pairs/*.png")
    lines = [
        "---",
        "license: other",
        "license_name: terms-of-the-training-data",
        f"license_link: {CARD}#data-and-licence",
        f"pretty_name: {_title(summary)}, {record['model']['name']}, seed {record['seed']}",
        "task_categories:",
        "- image-segmentation",
        "tags:",
        *(f"- {tag}" for tag in ("synthetic", "electron-microscopy", "diffusion", "emfast")),
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path:",
        *(f'    - "{path}"' for path in paths),
        "---",
    ]
    return "\n".join(lines)


def _title(summary: Summary) -> str:
    return f"{summary.images} synthetic labelled EM image" + ("s" if summary.images > 1 else "")


def _introduction(record: dict[str, Any], summary: Summary) -> str:
    height, width = record["size"]
    classes = record["model"]["classes"]
    values = (
        "0 for background and 255 for the object"
        if classes == 1
        else f"0 for background and the labels 1 to {classes}"
    )
    shown = len(summary.first)
    told = f"""Images of {width} x {height} pixels in 8-bit grey, each with its mask: {values}. The
    diffusion network `{record["model"]["name"]}` drew image and mask together. No microscope took
    the images and nobody annotated the masks."""
    return f"""# {_title(summary)}

{paragraph(told)}

![The first {shown} images; below each, its mask outlined]({CONTACT})

*The first {shown}; below each image, the mask that was drawn with it, outlined.*"""


def _repetition(record: dict[str, Any], summary: Summary, manifest_sha256: str) -> str:
    model = record["model"]
    where = "" if model["shipped"] else f"; BUNDLE is the folder of `{model['name']}`"
    ran = "; ".join(
        f"{engine} ({runtime}), {precision.upper()}, {device}"
        for engine, runtime, precision, device in summary.ran
    )
    rows = [
        ("model", f"`{model['name']}`, SHA-256 of its manifest.json `{model['sha256']}`"),
        ("drawn with", f"emfast {record['emfast']}"),
        ("engine", ran),
        ("sampling", f"{_sampling(record)}, seed {record['seed']}"),
        ("manifest.jsonl", f"SHA-256 `{manifest_sha256}`; it holds those of all images"),
    ]
    commands = command(record)
    if "selection" in record:
        commands += f"\n{record['selection']['command']}"
    return f"""```
{commands}
```

SET is a new folder{where}.

{table(("", ""), rows)}

The same command gives the same bytes with the same versions on a machine of the same kind. With
another engine, processor or GPU, greys differ by rounding."""


def _sampling(record: dict[str, Any]) -> str:
    eta = f", eta {record['eta']:g}" if record["eta"] is not None else ""
    reuse = f", deep features kept for {record['reuse']}" if "reuse" in record else ""
    return f"{record['sampler']}{eta}, {record['steps']} steps{reuse}"


def _judgement() -> str:
    return """`emfast report REAL SET --out report` compares the set with real slices and puts every
score beside the one that real slices reach against each other: distances of greys, textures
and features, the shape of the masks, their agreement with a segmenter, and copies of training
images. The picture above shows the first images, not the best."""


def _limits(record: dict[str, Any]) -> str:
    selected = (
        "emfast select chose the images by their scores; no person has looked at them."
        if "selection" in record
        else "Nothing was selected: poor images and masks are in it."
    )
    return f"""- Synthetic: the masks are drawn, not annotated. They are no ground truth for
  measuring a method, and as good for training as a study with real validation data shows.
- {selected}
- The model knows the tissue, the microscope and the pixel size that it was trained on, and no
  others. The same goes for the biases of those who annotated that data.
- Generated images can resemble training images closely; the report looks for copies."""


def _terms(record: dict[str, Any]) -> str:
    terms = record["model"]["terms"]
    if terms:
        return f"Of the model that drew the set, and so of the set:\n\n{terms}"
    return (
        f"The bundle of `{record['model']['name']}` tells nothing of the data that the model was "
        "trained on, nor of their licence. Ask who trained it before you pass the set on."
    )


def _citation(record: dict[str, Any], summary: Summary, manifest_sha256: str) -> str:
    model = record["model"]
    told = f"""{_title(summary)}, drawn by {model["name"]} (SHA-256 {model["sha256"][:16]}) with
    emfast {record["emfast"]}: {_sampling(record)}, seed {record["seed"]}.
    SHA-256 of the manifest: {manifest_sha256[:16]}."""
    quoted = "\n".join(f"> {text}" for text in paragraph(told).splitlines())
    return f"Cite the data's authors as told above, and the set as\n\n{quoted}"
