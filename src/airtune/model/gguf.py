"""Writing a plain Llama-like model as one GGUF file, which llama.cpp and its kin run.

Only what can be said exactly is written: the families whose layout llama.cpp shares (Llama, Mistral,
Qwen2, Qwen3), ordinary rotary positions, and tokenizers whose splitting rule has a name there. Llama
and Mistral keep the two halves of a rotary pair apart, GGUF's "llama" next to each other, so their
query and key rows are reordered. Of a Llama's biases those after attention and MLP are written, which
llama.cpp adds where they are; the others only a pruned model's config demands, and they must be zero.
Weights keep their type; vectors are single precision, as
llama.cpp asks.

Source: the GGUF format and the reordering follow llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from airtune.errors import MissingExtraError, ModelError
from airtune.model.admission import surplus_tokens, told_surplus

_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    # what a pruned Llama with biases is saved as where its heads do not divide the width
    "granite": "llama",
}  # fmt: skip
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""Regular expressions of byte-level tokenizers, by the name that llama.cpp has for them."""


def require_gguf() -> ModuleType:
    """Import the gguf package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "a GGUF file needs the gguf package, which is not installed; "
            "run pip install 'airtune[gguf]'"
        )
    return importlib.import_module("gguf")


def write_gguf(path: Path, network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a plain model, with its adapters merged, and its tokenizer.

    Args:
        path: the file to write; overwritten.
        network: a causal language model of transformers, pruned or not.
        tokenizer: its tokenizer.

    Raises:
        MissingExtraError: if the gguf package is not installed.
        ModelError: if GGUF cannot say exactly what the model or its tokenizer is.
    """
    check_gguf(network)
    gguf, config = require_gguf(), network.config
    vocabulary = _vocabulary(tokenizer, int(config.vocab_size))
    architecture = _ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _add_sizes(writer, config)
    _add_vocabulary(writer, vocabulary, tokenizer)
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
         "qwen3": gguf.MODEL_ARCH.QWEN3}[architecture], config.num_hidden_layers,
    )  # fmt: skip
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if _is_unsayable_bias(name, config):  # all zero, see check_gguf
            continue
        if architecture == "llama":
            tensor = _reordered(name, tensor, config)
        values, kind = _values(gguf, tensor)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(network: PreTrainedModel) -> None:
    """Refuse a model that GGUF cannot say exactly, before any work is done for it.

    Raises:
        ModelError: naming what is in the way.
        MissingExtraError: if nothing is, but the gguf package is not installed.
    """
    config = network.config
    if config.model_type not in _ARCHITECTURES or not hasattr(network, "lm_head"):
        raise ModelError(
            f"gguf is written for language models of {', '.join(_ARCHITECTURES)}, got "
            f"{config.model_type} ({type(network).__name__}); export pruned or merged"
        )
    if what := _unsayable(network):
        raise ModelError(
            f"gguf is not written for a {config.model_type} model with {what}; export merged or "
            "pruned, then convert that folder with llama.cpp's convert_hf_to_gguf.py"
        )
    require_gguf()  # last: no one is to install it for a model that it cannot say


def _unsayable(network: PreTrainedModel) -> str:
    """Return what GGUF cannot say of a model of one of its families; empty where it says all."""
    config = network.config
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope != "default":
        return f"{rope} rope"
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    if window is not None:
        return f"a sliding window of {window}"
    tensors = network.state_dict().items()
    if any(bool(one.any()) for name, one in tensors if _is_unsayable_bias(name, config)):
        return "biases before attention or MLP"
    if config.model_type == "granite" and not _is_llama(config):
        return "multipliers of its own"
    return ""


def _is_llama(config: Any) -> bool:
    """Return whether a Granite computes what a Llama does."""
    ones = (config.embedding_multiplier, config.logits_scaling, config.residual_multiplier)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ones == (1.0, 1.0, 1.0) and math.isclose(config.attention_multiplier, head_dim**-0.5)


