"""What Triton, and those who call it, have to know of a segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from emfast.segmentation.preprocessing import SegmenterSpec
from engines.bundle import Bundle, open_bundle
from engines.cache import EngineCache, slug
from engines.entry import DamagedError, Entry
from engines.errors import UserError
from export.triton import Serving, write_repository

CLIENT = "client.py"
README = "README.md"
CACHED = "cached"
# Where nobody says. Tiles of this size are what a server with one GPU is asked for most.
SIZE = (256, 256)
BATCH = 8


@dataclass(frozen=True)
class TritonOptions:
    """How Triton shall serve a segmenter.

    Attributes:
        precision: of the graph; "auto" is FP16 for a GPU and FP32 for a CPU, where the bundle has
            it.
        plan: a TensorRT engine of emfast's cache, or "cached" for the one there that fits best;
            None to serve the ONNX graph.
        size, max_batch, queue_delay, instances, device: as for :class:`export.triton.Serving`;
            without ``size`` or ``max_batch`` those that the engine is tuned for and takes, or
            :data:`SIZE` and :data:`BATCH`.
    """

    precision: str = "auto"
    plan: str | None = None
    size: tuple[int, int] | None = None
    max_batch: int | None = None
    queue_delay: int = 1000
    instances: int = 1
    device: str = "gpu"


def write_triton_repository(model: str, out: Path, options: TritonOptions) -> Serving:
    """Write the model repository of a segmenter, with a README and a client.

    Args:
        model: the name of a shipped segmenter, or a bundle's folder.
        out: the repository's folder; it must not exist or be empty.
        options: how it shall be served.

    Returns:
        What was written.

    Raises:
        UserError: no such bundle or precision, another kind of bundle, no engine that fits, or as
            :func:`export.triton.write_repository`.
    """
    bundle = open_bundle(model)
    if bundle.manifest.kind != "segmenter":
        raise UserError(
            f"{model}: is a {bundle.manifest.kind}, whose network is run hundreds of times an "
            "image; Triton repositories are for segmenters"
        )
    spec = SegmenterSpec.from_dict(bundle.manifest.model)
    if spec.scope == "volume" and spec.normalization == "standardize":
        raise UserError(
            f"{model}: normalises greys by the whole volume, of which a request for one slice "
            "knows nothing; use emfast segment"
        )
    precision = _precision(bundle, options)
    entry = None if options.plan is None else _engine(bundle, precision, options)
    serving = _serving(bundle, spec, precision, entry, options)
    files = {README: _readme(serving, bundle, spec, precision, entry), CLIENT: _client()}
    write_repository(serving, out, files)
    return serving


def _precision(bundle: Bundle, options: TritonOptions) -> str:
    if options.precision != "auto":
        bundle.graph(options.precision)
        if options.precision == "int8" and options.device == "gpu":
            raise UserError("int8 graphs are for CPUs; add --device cpu")
        return options.precision
    order = ("fp16", "fp32") if options.device == "gpu" else ("fp32", "fp16")
    for precision in order:
        if precision in bundle.precisions:
            return precision
    raise UserError(f"{bundle.path}: has graphs of int8 only; ask for it with --precision")


def _engine(bundle: Bundle, precision: str, options: TritonOptions) -> Entry:
    """The TensorRT engine that is meant; it is of this bundle and was verified."""
    graph = bundle.manifest.files[bundle.graph(precision).name]
    if options.plan == CACHED:
        fitting = [
            entry
            for entry in EngineCache().entries()
            if entry.recipe.graph == graph
            and entry.recipe.flavour == "tensorrt"
            and entry.verifications
            and _fits(entry, options)
        ]
        if not fitting:
            raise UserError(
                f"the cache has no verified TensorRT engine of {bundle.manifest.name}, "
                f"{precision}, for this size and batch (emfast engines list); build one on the "
                "server's GPU with emfast engines build --engine tensorrt --batch 1:8:8"
            )
        return min(fitting, key=_pixels)
    path = Path(str(options.plan))
    try:
        entry = Entry.load(path.with_suffix(".json"))
    except (DamagedError, OSError) as error:
        raise UserError(f"{path}: cannot be used, it {error}") from None
    if entry is None or entry.path != path:
        raise UserError(
            f"{path}: is no engine of emfast's cache (its JSON sidecar is missing); emfast engines "
            "list shows them"
        )
    entry.read()
    recipe = entry.recipe
    if recipe.graph != graph:
        raise UserError(f"{path}: is not of {bundle.manifest.name}, {precision}, but of {recipe}")
    if recipe.flavour != "tensorrt":
        raise UserError(f"{path}: is of {recipe.flavour}; Triton runs engines of tensorrt alone")
    if not entry.verifications:
        raise UserError(f"{path}: was never verified on a GPU; run emfast engines verify there")
    return entry


def _fits(entry: Entry, options: TritonOptions) -> bool:
    profile = entry.recipe.profile
    height, width = options.size or (profile.height.best, profile.width.best)
    batch = options.max_batch or profile.batch.maximum
    return (
        1 in profile.batch
        and batch in profile.batch
        and height in profile.height
        and width in profile.width
    )


def _pixels(entry: Entry) -> tuple[bool, int]:
    """Static engines come first, then those for the least pixels."""
    profile = entry.recipe.profile
    return not profile.static, (
        profile.batch.maximum * profile.height.maximum * profile.width.maximum
    )


def _serving(
    bundle: Bundle,
    spec: SegmenterSpec,
    precision: str,
    entry: Entry | None,
    options: TritonOptions,
) -> Serving:
    manifest = bundle.manifest
    profile = None if entry is None else entry.recipe.profile
    size, batch = SIZE, BATCH
    if profile is not None:
        size, batch = (profile.height.best, profile.width.best), profile.batch.maximum
    return Serving(
        name=slug(manifest.name),
        model=bundle.graph(precision) if entry is None else entry.path,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        profile=profile,
        size=options.size or size,
        max_batch=options.max_batch or batch,
        queue_delay=options.queue_delay,
        instances=options.instances,
        device=options.device,
        labels={output.name: spec.labels for output in manifest.outputs},
        parameters={
            "multiple": str(manifest.multiple),
            "normalization": spec.normalization,
            "threshold": f"{spec.threshold:g}",
            "bundle": bundle.sha256,
            **({} if spec.pixel_size is None else {"pixel_size_nm": f"{spec.pixel_size:g}"}),
        },
    )


def _client() -> str:
    return (Path(__file__).parent / CLIENT).read_text(encoding="utf-8")


def _readme(
    serving: Serving, bundle: Bundle, spec: SegmenterSpec, precision: str, entry: Entry | None
) -> str:
    height, width = serving.size
    gpu = serving.device == "gpu"
    if entry is None:
        runs = f"The ONNX graph in {precision}, through Triton's onnxruntime backend"
        release = "Any release whose onnxruntime reads the graph does."
    else:
        recipe = entry.recipe
        runs = f"A TensorRT {recipe.version} engine in {precision}, built for {recipe.hardware}"
        release = (
            f"The release must have TensorRT {recipe.version}, which NVIDIA's release notes tell: "
            "an engine of another version is refused."
        )
    about = f"{runs}, on the {serving.device.upper()}. Slices of {width} x {height} pixels are run "
    about += "before the server is ready" + (
        ", and are replayed as CUDA graphs." if entry is not None else "."
    )
    if serving.max_batch > 1:
        about += f" Up to {serving.max_batch} requests of one size run together; a request waits "
        about += f"at most {serving.queue_delay} microseconds for others."
    ready = f"{release} `curl -f localhost:8000/v2/health/ready` answers once the model is warm; "
    ready += (
        "port 8001 speaks gRPC and 8002 gives metrics. Triton checks no tokens: keep the ports "
    )
    ready += "on a private network."
    pixels = ""
    if spec.pixel_size is not None:
        pixels = f" It does not resample: pixels should be {spec.pixel_size:g} nm wide."
    return f"""# {bundle.manifest.name} on Triton

{fill(about, 100)}

## Start

In this folder, with RELEASE as in 25.10:

```
docker run --rm {"--gpus all " if gpu else ""}--shm-size=1g \\
  -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
  -v "$PWD:/models:ro" nvcr.io/nvidia/tritonserver:RELEASE-py3 \\
  tritonserver --model-repository=/models
```

{fill(ready, 100)}

## Call

```
pip install numpy pillow 'tritonclient[grpc]'
python {CLIENT} slice.png mask.png --url localhost:8001 --model {serving.name}
```

{CLIENT} is short, and the example to copy from.{pixels} What a client has to do:

1. Read the slice as 8-bit grey and normalise it as `normalization` of the model's parameters says:
   "standardize" subtracts the slice's mean and divides by its standard deviation (at least 1),
   "unit" divides by 255.
2. Mirror it at its lower and right border up to multiples of `multiple` pixels.
3. Send it as `{serving.inputs[0].name}`, {serving.inputs[0].dtype} of batch x 1 x height x width.
4. Cut the padding off `{serving.outputs[0].name}`, batch x classes x height x width; a pixel has
   the class whose probability is largest and not below `threshold`. The classes' names are in
   {serving.name}/{serving.outputs[0].name}-labels.txt.
"""
