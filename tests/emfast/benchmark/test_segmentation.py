from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from emfast.benchmark.engines import choose_engines
from emfast.benchmark.machine import convolution_flops
from emfast.benchmark.segmentation import (
    PEER_LABELS,
    Settings,
    benchmark_segmentation,
    peer_entries,
    write_report,
)
from emfast.benchmark.segmentation_table import sections
from emfast.benchmark.segmenters import Case, EmfastSegmentation, TorchSegmentation
from emfast.benchmark.worker import Entry
from emfast.cli.main import app
from engines.bundle import open_bundle
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle

HERE = "tests.emfast.benchmark.contestants"
SETTINGS = Settings(sizes=((32, 48),), batches=(1, 4), rounds=2, seconds=0.0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_segmenter_bundle(tmp_path / "segmenter"))


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", pixels, photometric="minisblack")
    return tmp_path / "stack.tif"


def clockwork(label: str, **arguments: Any) -> Entry:
    return Entry(label, f"{HERE}:Segmenting", arguments)


def measure(model: str, entries: list[Entry], settings: Settings = SETTINGS) -> dict[str, Any]:
    return benchmark_segmentation(entries, settings, model, lambda _: None)


def test_rates_are_those_of_the_clock(model: str, stack: Path) -> None:
    entries = [clockwork("peer", factor=2.0), clockwork("ours", factor=0.5)]
    report = measure(model, entries, replace(SETTINGS, stack=stack))
    cases = [(r["label"], r["kind"], r["batch"]) for r in report["results"]]
    kinds = [("engine", 1), ("engine", 4), ("files", 1)]
    assert cases == [(who, *kind) for kind in kinds for who in ("peer", "ours")]
    peer, ours = report["results"][2:4]  # four slices at once
    pixels = 32 * 48
    assert (peer["height"], peer["width"], peer["runs"]) == (32, 48, 2)  # without the warm-up
    assert peer["p50_ms"] == pytest.approx(2.0 * pixels * 4)
    assert ours["p99_ms"] == pytest.approx(0.5 * pixels * 4)
    assert ours["slices_per_second"] == pytest.approx(1000 / (0.5 * pixels))
    # The stack is warmed up with one slice, in a new process.
    assert [s["slices"] for s in report["stack"]] == [3, 3]
    assert report["stack"][1]["seconds"] == pytest.approx(9 * 0.5 * 40 * 50 * 3 / 1000)
    first, *others = sections(report)
    assert first.title == "stack.tif, 3 slices, TIFF to TIFF"
    assert first.rows[1][first.columns.index("times the first")] == "4.0"
    assert [section.title for section in others] == [
        "48 x 32, engine only",
        "48 x 32, engine only, 4 slices at once",
        "48 x 32, TIFF to TIFF",
    ]


def test_operations_are_counted_by_the_pixel(model: str) -> None:
    report = measure(model, [clockwork("ours", factor=1.0)])
    assert report["settings"]["network_flop_a_pixel"] == 2 * 9
    rate = 1e9 * report["machine"]["float32_matmul_gflops"]
    shares = [result["matmul_share"] for result in report["results"]]
    assert shares[:2] == pytest.approx([18 * 1000 / rate] * 2, rel=0.01)
    assert shares[2] is None  # reading and writing are no operations of the network


def test_transposed_convolutions_are_counted() -> None:
    """The light U-Net has 9.89 GFLOP for 256 x 256 pixels, where nothing is merged."""
    graph = open_bundle("epfl-segmenter").graph("fp16")
    flops = convolution_flops(graph, {"x": (1, 1, 64, 64)})
    assert flops / 64**2 * 256**2 == pytest.approx(9.89e9, rel=1e-3)


