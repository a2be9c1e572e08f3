"""The installed command, as a user meets it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emfast import __version__
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

EMFAST = Path(sys.executable).with_name("emfast")


def emfast(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(EMFAST), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert emfast("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_version() -> None:
    assert emfast("--version").stdout.strip() == f"emfast {__version__}"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "generate",
        "segment",
        "evaluate",
        "export",
        "train",
        "train denoiser",
        "train segmenter",
        "data",
        "data info",
        "data split",
        "data tiles",
        "data fetch",
    ],
)
def test_every_help_has_an_example(command: str) -> None:
    result = emfast(*command.split(), "--help")
    assert result.returncode == 0
    assert "Example: emfast" in result.stdout


def test_help_needs_no_heavy_module() -> None:
    code = (
        "import sys, emfast.cli.main; "
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'tifffile', 'PIL', 'matplotlib'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good and bad input beside each other."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    image.save(tmp_path / "good.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("no image")
    image.resize((40, 64)).save(tmp_path / "small.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "empty").mkdir()
    write_segmenter_bundle(tmp_path / "segmenter")
    write_denoiser_bundle(tmp_path / "denoiser")
    write_segmenter_bundle(tmp_path / "corrupt")
    with (tmp_path / "corrupt/model.onnx").open("ab") as file:
        file.write(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("segment missing.png --out out --model segmenter", "missing.png"),
        ("segment truncated.png --out out --model segmenter", "truncated or damaged"),
        ("segment text.png --out out --model segmenter", "text.png"),
        ("segment empty --out out --model segmenter", "holds no images"),
        ("segment good.png --out out --model corrupt", "was altered or damaged"),
        ("segment good.png --out out --model denoiser", "is a denoiser"),
        ("segment good.png --out out --model nothing", "is not a bundle"),
        ("segment good.png --out out --model segmenter --engine tpu", "unknown engine"),
        ("generate --out out --model corrupt", "was altered or damaged"),
        ("generate --out out --model denoiser --size 30 30", "multiple of 16"),
        ("generate --out out --model denoiser --steps 900", "takes 1 to 20"),
        ("generate --out out --model denoiser --count 0", "at least 1"),
        ("generate --out out --model denoiser --seed -1", "seed -1"),
        ("evaluate good.png small.png", "has 256 different values"),
        ("evaluate missing.png good.png", "missing.png"),
        ("evaluate mask.png mask.png --json good.png/x.json", "cannot be written"),
        ("data info empty", "holds no images"),
        ("data tiles good.png --out out --size 256", "do not fit"),
        ("train segmenter --data empty --out run", "holds no images"),
        ("train segmenter --data good.png --out run", "no masks"),
        ("train denoiser --data good.png --out run --preset best", "unknown preset 'best'"),
        ("export missing --out bundle", "missing"),
        ("generate --out out --steps many", "valid integer"),
    ],
)
def test_a_mistake_is_one_clear_line(folder: Path, command: str, message: str) -> None:
    result = emfast(*command.split(), cwd=folder)
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    if result.returncode == 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert result.stderr.splitlines()[-1] == errors[0]
    # A record that says "complete: false" is all that may be there.
    assert {p.name for p in (folder / "out").rglob("*") if p.is_file()} <= {"segment.json"}


def test_generate_and_segment_run_without_torch(folder: Path) -> None:
    (folder / "blocked").mkdir()
    for name in ("torch", "onnx"):
        (folder / f"blocked/{name}.py").write_text("raise ImportError('blocked')")
    code = (
        f"import sys; sys.path.insert(0, {str(folder / 'blocked')!r}); "
        "from emfast.cli.main import main; main()"
    )
    for command in (
        "generate --out set --model denoiser --count 2 --batch 1",
        "segment set/images --out masks --model segmenter --overlay",
        "evaluate masks/masks set/masks",
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *command.split()],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert (folder / "masks/overlays/000001.png").is_file()
