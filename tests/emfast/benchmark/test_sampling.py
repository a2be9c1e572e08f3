from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emfast.benchmark.engines import choose_engines
from emfast.benchmark.machine import convolution_flops, machine_facts, matmul_rate
from emfast.benchmark.sampling import SamplingEntry, benchmark_sampling
from emfast.benchmark.table import COLUMNS, markdown, rows
from emfast.benchmark.worker import Worker
from emfast.cli.main import app
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle

HERE = "tests.emfast.benchmark.contestants"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_denoiser_bundle(tmp_path / "denoiser"))


def clockwork(
    label: str, seconds: float, batch: int = 1, inside: float | None = None
) -> SamplingEntry:
    arguments = {"seconds": seconds, "batch": batch, "inside": inside}
    return SamplingEntry(label, f"{HERE}:Clockwork", arguments, 5)


def test_rates_are_those_of_the_clock(model: str) -> None:
    lines: list[str] = []
    entries = [
        clockwork("peer", 0.7),
        clockwork("ours", 0.07, batch=4, inside=0.9),
        SamplingEntry("absent", f"{HERE}:unavailable", {}, 5),
    ]
    report = benchmark_sampling(entries, 2, model, lines.append)
    peer, ours = report["results"]
    assert peer["step_ms"] == pytest.approx(700)
    assert peer["images_per_second"] == pytest.approx(1 / (700 * 0.7))
    assert peer["steps"] == 2 * 4  # neither the warm-up nor the first step of a round
    assert ours["images_per_second"] == pytest.approx(40 * peer["images_per_second"])
    assert ours["outside"] == pytest.approx(0.1)
    assert peer["outside"] is None
    assert lines == ["left out: absent: no such device"]
    assert report["left_out"] == {"absent": "absent: no such device"}
    table = rows(report)
    assert table[1][COLUMNS.index("times the first")] == "40.0"
    assert table[1][COLUMNS.index("outside the network")] == "10.0 %"
    assert markdown(report).count("\n| ") == 3


def test_memory_is_that_of_the_process() -> None:
    """Neither what the process that starts it has held counts, nor what another one holds."""
    held = bytearray(600_000_000)
    held[::4096] = bytes([1]) * len(held[::4096])
    worker = Worker("hungry", f"{HERE}:Hungry", {})
    worker.run(2)
    assert 200e6 < worker.close() < 600e6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unavailable", "label: no such device"),
        ("broken", "label: ZeroDivisionError: by mistake"),
        ("killed", "label: its process ended with 3"),
    ],
)
def test_a_contestant_that_cannot_start_says_why(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Worker("label", f"{HERE}:{name}", {})


def test_operations_are_counted(tmp_path: Path, model: str) -> None:
    """One convolution of 2 to 2 channels, 3 x 3, on 32 x 48 pixels."""
    shapes = {"x": (1, 2, 32, 48), "timestep": (1,)}
    assert convolution_flops(Path(model) / "model.onnx", shapes) == 2 * 9 * 2 * 2 * 32 * 48


def test_the_machine_is_told() -> None:
    facts = machine_facts()
    assert facts["versions"]["numpy"] and facts["cpu"]
    assert matmul_rate() > 1e8


def test_engines_and_precisions(model: str) -> None:
    assert choose_engines(model, "denoiser", ["onnxruntime-cpu:fp16"]) == [
        ("onnxruntime-cpu", "fp16")
    ]
    assert choose_engines(model, "denoiser", ["onnxruntime-cpu"]) == [("onnxruntime-cpu", "fp32")]
    assert ("tensorrt", "fp32") in choose_engines(model, "denoiser", [])
    with pytest.raises(UserError, match="'gpu': expected an engine of tensorrt"):
        choose_engines(model, "denoiser", ["gpu"])


def test_the_command_measures_this_machine(model: str, tmp_path: Path) -> None:
    arguments = ["benchmark", "sampling", "--model", model, "--engine", "onnxruntime-cpu"]
    arguments += ["--steps", "4", "--rounds", "2", "--batch", "2", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "sampling.json").read_text())
    (entry,) = report["results"]
    assert entry["label"] == "emfast, onnxruntime-cpu, fp32"
    assert entry["steps"] == 2 * 3 and entry["step_ms"] > 0
    assert 0 < entry["outside"] < 1
    assert "onnxruntime-cpu" in (tmp_path / "out" / "sampling.md").read_text()
    assert (tmp_path / "out" / "sampling.png").stat().st_size > 1000
