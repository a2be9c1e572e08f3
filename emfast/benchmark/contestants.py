"""Who takes part in the benchmark of sampling.

emfast on an engine of this machine, and the peers: diffusers' own pipeline with the network of the
seed paper and with ours, each set up as its documentation advises for a CPU or a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any, Self

from emfast.benchmark.worker import Round
from emfast.diffusion.device_sampling import QUEUED
from engines.engine import Array, Engine

SIZE = (256, 256)
# The seed paper's network: the U-Net of diffusers' tutorial on unconditional training.
SEED_NETWORK: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (
        "DownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": (
        "UpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
    ),
}
STEPS = 700


class TimedEngine:
    """An engine whose runs are timed.

    Attributes:
        seconds: of all runs together.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info = engine.info
        self.seconds = 0.0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = self._engine.run(inputs)
        self.seconds += time.perf_counter() - start
        return outputs

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EmfastSampling:
    """emfast's own loop and noise on one of its engines.

    Args:
        model: a shipped denoiser's name, or a bundle's folder.
        engine, precision, threads: as for :func:`engines.selection.open_engine`.
        batch: images that are drawn together.
    """

    def __init__(
        self, model: str, engine: str, precision: str, threads: int | None, batch: int
    ) -> None:
        from emfast.synthesis.denoiser import Generator

        self._generator = Generator.open(model, engine, precision, threads, batch)
        self.batch = batch
        place = self._generator.prepare(batch)
        self.description = f"{self._generator.engine.info}, loop on the {place.name}"
        self._engine: TimedEngine | None = None
        if place.name == "host":
            self._engine = TimedEngine(self._generator.engine)
            self._generator.engine = self._engine

    def run(self, steps: int) -> Round:
        """Draw one batch with ``steps`` steps."""
        if self._engine is None:
            return self._run_on_device(steps)
        self._engine.seconds = 0.0
        times = [time.perf_counter()]
        self._generator.draw(
            range(self.batch), steps=steps, on_step=lambda: times.append(time.perf_counter())
        )
        return Round(_differences(times), self._engine.seconds)

    def _run_on_device(self, steps: int) -> Round:
        """The host cannot see single steps there: it times some together, and the network alone."""
        alone = self._generator.network_seconds(self.batch, steps)
        times = [time.perf_counter()]
        self._generator.draw(
            range(self.batch), steps=steps, on_step=lambda: times.append(time.perf_counter())
        )
        marks = [*times[:-1:QUEUED], times[-1]]
        return Round(
            tuple(
                seconds / min(QUEUED, steps - i * QUEUED)
                for i, seconds in enumerate(_differences(marks))
                for _ in range(min(QUEUED, steps - i * QUEUED))
            ),
            alone,
        )


class DiffusersSampling:
    """``diffusers.DDPMPipeline`` on random weights, which cost what trained ones do.

    On a CPU: FP32, channels-last. On a GPU: FP16, channels-last, ``torch.compile`` with CUDA
    graphs.

    Args:
        network: "seed", the 113.7 M parameters of the seed paper; "trained", the network of the
            shipped denoiser as training leaves it; or "folded", as it is exported.
        threads: of PyTorch.
        batch: images that are drawn together.
    """

    def __init__(self, network: str, threads: int | None, batch: int) -> None:
        import torch

        diffusers: Any = import_module("diffusers")
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        unet = _seed_unet() if network == "seed" else _emfast_unet(network == "folded")
        cuda = torch.cuda.is_available()
        unet = unet.eval().to(memory_format=torch.channels_last)
        if cuda:
            unet = unet.to("cuda", torch.float16)
            unet = torch.compile(unet, mode="max-autotune")
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=STEPS)
        self._pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=scheduler)
        self._pipeline.set_progress_bar_config(disable=True)
        self._torch, self._cuda = torch, cuda
        self.batch = batch
        place = "FP16, torch.compile, CUDA" if cuda else f"FP32, {torch.get_num_threads()} threads"
        parameters = sum(p.numel() for p in unet.parameters()) / 1e6
        self.description = (
            f"diffusers {diffusers.__version__}, torch {torch.__version__}, {place}, "
            f"channels-last, {parameters:.1f} M parameters"
        )

    def run(self, steps: int) -> Round:
        """Draw one batch with ``steps`` of the pipeline's inference steps."""
        starts: list[float] = []

        def note(*_: object) -> None:
            if self._cuda:
                self._torch.cuda.synchronize()
            starts.append(time.perf_counter())

        hook = self._pipeline.unet.register_forward_pre_hook(note)
        try:
            self._pipeline(batch_size=self.batch, num_inference_steps=steps, output_type="np")
            note()
        finally:
            hook.remove()
        return Round(_differences(starts))


def _seed_unet() -> Any:
    diffusers: Any = import_module("diffusers")
    return diffusers.UNet2DModel(**SEED_NETWORK)


def _emfast_unet(folded: bool) -> Any:
    """Our network in the shape that diffusers' pipeline calls."""
    diffusers: Any = import_module("diffusers")
    configuration: Any = import_module("diffusers.configuration_utils")
    output: Any = import_module("diffusers.models.unets.unet_2d").UNet2DOutput

    from emfast.models.denoiser import Denoiser
    from emfast.models.folded import FoldedDenoiser

    class EmfastUNet(diffusers.ModelMixin, configuration.ConfigMixin):  # type: ignore[misc]
        @configuration.register_to_config  # type: ignore[untyped-decorator]
        def __init__(self, in_channels: int = 2, sample_size: tuple[int, int] = SIZE) -> None:
            super().__init__()
            trained = Denoiser().eval()
            self.network = FoldedDenoiser(trained, merged=True) if folded else trained

        def forward(self, sample: Any, timestep: Any) -> Any:
            timesteps = timestep.reshape(1).expand(len(sample)).to(sample.device)
            return output(sample=self.network(sample, timesteps))

    return EmfastUNet()


def _differences(times: list[float]) -> tuple[float, ...]:
    return tuple(b - a for a, b in pairwise(times))
