"""Which codecs a split method may choose from, by its settings and what was calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from airtune.errors import RecipeError
from airtune.plan import CodecSpec

CodecChoice = Literal["auto", "none", "fp16", "topk", "quantised", "deadzone"]
Size = Literal["auto"] | float

_UNMEASURED = CodecSpec("topk", keep=0.3, bits=4)
"""Where Top-K is asked for by name and nothing was measured: the setting the paper reports."""


def check_codec(codec: CodecChoice, keep: Size, bits: int, step: Size) -> None:
    """Refuse settings that no codec has.

    Raises:
        RecipeError: naming the setting, its value and its range.
    """
    kinds = ("auto", "none", "fp16", "topk", "quantised", "deadzone")
    if codec not in kinds:
        raise RecipeError(f"codec must be one of {', '.join(kinds)}, got {codec!r}")
    if keep != "auto" and not (isinstance(keep, int | float) and 0.0 < keep <= 1.0):
        raise RecipeError(f"keep must be auto or in (0, 1], got {keep!r}")
    if not 2 <= bits <= 8:
        raise RecipeError(f"bits must be in [2, 8], got {bits}")
    if step != "auto" and not (isinstance(step, int | float) and 0.0 < step <= 100.0):
        raise RecipeError(f"step must be auto or in (0, 100] standard deviations, got {step!r}")


def codec_menu(
    codec: CodecChoice, *, keep: Size, bits: int, step: Size, measured: Sequence[CodecSpec] = ()
) -> tuple[tuple[CodecSpec, ...], str]:
    """Return the codecs to choose from and, in a few words, why these.

    With `auto` the identity is among those that were measured, so that some choice always keeps the
    budget; a kind that is asked for by name stands alone, and a budget that it cannot keep is
    refused. What was not measured is never compressed with, unless it is asked for by name.

    >>> menu, why = codec_menu("quantised", keep="auto", bits=4, step="auto")
    >>> menu[0].kind, menu[0].keep, menu[0].bits
    ('topk', 1.0, 4)
    """
    if codec == "none":
        return (CodecSpec(),), "no compression"
    if codec == "fp16":
        return (CodecSpec("fp16"),), "fixed codec"
    if codec == "quantised":
        return (CodecSpec("topk", keep=1.0, bits=bits),), "fixed codec"
    if codec == "topk" and keep != "auto":
        return (CodecSpec("topk", keep=float(keep), bits=bits),), "fixed codec"
    if codec == "deadzone" and step != "auto":
        return (CodecSpec("deadzone", step=float(step)),), "fixed codec"
    if measured:
        of_kind = tuple(each for each in measured if codec in ("auto", each.kind))
        if of_kind:
            mildest = (CodecSpec(),) if codec == "auto" and CodecSpec() not in of_kind else ()
            return of_kind + mildest, "within the quality budget"
    if codec == "topk":
        return (_UNMEASURED,), "fixed codec, nothing was measured"
    if codec == "deadzone":
        return (CodecSpec("deadzone"),), "fixed codec, nothing was measured"
    return (CodecSpec(),), "compression cost not measured, so no compression"
