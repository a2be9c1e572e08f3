"""Who takes part in the benchmark of segmentation.

emfast on an engine of this machine, and the peers on PyTorch: the same network in eager mode, by
``torch.compile`` and in MONAI's sliding window, each set up as its documentation advises. The peers
have random weights, which cost what trained ones do, and read, normalise, threshold and write as
emfast does, page by page.
"""

from __future__ import annotations

import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from emfast.benchmark.worker import Round
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8, label_map, normalize
from emfast.segmentation.tiling import pad
from engines.bundle import open_bundle
from engines.device import DeviceEngine
from engines.engine import Engine
from engines.errors import UserError

Kind = Literal["engine", "files"]
Float32 = npt.NDArray[np.float32]
PEERS = ("monai", "eager", "compile")
# As the documentation of MONAI's sliding_window_inference advises: windows of the size that the
# network was trained on, several at once, weighted by a Gaussian where they overlap.
WINDOW = {"roi_size": (256, 256), "sw_batch_size": 4, "overlap": 0.25, "mode": "gaussian"}


@dataclass(frozen=True)
class Case:
    """What a contestant is timed at.

    Attributes:
        kind: "engine", the network on an array in memory, or "files", from a TIFF to the TIFF of
            its masks.
        size: height and width, divisible by the network's multiple for "engine".
        batch: slices in the array; 1 for "files".
        seconds: the run is repeated until so much time has passed.
        source: the TIFF for "files".
    """

    kind: Kind
    size: tuple[int, int]
    batch: int
    seconds: float
    source: Path | None = None


class Segmenting:
    """Times what its subclasses do."""

    description: str

    def run(self, case: Case) -> Round:
        """Repeat a case; a step is one run of it."""
        steps: list[float] = []
        with TemporaryDirectory(prefix="emfast-") as folder:
            x = np.random.default_rng(0).standard_normal((case.batch, 1, *case.size), np.float32)
            while not steps or sum(steps) < case.seconds:
                out = Path(folder) / str(len(steps))
                start = time.perf_counter()
                if case.source is None:
                    self.infer(x)
                else:
                    self.segment(case.source, out, case.size)
                steps.append(time.perf_counter() - start)
        return Round(tuple(steps))

    def infer(self, x: Float32) -> Float32:
        """Probability of each class, from float32 (slices, 1, height, width)."""
        raise NotImplementedError

    def segment(self, source: Path, out: Path, size: tuple[int, int]) -> None:
        """Segment a TIFF whose slices have a known size into a folder."""
        raise NotImplementedError


class EmfastSegmentation(Segmenting):
    """emfast on one of its engines.

    Args:
        model: a shipped segmenter's name, or a bundle's folder.
        engine, precision, threads: as for :func:`engines.selection.open_engine`.
        size: that the first engine is opened for, so that one that cannot run says so at once.
        bound: run it on bound memory and by CUDA graph, as :class:`engines.bound.BoundEngine`.
    """

    def __init__(
        self,
        model: str,
        engine: str,
        precision: str,
        threads: int | None,
        size: tuple[int, int],
        bound: bool = False,
    ) -> None:
        self._bound = bound
        self._bundle = open_bundle(model, "segmenter")
        self._wanted = engine, precision, threads
        self._engines: dict[tuple[int, int], Engine] = {}
        self.description = str(self._engine(size).info)

    def _engine(self, size: tuple[int, int]) -> Engine:
        """The engine for slices of a size: TensorRT has one for each, others one for all."""
        from emfast.runtime import TILE, open_runtime, segmenter_shapes

        key = size if self._wanted[0].startswith("tensorrt") else (0, 0)
        if key not in self._engines:
            shapes = segmenter_shapes(self._bundle.manifest, TILE, size)
            engine = open_runtime(self._bundle, shapes, *self._wanted).engine
            self._engines[key] = self._on_bound_memory(engine) if self._bound else engine
        return self._engines[key]

    def _on_bound_memory(self, engine: Engine) -> Engine:
        from engines.bound import BoundEngine

        manifest = self._bundle.manifest
        if not isinstance(engine, DeviceEngine):
            raise UserError(f"{engine.info}: does not run on memory of the device")
        return BoundEngine(engine, manifest.inputs, manifest.outputs)

    def infer(self, x: Float32) -> Float32:
        dtype = np.dtype(self._bundle.manifest.inputs[0].dtype)
        height, width = x.shape[-2:]
        outputs = self._engine((height, width)).run({"x": x.astype(dtype, copy=False)})
        probability: Float32 = outputs["probability"].astype(np.float32, copy=False)
        return probability

    def segment(self, source: Path, out: Path, size: tuple[int, int]) -> None:
        from emfast.segmentation.job import segment_files
        from emfast.segmentation.segmenter import Segmenter

        with redirect_stderr(StringIO()):  # its progress bar
            segment_files(source, out, Segmenter(self._bundle, self._engine(size)))


