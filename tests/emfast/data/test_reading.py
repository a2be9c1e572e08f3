from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emfast.data.reading import readable
from engines.errors import UserError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "a.tif: may not be read"),
        (
            ValueError("two\n  lines"),
            "a.tif: cannot be read, truncated or damaged (two lines)",
        ),
        (UserError("b.tif: is something else"), "b.tif: is something else"),
    ],
)
def test_one_line_each(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as caught, readable("a.tif"):
        raise error
    assert str(caught.value) == message


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt), readable("a.tif"):
        raise KeyboardInterrupt


WITHOUT = """
import sys
sys.modules["imagecodecs"] = None
from pathlib import Path
from emfast.data.image import read_pages
from engines.errors import UserError
for name in sys.argv[1:]:
    try:
        read_pages(Path(name))
        print("read")
    except UserError as error:
        print(error)
"""


def test_compressions_without_the_package_that_has_them(tmp_path: Path) -> None:
    """tifffile tells that it is missing in one way for some and in another for others."""
    pytest.importorskip("imagecodecs")
    image = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    paths = [tmp_path / f"{name}.tif" for name in ("zlib", "lzw", "zstd", "jpeg")]
    for path in paths:
        tifffile.imwrite(path, image, photometric="minisblack", compression=path.stem)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = done.stdout.splitlines()
    assert told[0] == "read"
    for path, line in zip(paths[1:], told[1:], strict=True):
        assert line.startswith(
            f"{path}: its compression needs imagecodecs (pip install 'emfast[volumes]')"
        )
