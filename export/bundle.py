"""Writing a bundle: export, convert, verify, and only then put it in its place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from engines.bundle import MANIFEST, Bundle, Manifest, TensorSpec, open_bundle
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError
from engines.files import atomic_folder, sha256
from engines.mnn import MNNEngine
from engines.onnxruntime import OnnxRuntimeEngine, import_onnxruntime
from engines.openvino import OpenVINOEngine
from engines.torch import TorchEngine
from export.card import card
from export.onnx import to_onnx
from export.precision import IMAGE_RANK, to_fp16
from export.quantization import Calibration, to_int8
from export.verify import Check, float_run, verify

GRAPHS = {"fp32": "model.onnx", "fp16": "model-fp16.onnx", "int8": "model-int8.onnx"}
# INT8 only where it is asked for: it changes results visibly and takes longest to verify.
DEFAULT = ("fp32", "fp16")
# Precisions that OpenVINO is made for; FP16 it turns back into FP32.
ON_OPENVINO = ("fp32", "int8")
CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """A network and all that its bundle needs.

    Attributes:
        reference: the network as it was trained; every graph is compared with it.
        module: what is exported: the same, or the same in a form that runs faster. All are in
            evaluation mode and take the manifest's inputs in their order.
        example: one tensor for each input, as for :func:`export.onnx.to_onnx`.
        manifest: with FP32 inputs and outputs, and without graphs, verification and files.
        calibration: that an INT8 graph is made with.
        checks: that each graph must pass.
        verified_on: what inputs the checks use, in words.
        fp32_module: a form that the FP32 graph is exported in instead, where another one is faster.
        inner: as for :func:`export.onnx.to_onnx`; what both modules return behind the outputs.
    """

    reference: nn.Module
    module: nn.Module
    example: tuple[Tensor, ...]
    manifest: Manifest
    calibration: Calibration
    checks: tuple[Check, ...]
    verified_on: str
    fp32_module: nn.Module | None = None
    inner: tuple[str, ...] = ()


def export_bundle(
    export: Export,
    out: Path,
    precisions: Sequence[str] = DEFAULT,
    half_io: bool = False,
    notes: str = "",
) -> Bundle:
    """Export a network, verify every graph and write the bundle.

    Graphs are verified through onnxruntime, and through OpenVINO and MNN where they are installed.

    Args:
        export: the network, its manifest and its checks.
        out: the bundle's folder; it must not exist or be empty.
        precisions: which graphs, of :data:`GRAPHS`.
        half_io: FP16 image inputs and outputs; for FP16 alone, since the graphs of a bundle have
            the same inputs and outputs.
        notes: Markdown for the end of the card.

    Raises:
        UserError: a graph that fails a check, unknown precisions, or a folder that holds files or
            cannot be written. Nothing is written then.
    """
    check_options(out, precisions, half_io)
    with atomic_folder(out) as folder:
        manifest = _write_graphs(folder, export, precisions, half_io)
        verification = _verify_graphs(folder, export, manifest)
        _write_facts(folder, replace(manifest, verification=verification), notes)
    return open_bundle(out)


def check_options(out: Path, precisions: Sequence[str], half_io: bool) -> None:
    """Refuse what :func:`export_bundle` would, before a network is read.

    Raises:
        UserError: as :func:`export_bundle`, or onnxruntime is not installed.
    """
    import_onnxruntime()
    unknown = sorted(set(precisions) - set(GRAPHS))
    if unknown or not precisions:
        raise UserError(
            f"precision {', '.join(unknown) or 'not given'}; accepted: {', '.join(GRAPHS)}"
        )
    if half_io and set(precisions) != {"fp16"}:
        raise UserError("FP16 inputs and outputs go with FP16 graphs only; add --precision fp16")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; name another --out, or remove it first")


def _write_graphs(
    folder: Path, export: Export, precisions: Sequence[str], half_io: bool
) -> Manifest:
    """Write the graph of each precision; returns the manifest with what they became."""
    manifest = export.manifest
    signature = export.example, manifest.inputs, manifest.outputs, export.inner
    fp32 = to_onnx(export.module, *signature)
    graphs = {p: name for p, name in GRAPHS.items() if p in precisions}
    for precision, name in graphs.items():
        if precision == "fp32":
            own = export.fp32_module
            graph = fp32 if own is None else to_onnx(own, *signature)
        elif precision == "fp16":
            graph = to_fp16(fp32, half_io)
        else:
            graph = to_int8(fp32, export.calibration)
        onnx.save(graph, folder / name)
    if half_io:
        manifest = replace(manifest, inputs=_half(manifest.inputs), outputs=_half(manifest.outputs))
    return replace(manifest, graphs=graphs)


def _verify_graphs(folder: Path, export: Export, manifest: Manifest) -> dict[str, Any]:
    """Check each graph against the reference; returns the manifest's ``verification``."""
    names = [spec.name for spec in manifest.inputs], [spec.name for spec in manifest.outputs]
    with ExitStack() as stack:
        reference = stack.enter_context(TorchEngine(export.reference, *names))
        engines = {
            name: stack.enter_context(engine) for name, engine in _engines(folder, manifest).items()
        }
        runs = {name: float_run(engine, manifest.inputs) for name, engine in engines.items()}
        precisions = {name: engine.info.precision for name, engine in engines.items()}
        measures = verify(reference.run, runs, export.checks, precisions=precisions)
        calibrated = {"calibration": export.calibration.source} if "int8" in manifest.graphs else {}
        return {
            "reference": str(reference.info),
            "inputs": export.verified_on,
            **calibrated,
            "precisions": {
                name: {
                    "engine": str(engine.info),
                    "measures": [measure.to_dict() for measure in measures[name]],
                }
                for name, engine in engines.items()
            },
        }


def _engines(folder: Path, manifest: Manifest) -> dict[str, Engine]:
    """The engines to verify, under the name of the precision for onnxruntime."""
    engines: dict[str, Engine] = {}
    for precision, file in manifest.graphs.items():
        graph = folder / file
        engines[precision] = OnnxRuntimeEngine(graph, "onnxruntime-cpu", precision)
        if precision in ON_OPENVINO:
            with suppress(EngineUnavailableError):
                engines[f"{precision}, openvino"] = OpenVINOEngine(graph, precision)
        if precision == "fp32":
            with suppress(EngineUnavailableError):
                mnn = MNNEngine(graph, manifest.inputs, manifest.outputs)
                engines[f"{precision}, mnn"] = mnn
    return engines


def _write_facts(folder: Path, manifest: Manifest, notes: str) -> None:
    """Write the card, and the manifest with the hash of every file."""
    (folder / CARD).write_text(card(manifest, notes), encoding="utf-8")
    files = {name: sha256(folder / name) for name in (*manifest.graphs.values(), CARD)}
    text = replace(manifest, files=files).to_json()
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _half(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(spec, dtype="float16") if len(spec.shape) == IMAGE_RANK else spec for spec in specs
    )
