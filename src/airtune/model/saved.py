"""Loading a saved model with plain tools: transformers' Auto classes, and peft on a plain base.

How far the answers of two models are apart is measured here too, for every check of an export.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from airtune.model.base import BaseModel, auto_class, load_base, loading
from airtune.model.classes import class_names
from airtune.model.gguf.source import is_gguf


def load_saved(folder: Path, base: BaseModel) -> nn.Module:
    """Return a merged or pruned model."""
    with loading():
        saved: nn.Module = auto_class(base.shape).from_pretrained(str(folder))
    return saved.eval()


def load_adapted(folder: Path, base: BaseModel, *, revision: str | None = None) -> nn.Module:
    """Return an adapter on its base, which is loaded anew; nothing is taken from `base` but names.

    Args:
        folder: the adapter.
        base: what it was tuned from.
        revision: of the base on the hub.
    """
    network = _plain_base(base, revision)
    with loading(), warnings.catch_warnings():
        # peft asks transformers by a name that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        adapted: nn.Module = PeftModel.from_pretrained(network, str(folder))
    return adapted.eval()


def _plain_base(base: BaseModel, revision: str | None) -> PreTrainedModel:
    if is_gguf(base.source):
        dtype = str(base.network.dtype).removeprefix("torch.")
        classes = class_names(base.network.config) if base.shape.labels else ()
        again = load_base(
            base.source, labels=base.shape.labels, classes=classes, dtype=dtype, device="cpu"
        )
        return again.network
    with loading():
        return auto_class(base.shape).from_pretrained(
            base.source, revision=revision, dtype=base.network.dtype, **class_settings(base)
        )


def class_settings(base: BaseModel) -> dict[str, Any]:
    """Return what `from_pretrained` has to be told to make a classifier of a base; {} for others.

    Its classes; and the pad token, which a decoder's files may lack and its classifier needs.
    """
    if not base.shape.labels:
        return {}
    config = base.network.config
    pad = getattr(config, "pad_token_id", None)
    return {
        **({} if pad is None else {"pad_token_id": pad}),
        "id2label": dict(config.id2label),
        "label2id": dict(config.label2id),
        "ignore_mismatched_sizes": True,
    }


def apart(here: Sequence[torch.Tensor], there: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return the root mean square and the 99 % quantile of a difference, over the spread."""
    one, other = (torch.cat([row.flatten() for row in rows]) for rows in (here, there))
    spread = max(float(one.std()), 1e-6)
    off = (one - other).abs() / spread
    return float(off.square().mean().sqrt()), float(off.kthvalue(-(-99 * len(off) // 100)).values)
