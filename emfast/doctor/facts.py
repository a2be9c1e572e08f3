"""Everything that ``emfast doctor`` finds out about a machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from emfast import __version__
from engines.bundle import open_bundle, shipped_bundles
from engines.diagnosis import (
    CUDA_LIBRARIES,
    MNN,
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TENSORRT_RTX,
    Machine,
    Problem,
    conflicts,
    provider_reason,
)
from engines.errors import UserError
from engines.isolated import ask
from engines.probe import Gpus, Module, packages, probe_gpus, probe_module, probe_provider

# Of the JSON that to_dict gives; raised when a key changes its meaning.
FORMAT = 1
TRIAL = "emfast.doctor.trial"
# A first choice may build TensorRT engines.
CHOICE_SECONDS = 1800.0
# Modules to look at, and the packages that bring them.
MODULES = {
    "onnxruntime": ONNXRUNTIME,
    "MNN": MNN,
    "openvino": OPENVINO,
    "tensorrt": TENSORRT,
    "tensorrt_rtx": TENSORRT_RTX,
    "cuda.bindings.runtime": "cuda-bindings",
    "numpy": "numpy",
}
# Engines for CPUs that need no onnxruntime.
OTHERS = ("MNN", "openvino")
# Processes that look around at the same time.
WORKERS = 4


@dataclass(frozen=True)
class ProviderFacts:
    """A provider that onnxruntime lists.

    Attributes:
        name: onnxruntime's.
        works: whether it ran a tiny network with the right numbers.
        reason: why not.
    """

    name: str
    works: bool
    reason: str | None


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that comes with emfast.

    Attributes:
        name: as ``--model`` takes it.
        kind: "denoiser" or "segmenter"; None if it cannot be opened.
        precisions: of its graphs.
        sha256: of each file by name.
        reason: which file is missing or altered; None if all match.
    """

    name: str
    kind: str | None
    precisions: tuple[str, ...]
    sha256: dict[str, str]
    reason: str | None


@dataclass(frozen=True)
class Choice:
    """What ``--engine auto`` takes for a bundle.

    Attributes:
        bundle: its name.
        engine: engine, precision, device and version; None if none runs.
        passed_over: one line for each engine that was tried first, with the reason.
        reason: why none runs.
    """

    bundle: str
    engine: dict[str, str] | None
    passed_over: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class CacheFacts:
    """The cache of TensorRT engines.

    Attributes:
        folder: where it is.
        entries: number of engines.
        size: of all its files, in bytes.
        reason: why it cannot be read.
    """

    folder: str
    entries: int
    size: int
    reason: str | None


