"""The two GGUF exports of a run: a model and an adapter, both read back before they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from airtune.data.samples import TextRows
from airtune.errors import ModelError, RecipeError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.gguf.adapter import ROUNDING, write_adapter_gguf
from airtune.model.gguf.check import check_written
from airtune.model.gguf.write import QUANTISATIONS, Quantisation, write_gguf
from airtune.model.saved import load_saved

MODEL_NAME, ADAPTER_NAME = "model.gguf", "adapter.gguf"
_ROWS, _TOKENS = 4, 96
"""What both models are asked."""


def check_quantise(format: str, quantise: str | None) -> None:
    """Refuse a type of numbers that a format does not have.

    Raises:
        RecipeError: naming those it has.
    """
    allowed = {"gguf": QUANTISATIONS, "adapter-gguf": tuple(ROUNDING)}.get(format, ())
    if quantise is None or quantise in allowed:
        return
    if not allowed:
        raise RecipeError(
            f"quantise {quantise} is for gguf and adapter-gguf; the weights of {format} stay as "
            "they are, so leave it out"
        )
    raise RecipeError(f"quantise of {format} must be one of {', '.join(allowed)}, got {quantise!r}")


def model_file(
    stage: Path, plain: Path, base: BaseModel, samples: TextRows, quantise: Quantisation | None
) -> dict[str, Any]:
    """Turn a plain folder into one file in `stage`, and return what reading it back found."""
    if base.tokenizer is None:
        raise ModelError("a GGUF file holds its tokenizer, and this model has none")
    network = load_saved(plain, base)
    path = stage / MODEL_NAME
    write_gguf(path, network, base.tokenizer, quantise=quantise)
    rows = _questions(base, samples)
    found = check_written(path, network, base.tokenizer, rows, quantise=quantise)
    return {"gguf": asdict(found)}


def adapter_file(
    stage: Path,
    base: BaseModel,
    adapters: Mapping[str, torch.Tensor],
    *,
    scale: float,
    quantise: Quantisation | None,
) -> dict[str, Any]:
    """Write the adapters as one file in `stage`, read back."""
    path = stage / ADAPTER_NAME
    write_adapter_gguf(path, base, adapters, scale=scale, quantise=quantise or "f32")
    return {"gguf": {"quantise": quantise or "f32", "file_bytes": path.stat().st_size}}


def _questions(base: BaseModel, samples: TextRows) -> list[torch.Tensor]:
    """Return tokens of the run's own test rows, (1, tokens) each; random ones where it kept none."""
    texts = samples.texts[:_ROWS]
    if base.tokenizer is not None and texts:
        return [
            base.tokenizer(
                text,
                add_special_tokens=samples.special,
                truncation=True,
                max_length=_TOKENS,
                return_tensors="pt",
            )["input_ids"]
            for text in texts
        ]
    stream = torch.Generator().manual_seed(derive_seed(0, "self-check"))
    limit = int(getattr(base.network.config, "max_position_embeddings", _TOKENS))
    return [torch.randint(3, base.shape.vocab, (1, min(_TOKENS, limit // 2)), generator=stream)]
