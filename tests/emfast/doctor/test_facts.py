from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from emfast.doctor.facts import CacheFacts, Choice, Facts, examine
from engines.bundle import SHIPPED, shipped_bundles
from engines.diagnosis import Problem
from engines.files import sha256
from engines.isolated import Answer
from engines.probe import Gpus, Module

DOCS = Path(__file__).parents[3] / "docs/doctor.md"


@pytest.fixture(scope="module")
def here() -> Facts:
    """This machine, for real."""
    pytest.importorskip("onnxruntime")
    return examine(lambda text: None)


def test_this_machine_runs_both_bundles(here: Facts) -> None:
    import onnxruntime

    assert here.runs and here.verdict.startswith("emfast runs here, with ")
    assert [choice.bundle for choice in here.choices] == shipped_bundles()
    assert all(choice.engine is not None for choice in here.choices)
    assert here.module("onnxruntime").version == onnxruntime.__version__
    cpu = next(p for p in here.providers if p.name == "CPUExecutionProvider")
    assert cpu.works and cpu.reason is None


def test_shipped_bundles_and_their_hashes(here: Facts) -> None:
    for bundle in here.bundles:
        assert bundle.reason is None and bundle.kind in ("denoiser", "segmenter")
        folder = SHIPPED / bundle.name
        assert bundle.sha256 == {name: sha256(folder / name) for name in bundle.sha256}
        assert {"manifest.json", "model.onnx", "model-fp16.onnx"} <= set(bundle.sha256)


def test_every_engine_before_the_chosen_one_has_a_reason(here: Facts) -> None:
    from emfast.doctor.trial import candidates

    for choice in here.choices:
        assert choice.engine is not None
        better = candidates()[: candidates().index(choice.engine["engine"])]
        names = [line.partition(" passed over: ")[0] for line in choice.passed_over]
        assert names == better
        assert all(line.partition(" passed over: ")[2] for line in choice.passed_over)


def test_the_page_describes_every_key(here: Facts) -> None:
    text = DOCS.read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert set(here.to_dict()) | {"self_test"} <= described


def test_a_damaged_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SHIPPED, tmp_path / "models")
    with (tmp_path / "models/epfl-segmenter/model.onnx").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr("engines.bundle.SHIPPED", tmp_path / "models")
    monkeypatch.setattr("emfast.doctor.facts.ask", lambda *a, timeout: Answer(None, "", ""))
    facts = examine(lambda text: None)
    damaged = next(b for b in facts.bundles if b.name == "epfl-segmenter")
    assert damaged.kind is None
    assert damaged.reason is not None and "model.onnx: was altered or damaged" in damaged.reason
    problem = next(p for p in facts.problems if p.what == "bundle epfl-segmenter is damaged")
    assert problem.commands[0].startswith("pip install --force-reinstall --no-deps emfast==")


def test_faster_engines_of_the_cpu_have_rows(here: Facts) -> None:
    from importlib.metadata import version

    for name in ("MNN", "openvino"):
        module = here.module(name)
        if find_spec(name) is None:
            assert module.reason == "not installed"
        else:
            assert module.version is not None
            assert version(name).startswith(module.version) and module.packages


CPU = {
    "engine": "onnxruntime-cpu",
    "precision": "fp32",
    "device": "CPU, 2 threads",
    "version": "onnxruntime 1.32.0",
}


def facts(*choices: Choice, problems: tuple[Problem, ...] = (), gpus: Gpus | None = None) -> Facts:
    return Facts(
        emfast="0.1.0",
        python="3.12.1",
        platform="Linux",
        gpus=gpus or Gpus(reason="no NVIDIA driver"),
        modules=(Module("onnxruntime", {"onnxruntime": "1.32.0"}, "1.32.0"),),
        providers=(),
        bundles=(),
        choices=choices,
        cache=CacheFacts("/cache", 0, 0, None),
        problems=problems,
    )


def test_verdicts() -> None:
    cpu = Choice("a", CPU, (), None)
    on_cpu = "emfast runs here, with onnxruntime-cpu (onnxruntime 1.32.0) on CPU, 2 threads"
    assert facts(cpu).verdict == f"{on_cpu}. No GPU is used: no NVIDIA driver."
    none = Choice("b", None, (), "b failed")
    assert facts(cpu, none).verdict.startswith(f"{on_cpu}, but not b.")
    mend = facts(cpu, problems=(Problem("x", "y"), Problem("x", "y"))).verdict
    assert mend.endswith(" 2 problems to mend, see above.")
    assert facts(none).verdict == "nothing can run here: b failed."
    assert not facts(none).runs
    gpu = Choice("a", {**CPU, "engine": "tensorrt", "device": "NVIDIA L4"}, (), None)
    verdict = facts(gpu, gpus=Gpus(({"name": "NVIDIA L4"},))).verdict
    assert verdict == "emfast runs here, with tensorrt (onnxruntime 1.32.0) on NVIDIA L4."


def test_the_verdict_without_an_onnxruntime_that_loads() -> None:
    none = Choice("b", None, (), "AttributeError: module 'onnxruntime' has no attribute")
    broken = Module("onnxruntime", {"onnxruntime": "1.32.0"}, reason="its files are not there")
    absent = Module("onnxruntime", {}, reason="not installed")
    loads = replace(facts(none), modules=(broken,)).verdict
    assert loads == "nothing can run here: onnxruntime does not load."
    missing = replace(facts(none), modules=(absent,)).verdict
    assert missing == "nothing can run here: no onnxruntime is installed."
    # Where another engine is installed, a missing onnxruntime is not the cause.
    mnn = Module("MNN", {"mnn": "3.6.1"}, "3.6.1")
    assert replace(facts(none), modules=(absent, mnn)).verdict == (
        "nothing can run here: AttributeError: module 'onnxruntime' has no attribute."
    )


@pytest.mark.parametrize("engine", ["mnn", "openvino"])
def test_other_engines_of_the_cpu_are_no_gpu(engine: str) -> None:
    alone = Choice("a", {**CPU, "engine": engine}, (), None)
    found = replace(facts(alone), modules=(Module("onnxruntime", {}, reason="not installed"),))
    assert found.runs and found.verdict.endswith("No GPU is used: no NVIDIA driver.")
