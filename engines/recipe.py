"""What decides an engine file: the recipe that it was built by, and the key that it is kept under.

An engine belongs to one graph, one version of TensorRT and one kind of GPU. Nothing of this can be
read from the file itself before TensorRT refuses it, so all of it is in the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from engines.errors import UserError
from engines.plan import BuildOptions, Profile

# Of the cache: raised when the sidecar or the meaning of a recipe changes.
FORMAT = 1


@dataclass(frozen=True)
class GpuIdentity:
    """What an engine depends on in a GPU.

    Attributes:
        name: as the driver gives it, "NVIDIA H100 80GB HBM3".
        compute_capability: "9.0".
        multiprocessors: how many (SMs).
        driver: its version, "580.65.06".
    """

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str

    @property
    def target(self) -> str:
        """The compute capability as :class:`~engines.plan.BuildOptions` names it, "sm90"."""
        return f"sm{self.compute_capability.replace('.', '')}"

    def __str__(self) -> str:
        return f"{self.name} ({self.target}, {self.multiprocessors} SMs), driver {self.driver}"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an engine file is.

    Attributes:
        graph: SHA-256 of the ONNX file, which holds the weights.
        precision: of the graph.
        profile: the shapes that the engine takes.
        options: how it was built.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: full version of the TensorRT package.
        gpu: that it was built on; None where it was built ahead of time for ``options.targets``.

    Raises:
        UserError: neither a GPU nor targets.
    """

    graph: str
    precision: str
    profile: Profile
    options: BuildOptions
    flavour: str
    version: str
    gpu: GpuIdentity | None

    def __post_init__(self) -> None:
        if self.gpu is None and not self.options.targets:
            raise UserError("no GPU to build for; name compute capabilities to target, as sm86")

    @cached_property
    def key(self) -> str:
        """SHA-256 over every field and the cache's format, as 64 hexadecimal digits."""
        values = {"format": FORMAT, **asdict(self)}
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The start of the key, which names the files."""
        return self.key[:16]

    def akin(self, wanted: Recipe) -> bool:
        """Whether it is the same network in the same precision for the same flavour."""
        mine = (self.graph, self.precision, self.flavour)
        return mine == (wanted.graph, wanted.precision, wanted.flavour)

    def serves(self, wanted: Recipe) -> bool:
        """Whether an engine of this recipe does what one of ``wanted`` would.

        Its profile may be wider. Its builder options may differ: they change how fast the engine
        is built and runs, and not what it computes.
        """
        return self.akin(wanted) and not self.differences(wanted)

    def runs_on(self, gpu: GpuIdentity) -> bool:
        """Whether an engine of this recipe can be loaded on a GPU.

        On the GPU and driver that it was built on, and on those that it was built to be
        compatible with. Whether it then computes the right thing has to be verified there.
        """
        if self.options.targets:
            return gpu.target in self.options.targets
        if self.gpu == gpu:
            return True
        if self.options.hardware_compatibility == "ampere-plus":
            return int(gpu.compute_capability.split(".")[0]) >= 8
        if self.options.hardware_compatibility == "same-compute-capability":
            return self.gpu is not None and gpu.target == self.gpu.target
        return False

    def differences(self, wanted: Recipe) -> list[str]:
        """Why an engine of this recipe does not serve, each reason completing "an engine that ..".

        Args:
            wanted: a recipe akin to this one.
        """
        reasons = []
        if self.version != wanted.version:
            reasons.append(f"is of {self.flavour} {self.version}, not {wanted.version}")
        if wanted.gpu is None:
            missing = [t for t in wanted.options.targets if t not in self.options.targets]
            if missing:
                reasons.append(f"was built for {self.hardware}, not for {', '.join(missing)}")
        elif not self.runs_on(wanted.gpu):
            reasons.append(self._other_gpu(wanted.gpu))
        if not self.profile.admits(wanted.profile):
            reasons.append(f"takes {self.profile}, not {wanted.profile}")
        return reasons

    def _other_gpu(self, gpu: GpuIdentity) -> str:
        if self.gpu and (self.gpu.name, self.gpu.target) == (gpu.name, gpu.target):
            if self.gpu.driver != gpu.driver:
                return f"was built under driver {self.gpu.driver}, not {gpu.driver}"
            sms = f"{self.gpu.multiprocessors} multiprocessors"
            return f"was built for {sms} of {gpu.name}, not {gpu.multiprocessors}"
        return f"was built for {self.hardware}, not for {gpu.name} ({gpu.target})"

    @property
    def hardware(self) -> str:
        """What it was built for, in words: a GPU or the targets."""
        if self.options.targets or self.gpu is None:
            return ", ".join(self.options.targets)
        return f"{self.gpu.name} ({self.gpu.target})"

    def outdated(self, versions: Mapping[str, str], gpus: Sequence[GpuIdentity]) -> str | None:
        """Why this machine can never use an engine of this recipe again; None where it might.

        An engine of a flavour or a GPU that this machine lacks is not outdated: it may belong to
        another machine that shares the folder.

        Args:
            versions: of each flavour that is installed here.
            gpus: of this machine.
        """
        installed = versions.get(self.flavour, self.version)
        if installed != self.version:
            return f"is of {self.flavour} {self.version}; this machine has {installed}"
        if self.gpu is None or any(self.runs_on(gpu) for gpu in gpus):
            return None
        drivers = [gpu.driver for gpu in gpus if gpu.name == self.gpu.name]
        if not drivers or self.gpu.driver in drivers:
            return None
        return f"was built under driver {self.gpu.driver}; this machine has {drivers[0]}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "options": self.options.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            **{
                **values,
                "profile": Profile.from_dict(values["profile"]),
                "options": BuildOptions.from_dict(values["options"]),
                "gpu": values["gpu"] and GpuIdentity(**values["gpu"]),
            }
        )

    def __str__(self) -> str:
        return (
            f"{self.flavour} {self.version} engine of graph {self.graph[:8]}, {self.precision}, "
            f"{self.profile}, for {self.hardware}"
        )
