"""Where in a method's own file an error is, for messages about plug-ins."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

from airtune.errors import AirtuneError, MethodError
from airtune.plan.method import Method

Part = Literal["init", "plan", "divide", "learn"]


@contextmanager
def blamed(method: Method, part: Part) -> Iterator[None]:
    """Name the file and line of what goes wrong while a part of a method is called and checked.

    Args:
        method: whose part is called in the block.
        part: the function that is called.

    Raises:
        MethodError: instead of whatever a plug-in raises, and of a broken promise of any method.
            Other errors of airtune pass as they are, and so does a fault of a built-in method.
    """
    try:
        yield
    except MethodError as error:
        raise MethodError(f"{_where(method, part, error)}: {error}") from error
    except AirtuneError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's method can raise anything
        if is_built_in(method):
            raise
        where = _where(method, part, error)
        raise MethodError(f"{where}: {type(error).__name__}: {error}") from error


def is_built_in(method: Method) -> bool:
    """Return whether a method's decider is airtune's own."""
    return type(method.decider).__module__.partition(".")[0] == "airtune"


def line_of(trace: TracebackType | None, file: str) -> int | None:
    """Return the last line of a file that a traceback passes through, or None."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == file]
    return lines[-1] if lines else None


def _where(method: Method, part: Part, error: BaseException) -> str:
    """Return `mine.py:12 (Mine.plan)`: the line that raised, or where the part begins."""
    kind = type(method.decider)
    code = getattr(getattr(kind, part, None), "__code__", None)
    module = sys.modules.get(kind.__module__)
    own = str(getattr(module, "__file__", None) or getattr(code, "co_filename", "?"))
    line = line_of(error.__traceback__, own)
    if line is None and code is not None:
        own, line = code.co_filename, code.co_firstlineno
    return f"{_short(own)}:{line or '?'} ({kind.__name__}.{part})"


def _short(file: str) -> str:
    """Return a path from the working folder where it is below it."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
