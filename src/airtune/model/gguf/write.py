"""Writing a plain Llama-like model, with its adapters merged, as one GGUF file for llama.cpp.

Only what can be said exactly is written (see `fields` and `vocabulary`). Llama and Mistral keep the
two halves of a rotary pair apart, GGUF's "llama" next to each other, so their query and key rows are
reordered. Vectors are single precision, as llama.cpp asks; matrices are as the model has them, or in
one of `QUANTISATIONS`.

Source: the GGUF format and the reordering follow llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from airtune.errors import ModelError
from airtune.model.families import Config
from airtune.model.gguf.fields import ARCHITECTURES, add_fields, check_gguf, is_unwritten_bias
from airtune.model.gguf.package import require_gguf
from airtune.model.gguf.vocabulary import add_vocabulary, vocabulary_of

Quantisation = Literal["f32", "f16", "q8_0"]
QUANTISATIONS: tuple[Quantisation, ...] = ("f32", "f16", "q8_0")
BLOCK = 32
"""Numbers of a row that q8_0 packs with one scale."""


def write_gguf(
    path: Path,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    quantise: Quantisation | None = None,
) -> None:
    """Write a plain model, with its adapters merged, and its tokenizer.

    Args:
        path: the file to write; overwritten.
        network: a causal language model of transformers, pruned or not.
        tokenizer: its tokenizer.
        quantise: how matrices are stored; None = as the model has them.

    Raises:
        MissingExtraError: if the gguf package is not installed.
        ModelError: if GGUF cannot say exactly what the model or its tokenizer is, or a matrix does
            not fit the quantisation.
    """
    check_gguf(network)
    gguf, config = require_gguf(), network.config
    vocabulary = vocabulary_of(tokenizer, int(config.vocab_size))
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type])
    writer.add_type("model")
    writer.add_file_type(_file_type(gguf, network, quantise))
    if quantise == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_fields(writer, config)
    add_vocabulary(writer, vocabulary, tokenizer)
    for name, tensor in named_tensors(network):
        values, kind = stored(gguf, name, reordered(name, tensor, config), quantise)
        writer.add_tensor(gguf_name(gguf, config, name), values, raw_dtype=kind)
    finish(writer)


def named_tensors(network: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is written of a checked model: a tied output layer is the embedding."""
    config = network.config
    for name, tensor in network.state_dict().items():
        is_tied = config.tie_word_embeddings and name == "lm_head.weight"
        if not is_tied and not is_unwritten_bias(name, config):
            yield name, tensor


def gguf_name(gguf: ModuleType, config: Config, name: str) -> str:
    """Return what GGUF calls a tensor of a plain model."""
    architecture = ARCHITECTURES[config.model_type]
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    return str(names.get_name(name, (".weight", ".bias")))


def reordered(name: str, tensor: torch.Tensor, config: Config) -> torch.Tensor:
    """Put the two halves of each rotary pair next to each other, where GGUF has them so.

    Args:
        name: of a tensor of a plain model, or of an adapter's B beside it.
        tensor: (heads * head_dim, ...).
        config: of the model.
    """
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = next((count for part, count in counts.items() if f".{part}." in name), 0)
    if not heads or ARCHITECTURES[config.model_type] != "llama":
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def stored(
    gguf: ModuleType, name: str, tensor: torch.Tensor, quantise: Quantisation | None
) -> tuple[NDArray[Any], Any]:
    """Return a tensor as GGUF stores it, with its kind.

    Raises:
        ModelError: if it does not fit the quantisation.
    """
    kinds = gguf.GGMLQuantizationType
    if tensor.dim() == 1 or quantise == "f32":
        return _array(tensor.float()), kinds.F32
    if quantise == "q8_0":
        if tensor.shape[1] % BLOCK:
            raise ModelError(
                f"q8_0 packs {BLOCK} numbers of a row at a time, and {name} has rows of "
                f"{tensor.shape[1]}; prune to a multiple of {BLOCK}, or export with quantise f16"
            )
        return gguf.quantize(_array(tensor.float()), kinds.Q8_0), kinds.Q8_0
    if quantise == "f16" or tensor.dtype == torch.float16:
        half = tensor.half()
        if not bool(half.isfinite().all()):
            raise ModelError(
                f"{name} has numbers beyond half precision, up to {float(tensor.abs().max()):.3g} "
                "where 65504 is the most; export with quantise f32 or q8_0"
            )
        return _array(half), kinds.F16
    if tensor.dtype == torch.bfloat16:
        return _array(tensor.view(torch.uint8)), kinds.BF16
    return _array(tensor.float()), kinds.F32


def finish(writer: Any) -> None:
    """Write out what a GGUF writer holds."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _file_type(gguf: ModuleType, network: PreTrainedModel, quantise: Quantisation | None) -> Any:
    """Return llama.cpp's number for the type of most matrices."""
    own = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(network.dtype, "f32")
    kinds = gguf.LlamaFileType
    return {
        "f32": kinds.ALL_F32,
        "f16": kinds.MOSTLY_F16,
        "bf16": kinds.MOSTLY_BF16,
        "q8_0": kinds.MOSTLY_Q8_0,
    }[quantise or own]