def test_who_fails_is_told_and_left_out(model: str) -> None:
    lines: list[str] = []
    entries = [
        clockwork("broken", factor=1.0, fails_on="files"),
        Entry("absent", f"{HERE}:unavailable", {}),
        clockwork("ours", factor=1.0),
    ]
    report = benchmark_segmentation(entries, SETTINGS, model, lines.append)
    assert {result["label"] for result in report["results"]} == {"ours"}
    assert report["left_out"] == {
        "absent": "absent: no such device",
        "broken": "broken: it broke",
    }
    assert lines == ["left out: absent: no such device", "left out: broken: it broke"]
    with pytest.raises(UserError, match="nothing to measure: broken: it broke"):
        measure(model, entries[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ((40, 48),)}, "size 48x40: this network takes multiples of 16"),
        ({"rounds": 0}, "0 rounds of 0 s"),
        ({"batches": (1, 0)}, r"batches \(1, 0\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure(model, [clockwork("ours", factor=1.0)], replace(SETTINGS, **changes))


@pytest.mark.parametrize("pixels", [np.zeros((2, 40, 50), np.uint16), np.zeros((40, 50, 3), "u1")])
def test_stacks_that_peers_do_not_read_are_refused(
    model: str, pixels: np.ndarray, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "other.tif", pixels)
    with pytest.raises(UserError, match="pages are 8-bit grey and of one size"):
        measure(
            model,
            [clockwork("ours", factor=1.0)],
            replace(SETTINGS, stack=tmp_path / "other.tif"),
        )


def test_the_command_measures_this_machine(model: str, stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["benchmark", "segmentation", "--model", model, "--engine", "onnxruntime-cpu"]
    arguments += ["--size", "48x32", "--batch", "2", "--rounds", "1", "--seconds", "0"]
    arguments += ["--threads", "1", "--stack", str(stack), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "segmentation.json").read_text())
    assert [(r["kind"], r["batch"]) for r in report["results"]] == [("engine", 2), ("files", 1)]
    assert report["results"][0]["description"].startswith("onnxruntime-cpu (onnxruntime")
    (whole,) = report["stack"]
    assert whole["slices"] == 3 and whole["seconds"] > 0 and whole["peak_memory"] > 20e6
    assert "**48 x 32, engine only, 2 slices at once**" in (out / "segmentation.md").read_text()
    assert (out / "segmentation.png").stat().st_size > 1000


def test_a_folder_that_cannot_be_made_is_told(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        write_report({}, tmp_path / "file" / "out")


def test_emfast_writes_masks(model: str, stack: Path, tmp_path: Path) -> None:
    contestant = EmfastSegmentation(model, "onnxruntime-cpu", "fp32", 1, (32, 48))
    contestant.segment(stack, tmp_path / "out", (40, 50))
    masks = tifffile.imread(tmp_path / "out" / "masks" / "stack.tif")
    assert masks.shape == (3, 40, 50) and set(np.unique(masks)) == {0, 255}
    assert contestant.run(Case("engine", (32, 48), 1, 0.01)).steps


def test_peers_run_the_same_network(model: str, stack: Path, tmp_path: Path) -> None:
    """MONAI's one window of 256 x 256 pixels gives what the network gives."""
    pytest.importorskip("monai", reason="needs MONAI")
    eager, monai = (TorchSegmentation(peer, model, 1) for peer in ("eager", "monai"))
    x = np.random.default_rng(0).standard_normal((1, 1, 256, 256), np.float32)
    np.testing.assert_allclose(monai.infer(x), eager.infer(x), atol=1e-5)
    # Windows that overlap differ from the whole at their edges alone.
    x = np.random.default_rng(0).standard_normal((1, 1, 256, 272), np.float32)
    assert 0 < np.abs(monai.infer(x) - eager.infer(x)).max() < 0.5
    eager.segment(stack, tmp_path / "eager", (40, 50))
    masks = tifffile.imread(tmp_path / "eager" / "stack.tif")
    assert masks.shape == (3, 40, 50) and set(np.unique(masks)) <= {0, 255}
    assert "1.98 M parameters" in eager.description and monai.description.startswith("monai 1")


def test_peers_are_listed_first_to_last(model: str) -> None:
    entries = peer_entries(model, 2)
    assert [entry.label for entry in entries] == list(PEER_LABELS.values())
    assert ("onnxruntime-cpu", "fp32") in choose_engines(model, "segmenter", [])
