"""Grey pixels of decoded images of any number type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.volumes.axes import native
from engines.errors import UserError


def single_channel(array: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    """The one grey channel of a decoded image.

    Args:
        array: (height, width) or (height, width, 1 to 4 channels).
        source: named in error messages.

    Returns:
        (height, width) of the same type, in this machine's byte order; bool becomes uint8 0 and
        255. Equal colour channels are merged, an opaque alpha channel is dropped.

    Raises:
        UserError: colours that differ, transparency, or values that are not numbers.
    """
    if array.dtype.kind not in "buif":
        raise UserError(f"{source}: holds {array.dtype} values; EM slices are integers or floats")
    array = native(array)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        opaque = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
        if not (array[..., -1] == opaque).all():
            raise UserError(f"{source}: has transparent pixels; flatten it to opaque grey first")
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] in (1, 3):
        if not (array == array[..., :1]).all():
            raise UserError(f"{source}: is a colour image; EM slices and masks must be grey")
        array = array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{source}: has shape {array.shape}; expected one image (height, width)")
    return array
