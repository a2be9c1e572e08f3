from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.bundle import MANIFEST, Manifest, open_bundle, shipped_bundles
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle")


def test_a_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle, "segmenter")
    assert opened.precisions == ("fp32",)
    assert opened.graph("fp32") == bundle / "model.onnx"
    assert len(opened.sha256) == 64
    with pytest.raises(UserError, match="has no fp16 graph; it has fp32"):
        opened.graph("fp16")


def test_the_manifest_survives_json(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text()
    assert Manifest.from_json(text).to_json() == text


def test_an_altered_graph_is_refused_by_name(bundle: Path) -> None:
    graph = bundle / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx: was altered or damaged"):
        open_bundle(bundle)


def test_a_missing_graph_is_refused_by_name(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx: is missing"):
        open_bundle(bundle)


def test_a_graph_without_hash_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(UserError, match="no SHA-256 for model.onnx"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "x": 2}']
)
def test_a_malformed_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="is not a manifest that emfast reads"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"multiple": 0},
        {"inputs": []},
        {"graphs": {}},
        {"graphs": {"int2": "model.onnx"}},
        {"files": ["model.onnx"]},
    ],
)
def test_a_manifest_of_impossible_values_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UserError, match="is not a manifest that emfast reads"):
        open_bundle(bundle)


def test_another_kind_is_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match="is a segmenter, but this needs a denoiser"):
        open_bundle(bundle, "denoiser")


def test_no_bundle_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epfl-denoiser, epfl-segmenter, epfl6-segmenter"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["epfl-denoiser", "epfl-segmenter", "epfl6-segmenter"])
def test_shipped_bundles_open_by_name(name: str) -> None:
    assert name in shipped_bundles()
    bundle = open_bundle(name)
    assert bundle.precisions == ("fp32", "fp16", "int8")
    assert (bundle.path / "README.md").is_file()
    assert "README.md" in bundle.manifest.files
