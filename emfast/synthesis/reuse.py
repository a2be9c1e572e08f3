"""Reusing deep features between neighbouring steps of a sampling.

What the coarse levels of a U-Net compute changes little from one step to the next. Where it is
computed in every n-th step only and kept in between, the other steps run the finest level alone (Ma
et al., "DeepCache", arXiv 2312.00858, with uniform intervals).
"""

from __future__ import annotations

from collections.abc import Mapping

from emfast.diffusion.spec import DEEP_FEATURES
from engines.engine import Array, DivisibleEngine, Engine
from engines.errors import UserError


class DividedDenoiser:
    """A denoiser's graph in two: all of it, and what follows its deep features.

    Args:
        engine: that runs the whole graph; it stays open.

    Raises:
        UserError: an engine or a bundle that cannot.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, DivisibleEngine):
            raise UserError(
                f"--reuse: {engine.info.engine} runs a graph in one piece; give --engine openvino, "
                "or leave --reuse out"
            )
        try:
            self.whole, self.rest = engine.divide(DEEP_FEATURES)
        except UserError as error:
            raise UserError(
                f"--reuse: {error}; export the denoiser again, or leave --reuse out (one from "
                "diffusers has none)"
            ) from None

    def close(self) -> None:
        """Free both parts."""
        self.whole.close()
        self.rest.close()


class FeatureReuse:
    """Evaluations of one sampling, of which every ``interval``-th computes the deep features.

    Args:
        denoiser: divided.
        interval: 1 computes them every time.
    """

    def __init__(self, denoiser: DividedDenoiser, interval: int) -> None:
        self._denoiser, self._interval = denoiser, interval
        self._evaluations = 0
        self._features: Array | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As :meth:`engines.engine.Engine.run` of the whole graph."""
        outputs: dict[str, Array]
        if self._features is None or self._evaluations % self._interval == 0:
            outputs = self._denoiser.whole.run(inputs)
            self._features = outputs.pop(DEEP_FEATURES)
        else:
            outputs = self._denoiser.rest.run({**inputs, DEEP_FEATURES: self._features})
        self._evaluations += 1
        return outputs
