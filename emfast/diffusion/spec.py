"""How a denoiser is sampled and what its channels mean: the domain's part of its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emfast.channels import Channel, clip_range
from emfast.diffusion.samplers import Sampler, make_sampler
from emfast.diffusion.schedule import Schedule
from engines.errors import UserError

# The tensor inside a denoiser's graph that a sampling can reuse in the next steps: what the coarser
# levels hand to the decoder's last.
DEEP_FEATURES = "deep_features"


@dataclass(frozen=True, eq=False)
class DenoiserSpec:
    """A denoiser's schedule, channels and sampling.

    Attributes:
        schedule: that the network was trained on.
        channels: what each channel of ``x`` holds.
        variance: of ancestral sampling, "fixed_small" or "fixed_large".
        clip: whether sampling keeps its estimate of the clean image within the channels' clip.
        size: height and width of the images that the network was trained to draw.
    """

    schedule: Schedule
    channels: tuple[Channel, ...]
    variance: str
    clip: bool
    size: tuple[int, int]

    def sampler(self, steps: int | None = None, name: str = "ddpm", eta: float = 0.0) -> Sampler:
        """A sampler of ``steps`` steps, all of the schedule's by default.

        Args:
            steps: how many.
            name: one of :data:`emfast.diffusion.samplers.SAMPLERS`.
            eta: of "ddim", in [0, 1]; the others take none.

        Raises:
            UserError: more steps than the schedule has, or an unknown sampler, eta or variance.
        """
        clip = clip_range(self.channels) if self.clip else None
        return make_sampler(name, self.schedule, steps, eta, self.variance, clip)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "schedule": self.schedule.to_dict(),
            "channels": [channel.to_dict() for channel in self.channels],
            "variance": self.variance,
            "clip": self.clip,
            "size": list(self.size),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DenoiserSpec:
        """The inverse of :meth:`to_dict`; :class:`UserError` for malformed entries."""
        try:
            height, width = (int(v) for v in values["size"])
            return cls(
                schedule=Schedule.from_dict(values["schedule"]),
                channels=tuple(Channel.from_dict(c) for c in values["channels"]),
                variance=str(values["variance"]),
                clip=bool(values["clip"]),
                size=(height, width),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"denoiser: missing or malformed entry ({error})") from None
