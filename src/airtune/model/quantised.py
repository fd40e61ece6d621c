"""Linear layers held in 4 bits by bitsandbytes, the only place that touches it.

Slicing unpacks a layer, cuts it and packs it again, block after block of 64 numbers: the cut
columns fall into other blocks, so a sliced 4-bit layer is as exact as 4 bits are, not bit-equal
to the cut of the unsliced one.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import nn

from airtune.errors import MissingExtraError


def require_bitsandbytes() -> ModuleType:
    """Import bitsandbytes.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "load_in_4bit needs bitsandbytes, which is not installed; "
            "run pip install 'airtune[quantised]' or set model.load_in_4bit to false"
        )
    return importlib.import_module("bitsandbytes")


def is_4bit(module: nn.Module) -> bool:
    """Say whether a layer is held in 4 bits."""
    return type(module).__name__ == "Linear4bit"


def unpacked(module: nn.Module) -> torch.Tensor:
    """Return a 4-bit layer's weight as (out, in), in the type it was packed from."""
    weight = module.get_parameter("weight")
    functional = require_bitsandbytes().functional
    return torch.as_tensor(functional.dequantize_4bit(weight.data, vars(weight)["quant_state"]))


def packed_like(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a 4-bit layer with other numbers and the settings of `module`; weight (out, in)."""
    bitsandbytes = require_bitsandbytes()
    state = vars(module.get_parameter("weight"))["quant_state"]
    twin: nn.Module = bitsandbytes.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        compute_dtype=module.compute_dtype,
        quant_type=state.quant_type,
        compress_statistics=state.nested,
        device="meta",
    )
    twin.weight = bitsandbytes.nn.Params4bit(
        weight.contiguous(),
        requires_grad=False,
        quant_type=state.quant_type,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        module=twin,
    ).to(weight.device)
    if bias is not None:
        twin.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return twin