class TorchSegmentation(Segmenting):
    """The light U-Net on PyTorch: FP32 on a CPU, FP16 on a GPU, channels-last.

    Args:
        peer: one of :data:`PEERS`. "eager" and "compile" run a slice whole, "monai" cuts it into
            windows of :data:`WINDOW`.
        model: the segmenter's bundle, for its classes and preprocessing.
        threads: of PyTorch.
    """

    def __init__(self, peer: str, model: str, threads: int | None) -> None:
        import torch

        from emfast.models.unet import LIGHT, UNet

        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        manifest = open_bundle(model, "segmenter").manifest
        self._spec, self._multiple = SegmenterSpec.from_dict(manifest.model), manifest.multiple
        cuda = torch.cuda.is_available()
        self._torch, self._peer = torch, peer
        self._device = torch.device("cuda" if cuda else "cpu")
        self._dtype = torch.float16 if cuda else torch.float32
        unet: Any = UNet(self._spec.classes, LIGHT)
        network: Any = torch.nn.Sequential(unet, torch.nn.Sigmoid()).eval()
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        network = network.to(device=self._device, dtype=self._dtype)
        self._network = network.to(memory_format=torch.channels_last)
        name = f"torch {torch.__version__}"
        if peer == "compile":
            if not cuda:  # PyTorch's advice for inference on CPUs: weights become constants
                inductor: Any = import_module("torch._inductor.config")
                inductor.freezing = True
            mode = "max-autotune" if cuda else "default"
            self._network = torch.compile(self._network, mode=mode, dynamic=False)
        elif peer == "monai":
            monai: Any = import_module("monai")
            inferers: Any = import_module("monai.inferers")
            self._window = inferers.sliding_window_inference
            name = f"monai {monai.__version__}, {name}"
        place = "FP16, CUDA" if cuda else f"FP32, {torch.get_num_threads()} threads"
        self.description = f"{name}, {place}, channels-last, {parameters:.2f} M parameters"

    def infer(self, x: Float32) -> Float32:
        torch = self._torch
        with torch.inference_mode() if self._peer != "compile" else torch.no_grad():
            inputs = torch.from_numpy(x).to(self._device, self._dtype)
            if self._peer == "monai":
                result = self._window(inputs, predictor=self._forward, **WINDOW)
            else:
                result = self._forward(inputs)
            probability: Float32 = result.float().contiguous().cpu().numpy()
        return probability

    def _forward(self, x: Any) -> Any:
        return self._network(x.contiguous(memory_format=self._torch.channels_last))

    def segment(self, source: Path, out: Path, size: tuple[int, int]) -> None:
        out.mkdir()
        with (
            tifffile.TiffFile(source) as pages,
            tifffile.TiffWriter(out / source.name) as masks,
        ):
            for page in pages.pages:
                mask = self._mask(page.asarray()[None])
                masks.write(mask, photometric="minisblack", compression="zlib", metadata=None)

    def _mask(self, image: Uint8) -> Uint8:
        height, width = image.shape[-2:]
        x = pad(normalize(image, self._spec.normalization), self._multiple)
        probability = self.infer(x)[..., :height, :width]
        labels: Uint8 = label_map(probability, self._spec.threshold)[0]
        return labels * np.uint8(255) if self._spec.classes == 1 else labels
