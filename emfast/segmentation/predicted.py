"""One slice between the network and the writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.segmentation.greys import Prepared


@dataclass(frozen=True)
class Predicted:
    """One slice behind the network.

    Attributes:
        index: in the volume.
        image: as stored (height, width).
        prepared: what was found in its greys; ``x`` is empty.
        probability: float32 (classes, height, width), 0 where the slice holds no number.
    """

    index: int
    image: npt.NDArray[Any]
    prepared: Prepared
    probability: npt.NDArray[np.float32]
