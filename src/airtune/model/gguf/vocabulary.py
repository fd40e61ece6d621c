"""What a tokenizer is in a GGUF file: tokens, their kinds, merges or scores, and a splitting rule.

Only rules that llama.cpp has a name for are written; see `_rule`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from airtune.errors import ModelError
from airtune.model.admission import surplus_tokens, told_surplus

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""Regular expressions of byte-level tokenizers, by the name that llama.cpp has for them."""


def vocabulary_of(tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """Return splitting rule, tokens and their kinds, merges or scores.

    Args:
        tokenizer: of the model.
        size: rows of the embedding; what the tokenizer has not is padded.

    Raises:
        ModelError: if it has more tokens than that, or splits text by a rule without a name.
    """
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
        order = {
            merge.replace(" ", "", 1): -float(rank)
            for rank, merge in reversed(list(enumerate(merges)))
        }
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


def add_vocabulary(writer: Any, found: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a vocabulary, the tokens with a role, and the chat template."""
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
