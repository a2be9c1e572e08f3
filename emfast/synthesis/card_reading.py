"""How training code reads a set, for its card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emfast.synthesis.manifest import COLUMNS


def reading_folders(record: dict[str, Any]) -> str:
    """How to read a folder of images.

    Args:
        record: what ``job.json`` says.
    """
    names = [column.removesuffix("file_name").strip("_") or "image" for column in COLUMNS.values()]
    columns = names if record["pairs"] else names[:2]
    masks = _masks(record)
    told = ", ".join(f"`{column}`" for column in columns)
    return f"""As a Hugging Face dataset, with the columns {told}, the number of the image, how it
was drawn and its scores:

```python
from datasets import load_dataset

rows = load_dataset("imagefolder", data_dir="SET", split="train")
image, mask = rows[0]["image"], rows[0]["mask"]  # PIL images
```

As WebDataset tars, after `emfast pack SET --out TARS`:

```python
import webdataset

tars = "TARS/set-{{000000..NNNNNN}}.tar"  # NNNNNN: the last one
rows = webdataset.WebDataset(tars, shardshuffle=False).decode("l8")
for image, mask in rows.to_tuple("image.png", "mask.png"):  # uint8 (height, width)
    target = {masks.format("mask")}
```

As files: `images/NNNNNN.png` belongs to `masks/NNNNNN.png`.

```python
import numpy
from PIL import Image

image = numpy.asarray(Image.open("SET/images/000000.png"))
target = {masks.format('numpy.asarray(Image.open("SET/masks/000000.png"))')}
```"""


def reading_tars(record: dict[str, Any], tars: Sequence[str]) -> str:
    """How to read a packed set.

    Args:
        record: what ``job.json`` says.
        tars: their names.
    """
    masks = _masks(record)
    first, last = (name.removesuffix(".tar").rpartition("-")[2] for name in (tars[0], tars[-1]))
    urls = f"TARS/set-{{{first}..{last}}}.tar" if first != last else f"TARS/{tars[0]}"
    pair = " `NNNNNN.pair.png` is the paper's RGB pair." if record["pairs"] else ""
    return f"""In each tar `NNNNNN.image.png` is an image, `NNNNNN.mask.png` its mask and
`NNNNNN.json` its number, how it was drawn and its scores.{pair}

```python
import webdataset

tars = "{urls}"
rows = webdataset.WebDataset(tars, shardshuffle=False).decode("l8")
for image, mask in rows.to_tuple("image.png", "mask.png"):  # uint8 (height, width)
    target = {masks.format("mask")}
```

```python
from datasets import load_dataset

rows = load_dataset("TARS", split="train", streaming=True)  # image.png, mask.png, json
```"""


def _masks(record: dict[str, Any]) -> str:
    """How to turn a mask as stored into what a network learns."""
    classes = record["model"]["classes"]
    return "{} > 0" if classes == 1 else "{}  # labels, 0 to " + str(classes)
