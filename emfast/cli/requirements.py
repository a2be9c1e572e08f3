"""Commands that need an extra say so before they start."""

from __future__ import annotations

from importlib.util import find_spec

from engines.errors import UserError


def require(extra: str, *modules: str) -> None:
    """Refuse to go on without the modules of an extra; nothing is imported.

    Raises:
        UserError: names the missing modules and the extra to install.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(
            f"this command needs {', '.join(missing)}; install it: pip install 'emfast[{extra}]'"
        )
