"""Writing adapters as the GGUF file that llama.cpp adds to a base (`--lora`).

Factors are named after the base's tensors, `blk.0.attn_q.weight.lora_a` (rank, in) and `.lora_b`
(out, rank); rows of B are reordered where GGUF's base has its rows so. What is added is
`alpha / rank * B A`.

Source: llama.cpp's convert_lora_to_gguf.py and the names in the gguf package (`Keys.Adapter`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.gguf.fields import ARCHITECTURES, check_gguf
from airtune.model.gguf.package import require_gguf
from airtune.model.gguf.write import Quantisation, finish, gguf_name, reordered, stored
from airtune.model.lora import layer_names

ROUNDING = {"f32": 1e-5, "f16": 2e-3}
"""How far a product may be off that is read back, relative to its largest number."""


def write_adapter_gguf(
    path: Path,
    base: BaseModel,
    adapters: Mapping[str, torch.Tensor],
    *,
    scale: float,
    quantise: Quantisation = "f32",
) -> None:
    """Write full-grid adapters, read them back and compare what they add.

    Args:
        path: the file to write; overwritten.
        base: the model they belong to.
        adapters: on the full grid.
        scale: alpha / rank.
        quantise: f32 or f16.

    Raises:
        MissingExtraError: if the gguf package is not installed.
        ModelError: if the base has no place in GGUF, or what is read back adds something else.
    """
    check_gguf(base.network)
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, ARCHITECTURES[base.network.config.model_type])
    keys = gguf.Keys.Adapter
    rank = next(iter(adapters.values())).shape[0]
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(keys.TYPE, "lora")
    writer.add_float32(keys.LORA_ALPHA, scale * rank)
    for name, a, b in _factors(gguf, base, adapters):
        for part, tensor in (("lora_a", a), ("lora_b", b)):
            values, kind = stored(gguf, f"{name}.{part}", tensor.float(), quantise)
            writer.add_tensor(f"{name}.{part}", values, raw_dtype=kind)
    finish(writer)
    _check(gguf, path, base, adapters, scale=scale, rounding=ROUNDING[quantise])


def _factors(
    gguf: ModuleType, base: BaseModel, adapters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield each adapted tensor's name in GGUF, with A and B as its rows are there."""
    config = base.network.config
    for name in layer_names(adapters):
        block, _, linear = name.partition(".")
        plain = f"{base.family.path(int(block), linear)}.weight"
        b = reordered(plain, adapters[f"{name}.B"], config)
        yield gguf_name(gguf, config, plain), adapters[f"{name}.A"], b


def _check(
    gguf: ModuleType,
    path: Path,
    base: BaseModel,
    adapters: Mapping[str, torch.Tensor],
    *,
    scale: float,
    rounding: float,
) -> None:
    reader = gguf.GGUFReader(path)
    found = {
        tensor.name: torch.from_numpy(
            np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float64)
        )
        for tensor in reader.tensors
    }
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    for name, a, b in _factors(gguf, base, adapters):
        wanted = scale * b.double() @ a.double()
        read_a, read_b = found.pop(f"{name}.lora_a"), found.pop(f"{name}.lora_b")
        read = alpha / read_b.shape[1] * read_b @ read_a
        off, largest = float((read - wanted).abs().max()), float(wanted.abs().max())
        if not off <= rounding * max(largest, 1e-12):
            raise ModelError(
                f"{name} of the adapter as read back is off by {off:.2g}, where its largest number is "
                f"{largest:.2g}, so it was not kept; export format adapter"
            )
    if found:
        raise ModelError(f"the adapter as read back has tensors too many, {min(found)} for one")
