"""Check a built wheel: its size, its packages and the files that must travel in it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LIMIT_MB = 60
PACKAGES = {"emfast", "engines", "export"}
NEEDED = (
    "emfast/py.typed",
    "emfast/data/sample/image.png",
    "emfast/data/sample/README.md",
    "emfast/diffusion/step.cu",
    "emfast/quality/encoder/manifest.json",
    "emfast/quality/report.html.j2",
    "engines/probe.onnx",
    "engines/py.typed",
    "engines/models/epfl-denoiser/manifest.json",
    "engines/models/epfl-segmenter/manifest.json",
    "export/py.typed",
)


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    size = wheel.stat().st_size / 1e6
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    missing = [name for name in NEEDED if name not in names]
    print(f"{wheel.name}: {size:.1f} MB, packages {', '.join(sorted(top))}")
    if size >= LIMIT_MB:
        sys.exit(f"the wheel must stay under {LIMIT_MB} MB")
    if top != PACKAGES:
        sys.exit(f"the wheel must hold {sorted(PACKAGES)} and nothing else")
    if missing:
        sys.exit(f"missing in the wheel: {', '.join(missing)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
