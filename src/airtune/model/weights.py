"""The weight of a linear layer, whatever holds it: torch's Linear, GPT-2's Conv1D, or 4 bits.

Everywhere else in this room a weight is (out, in).
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from airtune.model.quantised import is_4bit, packed_like, unpacked


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return a linear layer's weight as (out, in); a 4-bit one is unpacked."""
    if is_4bit(module):
        return unpacked(module)
    weight = module.get_parameter("weight").detach()
    return weight.T if isinstance(module, Conv1D) else weight


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """Return a linear layer's bias (out,), or None."""
    bias = module._parameters.get("bias")
    return None if bias is None else bias.detach()


def rebuilt(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a layer of the same kind with other frozen numbers.

    Args:
        module: The layer to be like; untouched.
        weight: (out, in).
        bias: (out,), or None.
    """
    if is_4bit(module):
        return packed_like(module, weight, bias).train(module.training)
    twin: nn.Module
    if isinstance(module, Conv1D):
        twin = Conv1D(*weight.shape)
        weight = weight.T
    else:
        twin = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    twin.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        twin.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return twin.train(module.training)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Return a linear layer's (out, in) without touching its numbers."""
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    return int(vars(module)["out_features"]), int(vars(module)["in_features"])


def twin_of(module: nn.Module) -> nn.Module:
    """Return a module whose tree is its own and whose tensors are the original's.

    Replacing a layer of the twin leaves the original as it was, and no weight is copied.
    """
    twin = copy.copy(module)
    # Parameters, buffers and hooks live in dicts, which a shallow copy would share.
    twin.__dict__ |= {
        name: value.copy() for name, value in module.__dict__.items() if isinstance(value, dict)
    }
    twin._modules = {
        name: None if child is None else twin_of(child) for name, child in module._modules.items()
    }
    return twin
