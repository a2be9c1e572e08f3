"""The examples of docs/server.md, run as they stand."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.emfast.server.serving import Server, encoded, load_image, sample

GUIDE = Path(__file__).parents[3] / "docs/server.md"
ADDRESS = "http://127.0.0.1:8000"


def example(language: str, server: Server) -> str:
    """The guide's first block of a language, sent to the test's server."""
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    assert ADDRESS in found[1]
    return found[1].replace(ADDRESS, server.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server, tmp_path: Path) -> None:
    (tmp_path / "slice.png").write_bytes(encoded(sample()))
    stack = np.stack([sample(), sample(top=100)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    command = ["sh", "-e", "-c", example("sh", server)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_image((tmp_path / "mask.png").read_bytes()).shape == (96, 128)
    assert tifffile.imread(tmp_path / "masks.tif").shape == (2, 96, 128)
    assert json.loads((tmp_path / "objects.json").read_text())["threshold"] == 0.6


def test_python(server: Server) -> None:
    names: dict[str, object] = {}
    exec(example("python", server), names)
    segment = names["segment"]
    assert callable(segment)
    mask = load_image(server.post(encoded(sample())).content)
    np.testing.assert_array_equal(segment(sample()), mask)
    assert segment(np.stack([sample()] * 2)).shape == (2, 96, 128)


def test_every_metric_of_the_guide_is_there(server: Server) -> None:
    server.post(encoded(sample()))
    text = server.get("/metrics").text
    table = GUIDE.read_text().split("## Metrics")[1]
    names = re.findall(r"`((?:emfast|process)_\w+)", table)
    assert len(names) > 10
    for name in names:
        assert f"# TYPE {name} " in text or f"\n{name}" in text, name


def test_every_option_of_the_guide_is_there() -> None:
    options = set(re.findall(r"`(--[a-z-]+)", GUIDE.read_text())) - {"--token"}
    source = (Path(__file__).parents[3] / "emfast/cli/serve.py").read_text()
    for option in options:
        assert option.lstrip("-").replace("-", "_") in source, option


def test_openapi_names_every_status_of_the_guide(server: Server) -> None:
    told = server.get("/openapi.json").json()["paths"]["/v1/segment"]["post"]["responses"]
    guide = set(re.findall(r"^\| (4\d\d|503) \|", GUIDE.read_text(), re.MULTILINE))
    assert guide == {status for status in told if status != "200"}


def test_the_content_type_does_not_count(server: Server) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, sample(), compression="lzw")
    assert server.post(file.getvalue(), headers={"content-type": "text/plain"}).status_code == 200
