"""Test-time flips: the mean of what the network says of a slice and of its mirror images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Float32 = npt.NDArray[np.float32]
Flips = Literal[1, 4, 8]


def check_flips(flips: int) -> None:
    """:class:`UserError` for a number of mirror images that there is none of."""
    if flips not in get_args(Flips):
        raise UserError(
            f"flips {flips}: give 1 (the slice alone), 4 (mirrored along rows and columns) or 8 "
            "(and transposed)"
        )


def mean_over_flips(predict: Callable[[Float32], Float32], x: Float32, flips: int) -> Float32:
    """The mean over the slice's symmetries.

    Args:
        predict: float32 (slices, 1, height, width) -> new float32 (slices, classes, height, width).
        x: float32 (slices, 1, height, width).
        flips: 1, 4 or 8.
    """
    result = predict(x)
    if flips == 1:
        return result
    for transpose in (False, True)[: flips // 4]:
        turned = x.swapaxes(-1, -2) if transpose else x
        for axes in ((), (-1,), (-2,), (-2, -1)):
            if not transpose and not axes:
                continue
            mirrored = np.flip(predict(np.ascontiguousarray(np.flip(turned, axes))), axes)
            result += mirrored.swapaxes(-1, -2) if transpose else mirrored
    result /= np.float32(flips)
    return result