@dataclass(frozen=True)
class Facts:
    """All that was found out.

    Attributes:
        emfast, python, platform: versions and operating system.
        gpus: of this process.
        modules: onnxruntime, MNN, OpenVINO, TensorRT, TensorRT-RTX, CUDA's bindings and numpy.
        providers: of onnxruntime.
        bundles: shipped.
        choices: of ``--engine auto``, one for each bundle.
        cache: of TensorRT engines.
        problems: to mend.
    """

    emfast: str
    python: str
    platform: str
    gpus: Gpus
    modules: tuple[Module, ...]
    providers: tuple[ProviderFacts, ...]
    bundles: tuple[BundleFacts, ...]
    choices: tuple[Choice, ...]
    cache: CacheFacts
    problems: tuple[Problem, ...]

    @property
    def runs(self) -> bool:
        """Whether something can run here."""
        return any(choice.engine is not None for choice in self.choices)

    @property
    def verdict(self) -> str:
        """What all of it comes to, in a sentence or two."""
        problems = len(self.problems)
        mend = f" {problems} problem{'s' * (problems > 1)} to mend, see above." if problems else ""
        if not self.runs:
            return f"nothing can run here: {self._why_nothing()}.{mend}"
        engines = {
            f"{c.engine['engine']} ({c.engine['version']}) on {c.engine['device']}": None
            for c in self.choices
            if c.engine is not None
        }
        refused = [c.bundle for c in self.choices if c.engine is None]
        but = f", but not {' and '.join(refused)}" if refused else ""
        cpu = all(c.engine is None or _on_cpu(c.engine) for c in self.choices)
        gpu = "" if not cpu else f" No GPU is used: {self.gpus.reason or 'see above'}."
        return f"emfast runs here, with {' and '.join(engines)}{but}.{gpu}{mend}"

    def _why_nothing(self) -> str:
        onnxruntime = self.module("onnxruntime")
        others = any(module.version for module in self.modules if module.name in OTHERS)
        if onnxruntime.version is None and not others:
            missing = onnxruntime.reason == "not installed"
            return "no onnxruntime is installed" if missing else "onnxruntime does not load"
        return next((c.reason for c in self.choices if c.reason), "there is no bundle")

    def module(self, name: str) -> Module:
        """The module of a name."""
        return next(module for module in self.modules if module.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; docs/doctor.md describes them."""
        values = asdict(self)
        return {"format": FORMAT, **values, "runs": self.runs, "verdict": self.verdict}


def examine(tell: Callable[[str], None]) -> Facts:
    """Look at this machine. Nothing is installed or fetched.

    TensorRT engines that ``auto`` would build in the first run are built now.

    Args:
        tell: is given what is looked at before it starts.
    """
    tell("drivers, packages and providers")
    with ThreadPoolExecutor(WORKERS) as pool:
        gpus = pool.submit(probe_gpus)
        loaded = tuple(pool.map(probe_module, MODULES, MODULES.values()))
        modules = {module.name: module for module in loaded}
        listed = modules["onnxruntime"].facts.get("providers", ())
        providers = list(pool.map(probe_provider, listed))
    machine = Machine(
        gpus.result(),
        modules["onnxruntime"],
        modules["tensorrt"],
        providers,
        packages(CUDA_LIBRARIES),
        tuple(modules[name] for name in OTHERS),
    )
    names = shipped_bundles()
    bundles = tuple(_bundle(name) for name in names)
    # One after the other: TensorRT measures kernels while it builds, and wants the GPU for itself.
    choices = tuple(_choice(name, tell) for name in names)
    return Facts(
        emfast=__version__,
        python=platform.python_version(),
        platform=f"{_system()}, {platform.machine()}",
        gpus=machine.gpus,
        modules=loaded,
        providers=tuple(
            ProviderFacts(p.name, p.error is None, p.error and provider_reason(p, machine))
            for p in providers
        ),
        bundles=bundles,
        choices=choices,
        cache=_cache(),
        problems=(
            *_bundle_problems(bundles),
            *(_numpy_problem(modules["numpy"]) or conflicts(machine)),
            *_idle_gpu(machine, choices),
        ),
    )


def _system() -> str:
    """The distribution, which decides what can be installed, or else the kernel."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"


def _choice(name: str, tell: Callable[[str], None]) -> Choice:
    tell(f"what auto takes for {name}")
    reply = ask(TRIAL, "choose", name, timeout=CHOICE_SECONDS)
    if reply.value is None:
        return Choice(name, None, (), reply.failure)
    value = reply.value
    return Choice(name, value["engine"], tuple(value["passed_over"]), value["reason"])


def _bundle(name: str) -> BundleFacts:
    try:
        bundle = open_bundle(name)
    except UserError as error:
        return BundleFacts(name, None, (), {}, str(error))
    files = {"manifest.json": bundle.sha256, **bundle.manifest.files}
    return BundleFacts(name, bundle.manifest.kind, bundle.precisions, files, None)


def _cache() -> CacheFacts:
    from engines.cache import EngineCache

    cache = EngineCache()
    try:
        return CacheFacts(str(cache.folder), len(cache.entries()), cache.size(), None)
    except UserError as error:
        return CacheFacts(str(cache.folder), 0, 0, str(error))


def _bundle_problems(bundles: Sequence[BundleFacts]) -> list[Problem]:
    return [
        Problem(
            f"bundle {bundle.name} is damaged",
            f"{bundle.reason}.",
            (f"pip install --force-reinstall --no-deps emfast=={__version__}",),
        )
        for bundle in bundles
        if bundle.reason is not None
    ]


def _numpy_problem(numpy: Module) -> list[Problem]:
    if numpy.version is not None:
        return []
    why = f"{numpy.reason}. Nothing runs without it, and all else can be looked at after it."
    return [Problem("numpy does not load", why, ("pip install --force-reinstall numpy",))]


def _on_cpu(engine: dict[str, str]) -> bool:
    return engine["device"].startswith("CPU")


def _idle_gpu(machine: Machine, choices: Sequence[Choice]) -> list[Problem]:
    """A GPU that nothing uses because onnxruntime is the one for CPUs."""
    used = [choice.engine for choice in choices if choice.engine is not None]
    gpus, installed = machine.gpus.gpus, list(machine.onnxruntime.packages)
    if not gpus or not used or not all(map(_on_cpu, used)) or installed != ["onnxruntime"]:
        return []
    return [
        Problem(
            "the GPU stands idle",
            f"{gpus[0]['name']} is here, but nothing that is installed uses it.",
            ("pip uninstall -y onnxruntime", "pip install 'emfast[gpu]'"),
        )
    ]
