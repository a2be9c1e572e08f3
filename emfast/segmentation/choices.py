"""The words of ``emfast segment`` as settings."""

from __future__ import annotations

from typing import Any, cast, get_args

from emfast.segmentation.instances import METHODS, Method
from emfast.segmentation.preprocessing import Scope
from emfast.segmentation.settings import ProbabilityType, Settings
from engines.errors import UserError

VALUES = ("0-255", "0-1")


def choices(
    normalize: str | None,
    values: str,
    probability: str | None,
    instances: str | None,
    **others: Any,
) -> tuple[Scope | None, Settings]:
    """Check words against what there is.

    Args:
        normalize: "slice", "volume" or None.
        values: one of :data:`VALUES`.
        probability: "float32", "uint8" or None.
        instances: one of :data:`emfast.segmentation.instances.METHODS`, or None.
        others: of :class:`~emfast.segmentation.settings.Settings`.

    Raises:
        UserError: another word.
    """
    for option, word, accepted in (
        ("--normalize", normalize, get_args(Scope)),
        ("--values", values, VALUES),
        ("--probability", probability, get_args(ProbabilityType)),
        ("--instances", instances, METHODS),
    ):
        if word is not None and word not in accepted:
            raise UserError(f"{option} {word}: accepted are {', '.join(accepted)}")
    settings = Settings(
        ones=values == "0-1",
        probability=cast("ProbabilityType | None", probability),
        instances=cast("Method | None", instances),
        **others,
    )
    return cast("Scope | None", normalize), settings