def _is_unsayable_bias(name: str, config: Any) -> bool:
    """Return whether a tensor is a bias for which llama.cpp's Llama has no place at every size."""
    layer = name.removesuffix(".bias").rpartition(".")[2]
    return (
        config.model_type in ("llama", "granite")
        and name.endswith(".bias")
        and layer not in ("o_proj", "down_proj")
    )


def _add_sizes(writer: Any, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _reordered(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Put the two halves of each rotary pair next to each other, (heads * head_dim, width)."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = next((count for part, count in counts.items() if f".{part}." in name), 0)
    if not heads:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _values(gguf: Any, tensor: torch.Tensor) -> tuple[NDArray[Any], Any]:
    """Return a tensor as GGUF stores it, with its kind where numpy has no name for it."""
    if tensor.dim() == 1 or tensor.dtype == torch.float32:
        return tensor.float().cpu().numpy(), None
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().cpu().view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
    return tensor.contiguous().cpu().numpy(), None


def _vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """Return model, splitting rule, tokens and their kinds, merges or scores."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if surplus := surplus_tokens(tokenizer, size):
        raise ModelError(
            f"{told_surplus(surplus, size)}, and gguf has one row for each; take those tokens out "
            "of the tokenizer or give the model rows for them, or export merged"
        )
    pieces = dict(model["vocab"]) if model["type"] == "BPE" else {}
    rule = _rule(content)
    tokens = [f"[PAD{place}]" for place in range(size)]
    kinds = np.full(size, _UNUSED)
    for token, place in pieces.items():
        tokens[place], kinds[place] = token, _BYTE if _is_byte(token, model) else _NORMAL
    for added in content["added_tokens"]:
        place = added["id"]
        tokens[place], kinds[place] = (
            added["content"],
            _CONTROL if added["special"] else _USER_DEFINED,
        )
    if model.get("unk_token") in pieces:
        kinds[pieces[model["unk_token"]]] = _UNKNOWN
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    found = {"tokens": tokens, "kinds": kinds.tolist(), "rule": rule, "merges": merges}
    if rule == "default":
        order = {merge.replace(" ", "", 1): -float(rank) for rank, merge in
                 reversed(list(enumerate(merges)))}  # fmt: skip
        found["scores"] = [order.get(token, -float(len(merges))) for token in tokens]
    return found


def _is_byte(token: str, model: dict[str, Any]) -> bool:
    return bool(model.get("byte_fallback")) and token.startswith("<0x") and len(token) == 6


def _rule(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for how text is split before merging; "default" is SentencePiece."""
    split, normaliser = content["pre_tokenizer"], content["normalizer"] or {}
    steps = [] if split is None else split.get("pretokenizers", [split])
    kinds = [step["type"] for step in steps]
    bytewise = kinds[-1:] == ["ByteLevel"] and not steps[-1]["add_prefix_space"]
    if bytewise and kinds == ["ByteLevel"]:
        return "gpt-2"
    if bytewise and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "starcoder"
    if bytewise and kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        expression = steps[0]["pattern"].get("Regex", "")
        if expression in _SPLITS and normaliser.get("type") in (None, "NFC"):
            return _SPLITS[expression]
    cleaned = [step["type"] for step in normaliser.get("normalizers", [])]
    if content["model"].get("byte_fallback") and not kinds and cleaned == ["Prepend", "Replace"]:
        return "default"
    raise ModelError(
        "gguf has no name for how this tokenizer splits text, so the file would read text "
        "differently; export merged or pruned, and convert that folder with the tokenizer's own "
        "files by llama.cpp's convert_hf_to_gguf.py"
    )


def _add_vocabulary(writer: Any, found: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = found["rule"] == "default"
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(found["rule"])
    writer.add_token_list(found["tokens"])
    writer.add_token_types(found["kinds"])
    if pieces:
        writer.add_token_scores(found["scores"])
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges(found["merges"])
    for name in ("bos", "eos", "unk", "pad"):
        place = getattr(tokenizer, f"{name}_token_id")
        if place is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins and tokenizer.bos_token_id is not None)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
