from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.bundle import MANIFEST, Manifest, TensorSpec, open_bundle
from engines.errors import UserError
from engines.selection import open_engine
from export import bundle as bundles
from export.bundle import Export, export_bundle
from export.quantization import Calibration
from export.verify import Tolerance, output_check

FREE = ("batch", 2, "height", "width")
TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-5),
    "fp16": Tolerance(2e-2, 2e-3),
    "int8": Tolerance(5e-1, 5e-2),
}


@pytest.fixture(scope="module")
def export() -> Export:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8), dtype=np.float32)
    return Export(
        reference=network,
        module=network,
        example=(torch.zeros(2, 2, 4, 6),),
        manifest=Manifest(
            kind="denoiser",
            name="test network",
            emfast="0.0.0",
            inputs=(TensorSpec("x", "float32", FREE, "noisy channels"),),
            outputs=(TensorSpec("y", "float32", FREE, "the noise"),),
            multiple=1,
            graphs={},
            model={"anything": [1, 2]},
            training={"settings": {"seed": 7}, "data": {"slices": [f"s{i}" for i in range(20)]}},
            metrics={"dice": 0.875},
        ),
        calibration=Calibration([{"x": x}], "random numbers", iterated=False),
        checks=(output_check({"noise": {"x": x}}, TOLERANCES),),
        verified_on="random numbers",
    )


def test_bundle_holds_both_graphs_and_what_they_were_measured_at(
    export: Export, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "bundle"
    export_bundle(export, out, notes="## Limits\n\nnone\n")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        MANIFEST,
        "model-fp16.onnx",
        "model.onnx",
    ]
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]
    bundle = open_bundle(out, "denoiser")
    assert bundle.precisions == ("fp32", "fp16")
    assert "calibration" not in bundle.manifest.verification
    assert set(bundle.manifest.files) == {"README.md", "model-fp16.onnx", "model.onnx"}
    assert bundle.manifest.model == {"anything": [1, 2]}
    verification = bundle.manifest.verification
    assert verification["inputs"] == "random numbers"
    for precision in bundle.precisions:
        result = verification["precisions"][precision]
        assert result["engine"].startswith("onnxruntime-cpu")
        maximum, mean = result["measures"]
        assert maximum["at_most"] == TOLERANCES[precision].maximum
        assert 0 <= mean["value"] < maximum["value"] < maximum["at_most"]
    # FP16 weights are half as large, and really are what runs.
    types = {
        p: {t.data_type for t in onnx.load(bundle.graph(p)).graph.initializer}
        for p in bundle.precisions
    }
    assert types == {"fp32": {onnx.TensorProto.FLOAT}, "fp16": {onnx.TensorProto.FLOAT16}}


