"""Reading a GGUF file as a base model: what is checked before transformers' own reader is trusted.

That reader passes over what it does not know: a rope scaling, a sliding window, biases of an
architecture without them, a splitting rule of the tokenizer. A model read so would compute something
else, so only what it reads exactly is let through. The weights are not read for that.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from airtune.errors import ModelError
from airtune.model.families import Config, shape_from_config
from airtune.model.gguf.fields import is_unwritten_bias
from airtune.model.gguf.package import require_gguf
from airtune.model.gguf.write import gguf_name

SUFFIX = ".gguf"
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_READ = frozenset({
    "context_length", "block_count", "feed_forward_length", "embedding_length", "vocab_size",
    "rope.dimension_count", "rope.freq_base", "attention.head_count", "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
})  # fmt: skip
"""Settings of an architecture that are read."""
_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"})
"""Splitting rules that take digits one by one before GPT-2's, unknown to transformers."""
_SPLITS = _DIGITS | {
    "gpt-2", "default", "llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx",
    "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "megrez",
}  # fmt: skip
"""Splitting rules of byte-level tokenizers that are read."""
_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""Settings that say how wide a head is."""
_NEEDED = frozenset({
    "context_length", "block_count", "feed_forward_length", "embedding_length",
    "attention.head_count", "attention.layer_norm_rms_epsilon",
})  # fmt: skip
_NO_SCALING = ("none", 1.0, 0)


def is_gguf(source: str | Path) -> bool:
    """Return whether a model source is named like a GGUF file."""
    return str(source).lower().endswith(SUFFIX)


def loader_arguments(source: str | Path) -> dict[str, str]:
    """Return how transformers' loaders take a model: by folder or hub id, or by a GGUF file."""
    if not is_gguf(source):
        return {"pretrained_model_name_or_path": str(source)}
    path = Path(source).expanduser().absolute()
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def gguf_config(source: str | Path) -> Config:
    """Return the config of a GGUF file; no weight is read.

    Raises:
        ModelError: if the file is not there, is damaged, or holds what is not read exactly.
        MissingExtraError: if the gguf package is not installed.
    """
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        raise ModelError(f"there is no file {str(source)!r}; set model.source to a GGUF file")
    gguf = require_gguf()
    state = path.stat()
    return copy.deepcopy(_checked_config(gguf, path, state.st_mtime_ns, state.st_size))


def gguf_settings(path: Path) -> dict[str, Any]:
    """Return the sizes and constants that a file says, by the names that configs have for them."""
    reader = _reader(require_gguf(), path)
    return _sizes(reader, str(_value(reader, "general.architecture")))


def gguf_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checked GGUF file, with its splitting rule and no token too many."""
    size = gguf_settings(Path(source).expanduser())["vocab_size"]
    read = PreTrainedTokenizerFast.from_pretrained(**loader_arguments(source))
    content = json.loads(read.backend_tokenizer.to_str())
    # transformers adds GPT-2's own end mark behind vocabularies that lack it
    added = [token for token in content["added_tokens"] if token["id"] < size]
    content["added_tokens"] = added
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {name: index for name, index in vocabulary.items() if index < size}
    if _pre_of(source) in _DIGITS:
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        }
    known = {*content["model"]["vocab"], *(token["content"] for token in added)}
    special = {
        name: value
        for name, value in read.special_tokens_map.items()
        if isinstance(value, str) and value in known
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=RustTokenizer.from_str(json.dumps(content)),
        chat_template=read.chat_template,
        **special,
    )


@torch.no_grad()
def settle_(network: PreTrainedModel, missing: set[str]) -> set[str]:
    """Make what was read of a GGUF file a plain model, to be trained and saved; changes it.

    Returns:
        What is missing of it, without the biases that no file has: those are zero.
    """
    # its blocks are plain numbers now
    network.hf_quantizer.remove_quantization_config(network)
    zero = {name for name in missing if is_unwritten_bias(name, network.config)}
    for name in zero:
        network.get_parameter(name).zero_()
    return missing - zero


@lru_cache(maxsize=4)
def _checked_config(gguf: ModuleType, path: Path, changed_ns: int, size: int) -> Config:
    reader = _reader(gguf, path)
    architecture = str(_value(reader, "general.architecture"))
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{path} holds a model of architecture {architecture!r}; a GGUF file is read of "
            f"{', '.join(_ARCHITECTURES)}; give the folder of the model it was made from"
        )
    _check_stored(gguf, reader, path)
    _check_split(reader, path)
    _check_settings(reader, architecture, path)
    sizes = _sizes(reader, architecture)
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ModelError(
            f"{path} has {sizes['num_attention_heads']} heads, which do not divide its width of "
            f"{sizes['hidden_size']}; transformers reads no such GGUF file: give the folder of the model"
        )
    try:
        config = _config(reader, architecture)
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    shape_from_config(config)
    _check_tensors(gguf, reader, config, path)
    return config


@lru_cache(maxsize=4)
def _split_name(path: Path, changed_ns: int) -> str:
    return str(_value(_reader(require_gguf(), path), "tokenizer.ggml.pre") or "")


def _pre_of(source: str | Path) -> str:
    path = Path(source).expanduser().absolute()
    return _split_name(path, path.stat().st_mtime_ns)


def _reader(gguf: ModuleType, path: Path) -> Any:
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"{path} cannot be read as a GGUF file: {reason}; it is damaged or cut short ("
        f"{path.stat().st_size:,} bytes): get it anew and compare its size and checksum"
    )


def _value(reader: Any, key: str) -> Any:
    found = reader.fields.get(key)
    return None if found is None else found.contents()


def _check_stored(gguf: ModuleType, reader: Any, path: Path) -> None:
    """Refuse types of numbers that the gguf package cannot turn into plain ones."""
    kinds = {tensor.tensor_type: tensor for tensor in reader.tensors}
    for kind, tensor in kinds.items():
        try:
            gguf.dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{path} stores {tensor.name} as {kind.name}, which the gguf package cannot turn into "
                "plain numbers; take a file of another quantisation, Q8_0 or F16 for instance"
            ) from error


def _check_split(reader: Any, path: Path) -> None:
    """Refuse a byte-level tokenizer whose splitting rule transformers would replace by GPT-2's."""
    rule = _value(reader, "tokenizer.ggml.pre")
    if _value(reader, "tokenizer.ggml.tokens") is None:
        raise ModelError(f"{path} holds no tokenizer; give a file with one, or the model's folder")
    if (
        _value(reader, "tokenizer.ggml.model") == "gpt2"
        and rule is not None
        and rule not in _SPLITS
    ):
        raise ModelError(
            f"{path} splits text by the rule {rule!r}, which is not known here, so texts would be read "
            f"otherwise; known are {', '.join(sorted(_SPLITS))}; give the model's folder"
        )


