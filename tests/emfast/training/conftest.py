from __future__ import annotations

import numpy as np
import pytest
import torch

from emfast.data.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Stack:
    """Bright slices with dark discs under the masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    masks = np.stack([((y - 30 - 4 * i) ** 2 + (x - 50) ** 2 < 300) for i in range(4)])
    images = 150 - 80 * masks + rng.normal(0, 10, masks.shape)
    return Stack(images.astype(np.uint8), masks.astype(np.uint8), tuple("abcd"), "discs")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