def test_card_tells_what_the_manifest_holds(export: Export, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_bundle(export, out, ["fp32"], notes="## Limits\n\nnone\n")
    text = (out / "README.md").read_text()
    assert text.startswith("# test network\n")
    assert "| input `x` | batch x 2 x height x width | float32 | noisy channels |" in text
    assert "  - seed: 7" in text
    assert "  - slices: s0 ... s19 (20)\n" in text
    assert "- dice: 0.875" in text
    assert "| noise, y: maximum error |" in text
    assert "| at most 0.0001 |" in text
    assert text.endswith("## Limits\n\nnone\n")


@pytest.mark.parametrize("engine_precision", ["fp32", "fp16"])
def test_exported_graphs_run(export: Export, tmp_path: Path, engine_precision: str) -> None:
    bundle = export_bundle(export, tmp_path / "bundle", [engine_precision])
    assert bundle.precisions == (engine_precision,)
    x = np.ones((3, 2, 5, 7), np.float32)
    with open_engine(bundle, "onnxruntime-cpu").engine as engine:
        y = engine.run({"x": x})["y"]
    with torch.no_grad():
        expected = export.reference(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, atol=5e-3)


def test_int8_is_verified_in_every_engine_that_would_run_it(export: Export, tmp_path: Path) -> None:
    bundle = export_bundle(export, tmp_path / "bundle", ["fp32", "int8"])
    assert bundle.precisions == ("fp32", "int8")
    assert bundle.graph("int8").name == "model-int8.onnx"
    results = bundle.manifest.verification["precisions"]
    expected = {"fp32": "onnxruntime-cpu", "int8": "onnxruntime-cpu"}
    if find_spec("openvino"):
        expected |= {"fp32, openvino": "openvino", "int8, openvino": "openvino"}
    if find_spec("MNN"):
        expected |= {"fp32, mnn": "mnn"}
    assert {name: result["engine"].split()[0] for name, result in results.items()} == expected
    for name, result in results.items():
        maximum, _ = result["measures"]
        assert maximum["at_most"] == TOLERANCES[name[:4]].maximum
        assert (maximum["value"] > 1e-3) == name.startswith("int8")
    card = (bundle.path / "README.md").read_text()
    assert "`model-int8.onnx` (INT8)" in card
    assert "The INT8 graph was calibrated on random numbers." in card


def test_int8_that_is_not_asked_for_is_not_made(export: Export, tmp_path: Path) -> None:
    assert export_bundle(export, tmp_path / "bundle").precisions == ("fp32", "fp16")


def test_int8_that_fails_is_not_written(export: Export, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8), dtype=np.float32)
    clipped = replace(export, calibration=Calibration([{"x": x / 100}], "little", iterated=False))
    with pytest.raises(UserError, match=r"nothing was kept: int8: noise, y: maximum error"):
        export_bundle(clipped, tmp_path / "bundle", ["fp32", "int8"])
    assert list(tmp_path.iterdir()) == []


def test_half_io_is_told_in_the_manifest_and_verified(export: Export, tmp_path: Path) -> None:
    bundle = export_bundle(export, tmp_path / "bundle", ["fp16"], half_io=True)
    assert [t.dtype for t in (*bundle.manifest.inputs, *bundle.manifest.outputs)] == [
        "float16",
        "float16",
    ]
    with open_engine(bundle, "onnxruntime-cpu").engine as engine:
        y = engine.run({"x": np.ones((1, 2, 4, 4), np.float16)})["y"]
    assert y.dtype == np.float16


def test_what_fails_is_not_written(export: Export, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    with pytest.raises(UserError, match=r"nothing was kept: fp32: noise, y: maximum error"):
        export_bundle(replace(export, reference=other), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers_fail(export: Export, tmp_path: Path) -> None:
    broken = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    nn.init.constant_(broken[2].weight, float("nan"))
    with pytest.raises(UserError, match="error nan"):
        export_bundle(replace(export, reference=broken, module=broken), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_midway_leaves_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles, "card", crash)
    with pytest.raises(UserError, match=r"bundle: cannot be written \(No space left on device\)"):
        export_bundle(export, tmp_path / "bundle", ["fp32"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_refused_at_once(export: Export, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        export_bundle(export, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(UserError, match="exists and is not empty"):
        export_bundle(export, tmp_path / "kept")


def test_an_empty_folder_is_taken(export: Export, tmp_path: Path) -> None:
    export_bundle(export, tmp_path, ["fp32"])
    assert json.loads((tmp_path / MANIFEST).read_text())["kind"] == "denoiser"


@pytest.mark.parametrize(
    ("precisions", "half_io", "message"),
    [
        (["int4"], False, "precision int4; accepted: fp32, fp16, int8"),
        ([], False, "not given; accepted: fp32, fp16, int8"),
        (["fp32", "fp16"], True, "add --precision fp16"),
        (["fp16", "int8"], True, "add --precision fp16"),
        (["fp32"], True, "add --precision fp16"),
    ],
)
def test_wrong_options(
    export: Export, tmp_path: Path, precisions: list[str], half_io: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export_bundle(export, tmp_path / "bundle", precisions, half_io)
    assert list(tmp_path.iterdir()) == []
