"""Grey pixels of decoded images of any number type."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from emfast.data.image import one_channel
from emfast.volumes.axes import native
from engines.errors import UserError


def single_channel(array: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    """The one grey channel of a decoded image, of numbers.

    Args:
        array, source: as for :func:`~emfast.data.image.one_channel`.

    Returns:
        (height, width) of the same type, in this machine's byte order; bool becomes uint8 0 and
        255.

    Raises:
        UserError: as :func:`~emfast.data.image.one_channel`, or values that are not numbers.
    """
    if array.dtype.kind not in "buif":
        raise UserError(f"{source}: holds {array.dtype} values; EM slices are integers or floats")
    return native(one_channel(array, source))
