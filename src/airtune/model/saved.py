"""Loading what was saved as anybody would: transformers' Auto classes, and peft on a plain base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from airtune.model.base import BaseModel, auto_class, loading


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
    with loading():
        network = auto_class(base.shape).from_pretrained(
            base.source, revision=revision, dtype=base.network.dtype, **class_settings(base)
        )
        with warnings.catch_warnings():
            # peft asks transformers by a name that transformers will drop
            warnings.simplefilter("ignore", FutureWarning)
            adapted: nn.Module = PeftModel.from_pretrained(network, str(folder))
    return adapted.eval()


def class_settings(base: BaseModel) -> dict[str, Any]:
    """Return what `from_pretrained` has to be told of a classifier's classes; {} for others."""
    if not base.shape.labels:
        return {}
    config = base.network.config
    return {
        "id2label": dict(config.id2label),
        "label2id": dict(config.label2id),
        "ignore_mismatched_sizes": True,
    }
