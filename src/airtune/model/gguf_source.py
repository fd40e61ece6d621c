"""Reading a GGUF file as a base model: what is checked before transformers' own reader is trusted.

That reader passes over what it does not know: a rope scaling, a sliding window, biases of an
architecture without them, a splitting rule of the tokenizer. A model read so would compute something
else, so only what it reads exactly is let through. The weights are not read for that.
"""

from __future__ import annotations

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
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from airtune.errors import ModelError
from airtune.model.families import Config, shape_from_config
from airtune.model.gguf import require_gguf

SUFFIX = ".gguf"
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_READ = frozenset({
    "context_length", "block_count", "feed_forward_length", "embedding_length", "vocab_size",
    "rope.dimension_count", "rope.freq_base", "attention.head_count", "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
})  # fmt: skip
"""Settings of an architecture that are read, or compared with what is read."""
_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"})
"""Splitting rules that take digits one by one before GPT-2's, unknown to transformers."""
_SPLITS = _DIGITS | {
    "gpt-2", "default", "llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx",
    "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "megrez",
}  # fmt: skip
"""Splitting rules of byte-level tokenizers that are read."""
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
    return _checked_config(gguf, path, state.st_mtime_ns, state.st_size)


def gguf_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checked GGUF file, with its splitting rule and no token too many."""
    size = int(gguf_config(source).vocab_size)
    read = AutoTokenizer.from_pretrained(**loader_arguments(source))
    content = json.loads(read.backend_tokenizer.to_str())
    # transformers adds GPT-2's own end mark behind vocabularies that lack it
    added = [token for token in content["added_tokens"] if token["id"] < size]
    content["added_tokens"] = added
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {name: place for name, place in vocabulary.items() if place < size}
    if _pre_of(source) in _DIGITS:
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]}  # fmt: skip
    known = {*content["model"]["vocab"], *(token["content"] for token in added)}
    special = {name: value for name, value in read.special_tokens_map.items()
               if isinstance(value, str) and value in known}  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=RustTokenizer.from_str(json.dumps(content)),
        chat_template=read.chat_template, **special,
    )  # fmt: skip


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
    try:
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    shape_from_config(config)
    _check_settings(reader, architecture, config, path)
    _check_tensors(gguf, reader, architecture, config, path)
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


def _check_settings(reader: Any, architecture: str, config: Config, path: Path) -> None:
    """Refuse settings that transformers' reader would drop."""
    said = {key.removeprefix(f"{architecture}."): key for key in reader.fields
            if key.startswith(f"{architecture}.")}  # fmt: skip
    for name, key in sorted(said.items()):
        value = _value(reader, key)
        is_plain = name.startswith(("rope.scaling.", "expert_")) and value in _NO_SCALING
        if name not in _READ and not is_plain:
            raise ModelError(
                f"{path} says {key} = {value!r}, which is not read from a GGUF file, so the model would "
                "compute something else; give the folder of the model it was made from"
            )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if name in said and _value(reader, said[name]) != head_dim:
            raise ModelError(
                f"{path} says {said[name]} = {_value(reader, said[name])}, but its heads are read as "
                f"{head_dim} wide; give the folder of the model it was made from"
            )


def _check_tensors(
    gguf: ModuleType, reader: Any, architecture: str, config: Config, path: Path
) -> None:
    """Refuse a file whose tensors are not those of the model that its settings describe."""
    with torch.device("meta"):
        state: Mapping[str, torch.Tensor] = AutoModelForCausalLM.from_config(config).state_dict()
    tied = config.tie_word_embeddings
    wanted = {
        stored_name(gguf, architecture, config, name): math.prod(tensor.shape)
        for name, tensor in state.items() if not (tied and name == "lm_head.weight")
    }  # fmt: skip
    found = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelError(_of_tensors(path, "lacks", missing, config))
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


def stored_name(gguf: ModuleType, architecture: str, config: Config, name: str) -> str:
    """Return what GGUF calls a tensor of a plain model."""
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    return str(names.get_name(name, (".weight", ".bias")))
