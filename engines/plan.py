"""What an engine is built for: the shapes it takes, and how its builder is told to work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from engines.bundle import TensorSpec
from engines.errors import UserError

HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")
OPTIMIZATION_LEVELS = range(6)
IMAGE_AXES = ("batch", "channels", "height", "width")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The sizes of a free axis that an engine takes, and the one that it is tuned for."""

    minimum: int
    best: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.best <= self.maximum:
            raise UserError(
                f"sizes {self.minimum}, {self.best}, {self.maximum}: expected a minimum of at "
                "least 1, the best and a maximum, in this order"
            )

    @classmethod
    def fixed(cls, size: int) -> Self:
        """One size and no other."""
        return cls(size, size, size)

    @classmethod
    def parse(cls, text: str) -> Self:
        """A size, "8", or a minimum, the best and a maximum, "1:8:64".

        Raises:
            UserError: another text, or sizes that are not in order.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise UserError(
                f"{text!r}: expected one size, as in 8, or minimum:best:maximum, as in 1:8:64"
            )
        sizes = [int(part) for part in parts]
        return cls.fixed(sizes[0]) if len(sizes) == 1 else cls(*sizes)

    @property
    def static(self) -> bool:
        """Whether only one size is taken."""
        return self.minimum == self.maximum

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum

    def __str__(self) -> str:
        if self.static:
            return str(self.best)
        return f"{self.minimum} to {self.maximum} (best {self.best})"


@dataclass(frozen=True)
class Profile:
    """The shapes that an engine takes: TensorRT's optimisation profile, axis by axis.

    Attributes:
        batch: images that run together.
        height, width: of an image, in pixels.
    """

    batch: Range
    height: Range
    width: Range

    @classmethod
    def fixed(cls, batch: int, height: int, width: int) -> Self:
        """One shape and no other."""
        return cls(Range.fixed(batch), Range.fixed(height), Range.fixed(width))

    @property
    def static(self) -> bool:
        """Whether only one shape is taken."""
        return self.batch.static and self.height.static and self.width.static

    def admits(self, other: Profile) -> bool:
        """Whether every shape of ``other`` is one of this profile's."""
        pairs = (
            (self.batch, other.batch),
            (self.height, other.height),
            (self.width, other.width),
        )
        return all(theirs.minimum in ours and theirs.maximum in ours for ours, theirs in pairs)

    def shapes(self, spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
        """Minimum, best and maximum shape of one input.

        Args:
            spec: of the input; its free axes are named "batch", "height" and "width". One with
                four axes is an image: batch, channels, height, width.

        Raises:
            UserError: a free axis of another name, or an image whose batch, height or width is
                fixed while this profile has another.
        """
        ranges = [self._range(spec, axis, size) for axis, size in enumerate(spec.shape)]
        minimum = tuple(r.minimum for r in ranges)
        best = tuple(r.best for r in ranges)
        return minimum, best, tuple(r.maximum for r in ranges)

    def _range(self, spec: TensorSpec, axis: int, size: int | str) -> Range:
        free = {"batch": self.batch, "height": self.height, "width": self.width}
        if isinstance(size, int):
            name = IMAGE_AXES[axis] if len(spec.shape) == len(IMAGE_AXES) else "channels"
            fixed = Range.fixed(size)
            if free.get(name, fixed) != fixed:
                raise UserError(
                    f"input {spec.name}: its {name} is fixed at {size}, but {free[name]} was "
                    f"asked for; name {size}"
                )
            return fixed
        if size not in free:
            raise UserError(
                f"input {spec.name}: its axis {axis} is {size!r}; an engine can be built where "
                f"free axes are {', '.join(free)}"
            )
        return free[size]

    def to_dict(self) -> dict[str, dict[str, int]]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, int]]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(**{axis: Range(**sizes) for axis, sizes in values.items()})

    def __str__(self) -> str:
        return f"batch {self.batch}, width {self.width}, height {self.height}"


@dataclass(frozen=True)
class BuildOptions:
    """How TensorRT is told to build. The precision is not here: the graph holds it.

    Attributes:
        workspace: most device memory that a layer may use as scratch, in bytes; all by default.
        optimization_level: 0 builds fastest, 5 searches longest; TensorRT's default is 3.
        hardware_compatibility: of TensorRT: "none" for the GPU that it was built on,
            "same-compute-capability", or "ampere-plus" for every GPU from compute capability 8.0.
            Engines of TensorRT-RTX are portable by ``targets``.
        targets: of TensorRT-RTX: compute capabilities to build for, as "sm86", on a machine that
            needs no GPU; the GPU of this machine by default. They are a set: kept in rising order.
    """

    workspace: int | None = None
    optimization_level: int = 3
    hardware_compatibility: str = "none"
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise UserError(f"workspace of {self.workspace} bytes; expected at least 1")
        if self.optimization_level not in OPTIMIZATION_LEVELS:
            raise UserError(
                f"optimisation level {self.optimization_level}; expected "
                f"{OPTIMIZATION_LEVELS[0]} to {OPTIMIZATION_LEVELS[-1]}"
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise UserError(
                f"hardware compatibility {self.hardware_compatibility!r}; accepted: "
                f"{', '.join(HARDWARE_COMPATIBILITY)}"
            )
        targets = {target.lower() for target in self.targets}
        for target in sorted(targets):
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise UserError(
                    f"target {target!r}; expected a compute capability, as sm86 for 8.6"
                )
        ordered = sorted(targets, key=lambda target: int(target[2:]))
        object.__setattr__(self, "targets", tuple(ordered))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "targets": tuple(values["targets"])})


def check_inputs(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    """:class:`UserError` unless a profile can be written for every input."""
    for spec in inputs:
        profile.shapes(spec)
