"""Reading a written GGUF file back, and holding it against the model it was made from.

The file is read as any base is. Its answers must be those of the model with every matrix rounded as
the file's type rounds it, so that what is left is rounding of sums and nothing is excused by the
quantisation; how far that quantisation itself moves the answers is measured beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from airtune.errors import ModelError
from airtune.model.base import loading
from airtune.model.families import Config
from airtune.model.gguf.fields import ARCHITECTURES, head_dim_of
from airtune.model.gguf.package import require_gguf
from airtune.model.gguf.source import gguf_settings, gguf_tokenizer, loader_arguments
from airtune.model.gguf.write import Quantisation, stored
from airtune.model.saved import apart
from airtune.model.source import reading

CLEAR_RMS, CLEAR_Q99 = 1e-4, 1e-3
"""Differences of logits, relative to their spread, that summing in single precision explains."""
TEXTS = (
    "What is 12345 + 678? It isn't so.",
    "one  two\n\nthree\té 漢 🙂",
    "def f(x):\n    return x[0] - 1  # done",
)


@dataclass(frozen=True, slots=True)
class WrittenGguf:
    """What a GGUF file is beside the model it was made from."""

    quantise: str
    file_bytes: int
    logit_rms: float
    """Root mean square of what the file's type moves the logits by, relative to their spread."""
    logit_q99: float
    """Its 99 % quantile, likewise."""


def check_written(
    path: Path,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[torch.Tensor],
    *,
    quantise: Quantisation | None = None,
) -> WrittenGguf:
    """Read a GGUF file back by transformers and compare it.

    Args:
        path: the file.
        network: the model it was made from.
        tokenizer: its tokenizer.
        rows: tokens that both are asked, (1, tokens) each.
        quantise: how its matrices are stored.

    Raises:
        ModelError: if the file answers or reads text otherwise.
    """
    read = _read(path, network)
    _check_texts(path, tokenizer)
    exact, there = _logits(network, rows), _logits(read, rows)
    rms, q99 = apart(_logits(_rounded(network, quantise), rows), there)
    if not (rms <= CLEAR_RMS and q99 <= CLEAR_Q99):
        raise ModelError(
            "the GGUF file answers differently from the model it was made from, so it was not kept: "
            f"its logits are off by {rms:.2g} of their spread (root mean square; 99 % within "
            f"{q99:.2g}), rounding explains {CLEAR_RMS:g} ({CLEAR_Q99:g}); this is a fault of airtune: "
            "report it, and export merged"
        )
    moved = apart(exact, there)
    return WrittenGguf(quantise or "as trained", path.stat().st_size, *moved)


def _read(path: Path, network: PreTrainedModel) -> PreTrainedModel:
    """Return what transformers reads of a file, in single precision, whatever its config is called.

    The settings that the file has must be those of the model, as must the tensors.
    """
    wanted, found = network.config, gguf_settings(path)
    known = {"head_dim": head_dim_of(wanted), "rope_theta": wanted.rope_parameters["rope_theta"]}
    for name, value in found.items():
        own = known[name] if name in known else getattr(wanted, name)
        if not (
            math.isclose(own, value, rel_tol=1e-6) if isinstance(value, float) else own == value
        ):
            raise ModelError(
                f"the GGUF file says {name} = {value!r} where the model has {own!r}, so it was not kept; "
                "this is a fault of airtune: report it, and export merged"
            )
    with reading(path), loading():
        read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            **loader_arguments(path), config=_readable(wanted), dtype=torch.float32
        )
    return read.eval()


def _readable(config: Config) -> Config:
    """Return the config under which transformers reads a file: of Llama for all that are "llama"."""
    if ARCHITECTURES[config.model_type] != "llama":
        return copy.deepcopy(config)
    settings = config.to_dict()
    own = {"model_type", "architectures", "num_attention_heads", "num_key_value_heads"}
    names = LlamaConfig().to_dict().keys() - own
    chosen = {name: settings[name] for name in names if name in settings}
    # set afterwards: a pruned model's heads may not divide its width, which no reading depends on
    plain = LlamaConfig(**chosen, num_attention_heads=1, num_key_value_heads=1)
    plain.num_attention_heads = config.num_attention_heads
    plain.num_key_value_heads = config.num_key_value_heads
    plain.head_dim = head_dim_of(config)
    return plain


def _check_texts(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    read = gguf_tokenizer(path)
    for text in TEXTS:
        wanted, found = tokenizer(text)["input_ids"], read(text)["input_ids"]
        if wanted != found:
            raise ModelError(
                f"the GGUF file reads {text!r} as {found[:12]}, the model's tokenizer as {wanted[:12]}, "
                "so it was not kept; export merged, and convert that folder with the tokenizer's own "
                "files by llama.cpp's convert_hf_to_gguf.py"
            )


@torch.no_grad()
def _rounded(network: PreTrainedModel, quantise: Quantisation | None) -> PreTrainedModel:
    """Return the model in single precision with every matrix rounded as the file stores it."""
    gguf = require_gguf()
    twin = copy.deepcopy(network).float()
    for (name, own), tensor in zip(
        network.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        values, kind = stored(gguf, name, own, quantise)
        tensor.copy_(torch.from_numpy(gguf.dequantize(values, kind)).reshape(tensor.shape))
    return twin


@torch.no_grad()
def _logits(network: PreTrainedModel, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.as_tensor(network(input_ids=ids).logits).double() for ids in rows]