def _check_settings(reader: Any, architecture: str, path: Path) -> None:
    """Refuse settings that are not read, or not read so."""
    said = {
        key.removeprefix(f"{architecture}."): _value(reader, key)
        for key in reader.fields
        if key.startswith(f"{architecture}.")
    }
    for name, value in sorted(said.items()):
        is_plain = name.startswith(("rope.scaling.", "expert_")) and value in _NO_SCALING
        if name not in _READ and not is_plain:
            raise ModelError(
                f"{path} says {architecture}.{name} = {value!r}, which is not read from a GGUF file, so "
                "the model would compute something else; give the folder of the model it was made from"
            )
    if lacking := sorted(_NEEDED - said.keys()):
        raise ModelError(f"{path} does not say {architecture}.{lacking[0]}; the file is damaged")
    widths = {name: said[name] for name in _WIDTHS if name in said}
    if len(set(widths.values())) > 1:
        raise ModelError(
            f"{path} says {', '.join(f'{architecture}.{name} = {value}' for name, value in widths.items())}, "
            "and only heads that are turned whole and have one width are read; give the folder of the "
            "model it was made from"
        )


def _sizes(reader: Any, architecture: str) -> dict[str, Any]:
    """Return what a file says of a config; the inverse of `fields.add_fields`."""

    def said(name: str, default: Any = None) -> Any:
        found = _value(reader, f"{architecture}.{name}")
        return default if found is None else found

    heads, width = int(said("attention.head_count")), int(said("embedding_length"))
    return {
        "vocab_size": int(said("vocab_size", len(_value(reader, "tokenizer.ggml.tokens")))),
        "max_position_embeddings": int(said("context_length")),
        "hidden_size": width,
        "intermediate_size": int(said("feed_forward_length")),
        "num_hidden_layers": int(said("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(said("attention.head_count_kv", heads)),
        "head_dim": int(next((said(name) for name in _WIDTHS if said(name)), width // heads)),
        "rms_norm_eps": float(said("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(said("rope.freq_base", 10000.0)),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }


def _config(reader: Any, architecture: str) -> Config:
    """Return the config that plain transformers would have of a checked file."""
    settings = _sizes(reader, architecture)
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        place = _value(reader, f"tokenizer.ggml.{theirs}_token_id")
        settings[f"{ours}_token_id"] = None if place is None else int(place)
    if architecture == "llama":
        names = {tensor.name for tensor in reader.tensors}
        biases = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
        settings |= {switch: name in names for switch, name in biases.items()}
    config: Config = CONFIG_MAPPING[architecture](**settings)
    return config


def _check_tensors(gguf: ModuleType, reader: Any, config: Config, path: Path) -> None:
    """Refuse a file whose tensors are not those of the model that its settings describe."""
    with torch.device("meta"):
        state: Mapping[str, torch.Tensor] = AutoModelForCausalLM.from_config(config).state_dict()
    tied = config.tie_word_embeddings
    wanted = {
        gguf_name(gguf, config, name): math.prod(tensor.shape)
        for name, tensor in state.items()
        if not (tied and name == "lm_head.weight") and not is_unwritten_bias(name, config)
    }
    found = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelError(
            _of_tensors(path, "lacks", missing, config)
            + "; it is cut short or one part of several: "
            "get the whole file, or give the folder of the model it was made from"
        )
    if extra := sorted(found.keys() - wanted.keys()):
        raise ModelError(
            _of_tensors(path, "holds", extra, config) + ": they would be dropped (rope_freqs is a "
            "scaling of positions); give the folder of the model it was made from"
        )
    unlike = [name for name in sorted(wanted) if wanted[name] != found[name]]
    if unlike:
        raise ModelError(
            f"{unlike[0]} of {path} has {found[unlike[0]]:,} numbers and its settings ask for "
            f"{wanted[unlike[0]]:,}; the file is damaged"
        )


def _of_tensors(path: Path, what: str, names: Iterable[str], config: Config) -> str:
    listed = list(names)
    several = f"{len(listed)} tensors" if len(listed) > 1 else "1 tensor"
    other = " that a plain one has not" if what == "holds" else ""
    return f"{path} {what} {several} of a {config.model_type} model{other}, {listed[0]} for one"
