"""How long a whole stack takes on a GPU, decoded in memory."""

from __future__ import annotations

import time

import numpy as np
import pytest

from emfast.data.sample import read_sample
from emfast.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.gpu
SLICES = 165
# Slices whose probabilities are in memory at once.
TOGETHER = 8


def test_a_stack_of_165_slices_takes_less_than_two_seconds() -> None:
    """The sample slice as often as the EPFL training stack has slices, 1024 x 768, to masks."""
    sample = read_sample().images[0]
    stack = np.stack([np.roll(sample, shift, axis=1) for shift in range(SLICES)])
    with Segmenter.open(engine="auto", size=sample.shape) as segmenter:
        if "CPU" in segmenter.info.device:
            pytest.skip(f"no engine for this GPU is installed: {segmenter.passed_over}")
        segmenter.segment(stack[:TOGETHER])
        start = time.perf_counter()
        parts = [segmenter.segment(stack[i : i + TOGETHER]) for i in range(0, SLICES, TOGETHER)]
        masks = np.concatenate(parts)
        seconds = time.perf_counter() - start
    print(f"{segmenter.info}: {seconds:.2f} s")
    assert masks.shape == stack.shape and masks.any()
    assert seconds < 2
