"""``job.json`` holds what decides the bytes of a set and no more, and each part is settled."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.description import differences
from emfast.synthesis.job import Job, run_job
from engines.engine import EngineInfo
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.emfast.synthesis.conftest import JOB


@pytest.fixture
def record(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "job.json").read_text()))


def test_what_a_job_says(record: dict[str, Any], tiny: Generator) -> None:
    assert record["model"]["sha256"] == tiny.bundle.sha256
    assert record["engine"] == {
        "name": "onnxruntime-cpu",
        "precision": "fp32",
        "runtime": tiny.engine.info.version,
    }
    assert "threads" not in json.dumps(record)


CHANGES = [
    ("format", 2, "format was 1, is 2"),
    ("emfast", "9.0", r"emfast was \S+, is 9.0"),
    ("seed", 8, "seed was 7, is 8"),
    ("steps", 7, "steps was 6, is 7"),
    ("size", [48, 32], "size was 32 x 48, is 48 x 32"),
    ("batch", 4, "batch was not given, is 4"),
    ("pairs", False, "pairs was True, is False"),
    ("sampler", "ddim", r"sampler was ddpm, is ddim"),
    ("eta", 0.5, "eta was not given, is 0.5"),
    ("loop", "device", "loop was host, is device"),
    ("engine name", "openvino", "engine name was onnxruntime-cpu, is openvino"),
    ("engine precision", "int8", "engine precision was fp32, is int8"),
    ("engine runtime", "onnxruntime 2", r"engine runtime was onnxruntime \S+, is onnxruntime 2"),
    ("model name", "other", "model was test denoiser, is other"),
    ("model sha256", "0" * 64, r"model sha256 was \w{64}, is 0{64}"),
]


@pytest.mark.parametrize(("key", "value", "told"), CHANGES)
def test_each_change_is_told(record: dict[str, Any], key: str, value: Any, told: str) -> None:
    import re

    changed = copy.deepcopy(record)
    outer, _, inner = key.partition(" ")
    if inner:
        changed[outer][inner] = value
    else:
        changed[outer] = value
    (difference,) = differences(record, changed)
    assert re.fullmatch(told, difference)


def test_every_field_is_among_them(record: dict[str, Any]) -> None:
    tried = {key.partition(" ")[0] for key, *_ in CHANGES}
    assert set(record) - tried == {"count"}
    assert set(record["engine"]) == {key[7:] for key, *_ in CHANGES if key.startswith("engine ")}


def test_a_larger_count_is_no_difference(record: dict[str, Any]) -> None:
    assert differences(record, {**record, "count": 100}) == []


def test_another_model_is_refused(tmp_path: Path, finished: Path) -> None:
    bundle = write_denoiser_bundle(tmp_path / "other", gain=0.4)
    with (
        Generator.open(bundle, "onnxruntime-cpu", threads=1) as generator,
        pytest.raises(
            UserError, match="holds another job .model sha256 was .*; give another --out"
        ),
    ):
        run_job(JOB, generator, finished)


def test_threads_are_not_in_a_set(tiny: Generator, tmp_path: Path) -> None:
    run_job(Job(1, 0, 2, (32, 48), 1, False), tiny, tmp_path / "set")
    assert tiny.engine.info.device == "CPU, 1 threads"
    entry = json.loads((tmp_path / "set/manifest.jsonl").read_text())
    assert entry["device"] == "CPU"


def test_devices_keep_their_names() -> None:
    from emfast.synthesis.description import device_name

    gpu = EngineInfo("tensorrt", "fp16", "NVIDIA H100 (CUDA device 3)", "TensorRT 11")
    assert device_name(gpu) == "NVIDIA H100"
