"""The settings of both trainings and their presets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from emfast.data.tiles import PAPER_SIZE
from engines.errors import UserError

# torch and numpy both take seeds up to here, with room for the iteration.
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """What both trainings share.

    Attributes:
        crops: (side in pixels, batch) of the iterations, in turn: ((128, 16), (256, 4)) alternates.
        iterations: optimizer steps of the whole run.
        epochs: passes over the paper's fixed tiles, which ``iterations`` follows from where it
            is 0; 0 epochs where training takes random crops instead.
        learning_rate: the peak of the optimizer's.
        final_learning_rate: at the end of the run.
        warmup: iterations over which the learning rate rises from 0.
        decay: "cosine" over the whole run; "linear" over its last fifth, constant before; "steps":
            a tenth of the rate each third of the run.
        weight_decay: of AdamW.
        betas: of AdamW.
        ema: relative width of the weights' exponential moving average, as a share of the run so
            far (EDM2, arXiv 2312.02696, eq. 123); 0 for none.
        precision: "bf16" runs convolutions in bfloat16 (autocast) where the device computes it
            itself, "fp32" does not.
        seed: decides weights, batches and noise.
    """

    crops: tuple[tuple[int, int], ...]
    iterations: int
    epochs: int
    learning_rate: float
    final_learning_rate: float
    warmup: int
    decay: Literal["cosine", "linear", "steps"]
    weight_decay: float
    betas: tuple[float, float]
    ema: float
    precision: Literal["bf16", "fp32"]
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed {self.seed} is outside [0, {MAX_SEED}]")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        crops = tuple((int(side), int(batch)) for side, batch in values["crops"])
        known = {f.name: values[f.name] for f in fields(cls)}
        return cls(**{**known, "crops": crops, "betas": tuple(values["betas"])})

    def override(self, **values: Any) -> Self:
        """A copy with the values that are not None."""
        return replace(self, **{k: v for k, v in values.items() if v is not None})

    def complete(self, tiles: int, multiple: int) -> Self:
        """A copy with the iterations that the epochs make, checked.

        Args:
            tiles: that an epoch passes over.
            multiple: of pixels that the network's input sides must be.

        Raises:
            UserError: values that no training can have.
        """
        for side, batch in self.crops:
            if side < multiple or side % multiple or batch < 1:
                raise UserError(
                    f"{batch} crops of {side} x {side} pixels: a batch needs at least one, with a "
                    f"side that is a multiple of {multiple}"
                )
        if self.epochs and self.crops != ((PAPER_SIZE, self.crops[0][1]),):
            raise UserError(
                f"this preset passes over the paper's tiles of {PAPER_SIZE} x {PAPER_SIZE} pixels; "
                "crops of another size go with --preset default"
            )
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning rate {self.learning_rate}: give a number above 0")
        iterations = self.iterations or self.epochs * -(-tiles // self.crops[0][1])
        if iterations < 1:
            raise UserError(f"{iterations} iterations: at least 1 is needed")
        return replace(self, iterations=iterations)


@dataclass(frozen=True)
class DenoiserSettings(Settings):
    """Settings of the denoiser's training.

    Attributes:
        widths: feature channels of each resolution level.
        blocks: residual blocks of each level, or of all.
        patch: space-to-depth factor of the stem.
        steps: timesteps of the schedule.
        prediction: what the network predicts.
        schedule: "cosine", shifted by 64 / 256 with zero terminal SNR, or "linear", the seed's.
        skew: of the timesteps of each of ``crops``: t / steps = 1 - (1 - u)^skew with u uniform in
            [0, 1). 1 is uniform, more draws more noise: 3 puts half of the timesteps into the
            noisiest eighth.
        coarse: weight of an error's means over squares of 2, 4, 8... pixels beside its pixels, for
            each pixel of the square's side; 0 for pixels alone.
        mask_weight: weight of the error of mask channels beside that of image channels.
        symmetric: channels from -1 to 1, as the seed paper has them, instead of standardised.
        symmetries: which of the 8 flips and quarter turns a crop may get, as numbers of
            :func:`emfast.training.batches.flip_turn`; (0,) leaves all upright.
        sample_every: iterations between the samples that are drawn during training.
    """

    widths: tuple[int, ...]
    blocks: int | tuple[int, ...]
    patch: int
    steps: int
    prediction: Literal["epsilon", "v_prediction"]
    schedule: Literal["cosine", "linear"]
    skew: tuple[float, ...]
    coarse: float
    mask_weight: float
    symmetric: bool
    symmetries: tuple[int, ...]
    sample_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.skew) != len(self.crops):
            raise UserError(f"{len(self.skew)} skews for {len(self.crops)} kinds of crops")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        blocks = values["blocks"]
        if not isinstance(blocks, int):
            blocks = tuple(blocks)
        # What runs from before these settings did.
        before: dict[str, Any] = {
            "skew": [1.0] * len(values["crops"]),
            "coarse": 0.0,
            "mask_weight": 1.0,
            "symmetries": range(8) if values.get("dihedral") else [0],
        }
        values = before | values
        tuples = {key: tuple(values[key]) for key in ("widths", "skew", "symmetries")}
        return super().from_dict({**values, **tuples, "blocks": blocks})

    def override(self, **values: Any) -> Self:
        """A copy with the values that are not None; new crops alone have uniform timesteps."""
        if values.get("crops") is not None and values.get("skew") is None:
            values["skew"] = (1.0,) * len(values["crops"])
        return super().override(**values)


@dataclass(frozen=True)
class SegmenterSettings(Settings):
    """Settings of the segmenter's training.

    Attributes:
        network: "light", 1 976 897 parameters for one class, or "full", the classic U-Net.
        loss: soft Dice alone, or with binary cross-entropy.
        standardize: whether each slice's greys are shifted and scaled to mean 0 and deviation 1;
            otherwise they are divided by 255.
        augment: "paper": flips, quarter turns, 7 degrees, 5 % shift, 10 % zoom and noise;
            "elastic": more rotation and zoom, a smooth bend, noise, contrast, brightness and blur.
        validate_every: iterations between scores on the held-out slices.
    """

    network: Literal["light", "full"]
    loss: Literal["dice", "dice+bce"]
    standardize: bool
    augment: Literal["paper", "elastic"]
    validate_every: int


DENOISER_PRESETS = {
    # Section 3 of the seed paper, with the optimizer of the diffusers tutorial that it follows. Its
    # learning rate of 4e-4 changes the weights of a plain U-Net, of magnitude 0.01 to 0.03, by some
    # percent a step; this network's have magnitude 1, and need 1e-2 for about the same. The weight
    # decay, which AdamW multiplies with the rate, is the tutorial's 1e-2 in proportion.
    "paper": DenoiserSettings(
        crops=((256, 16),),
        iterations=0,
        epochs=40,
        learning_rate=1e-2,
        final_learning_rate=0.0,
        warmup=500,
        decay="cosine",
        weight_decay=4e-4,
        betas=(0.9, 0.999),
        ema=0.0,
        precision="bf16",  # The tutorial's mixed precision, with a type that needs no loss scaling.
        seed=0,
        widths=(24, 56, 112, 176, 128),
        blocks=(2, 2, 2, 2, 1),
        patch=2,
        steps=700,
        prediction="epsilon",
        schedule="linear",
        skew=(1.0,),
        coarse=0.0,
        mask_weight=1.0,
        symmetric=True,
        symmetries=(0,),
        sample_every=1080,
    ),
    "default": DenoiserSettings(
        # How a tile's parts go together is decided where noise is high, and only whole tiles teach
        # it; texture is decided where it is low, and small crops teach it for a quarter of the
        # cost.
        crops=((128, 16), (256, 4)),
        iterations=20000,
        epochs=0,
        learning_rate=1e-2,
        final_learning_rate=0.0,
        warmup=300,
        decay="linear",
        weight_decay=0.0,
        betas=(0.9, 0.99),
        ema=0.05,
        precision="bf16",
        seed=0,
        widths=(24, 56, 112, 176, 128),
        blocks=(2, 2, 2, 2, 1),
        patch=2,
        steps=700,
        prediction="v_prediction",
        schedule="cosine",
        skew=(0.5, 3.0),
        # A tile's area of mitochondria and its mean grey are decided where noise is high, by means
        # over many pixels. Of the error of pixels, most of which nothing can predict there, they
        # are a small part, and alone they are learned too weakly.
        coarse=0.125,
        # With 6 % of objects, a mask's variance is a fifth of the image's.
        mask_weight=4.0,
        symmetric=False,
        # Upright and turned by a half: a stack's cells and blur have a direction, and its mirror
        # image is another tissue to a feature network (docs/designs.md).
        symmetries=(0, 2),
        sample_every=2000,
    ),
}

SEGMENTER_PRESETS = {
    "paper": SegmenterSettings(
        crops=((256, 7),),
        iterations=0,
        epochs=200,
        learning_rate=1e-4,
        final_learning_rate=1e-6,
        warmup=0,
        decay="steps",
        weight_decay=0.0,
        betas=(0.9, 0.999),
        ema=0.0,
        precision="fp32",
        seed=0,
        network="light",
        loss="dice",
        standardize=False,
        augment="paper",
        validate_every=1000,
    ),
    "default": SegmenterSettings(
        crops=((256, 8),),
        iterations=2500,
        epochs=0,
        learning_rate=2e-3,
        final_learning_rate=0.0,
        warmup=50,
        decay="cosine",
        weight_decay=1e-4,
        betas=(0.9, 0.99),
        ema=0.05,
        precision="bf16",
        seed=0,
        network="light",
        loss="dice+bce",
        standardize=True,
        augment="elastic",
        validate_every=500,
    ),
}


def denoiser_preset(name: str) -> DenoiserSettings:
    """A preset by its name; :class:`UserError` lists the names that exist."""
    if name not in DENOISER_PRESETS:
        raise UserError(f"unknown preset {name!r}; accepted: {', '.join(DENOISER_PRESETS)}")
    return DENOISER_PRESETS[name]


def segmenter_preset(name: str) -> SegmenterSettings:
    """A preset by its name; :class:`UserError` lists the names that exist."""
    if name not in SEGMENTER_PRESETS:
        raise UserError(f"unknown preset {name!r}; accepted: {', '.join(SEGMENTER_PRESETS)}")
    return SEGMENTER_PRESETS[name]
