"""Choosing the images of a synthetic set that are worth training on."""

from emfast.selection.repair import Repair
from emfast.selection.rules import Rules
from emfast.selection.select import Selection, select_set

__all__ = ["Repair", "Rules", "Selection", "select_set"]
