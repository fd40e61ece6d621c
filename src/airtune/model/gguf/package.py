"""The gguf package, an extra."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from airtune.errors import MissingExtraError


def require_gguf() -> ModuleType:
    """Import the gguf package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "a GGUF file needs the gguf package, which is not installed; "
            "run pip install 'airtune[gguf]'"
        )
    return importlib.import_module("gguf")
