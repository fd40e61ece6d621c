"""Making config and tokenizer of a model consistent, once, when it is loaded.

Whatever is exported holds what is settled here, so that plain transformers reads texts afterwards
as they were read in training: the same pad token, the same segment ids, the same side of padding.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from airtune.errors import ModelError
from airtune.model.families import Config, Family

_SHOWN = 3
"""Names in one sentence; more are only counted."""


def settle_tokenizer_(
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    family: Family,
    *,
    classifies: bool,
    source: str,
) -> None:
    """Settle pad and end marks, segment ids and side of padding; changes the tokenizer.

    A decoder whose tokenizer names no end mark has the one of its config. Segment ids
    (`token_type_ids`) are given where the model has an embedding for them. A classifier reads texts
    that are padded on the right.

    Args:
        tokenizer: Of the model.
        config: Of the model.
        family: Of the model.
        classifies: The task is classification.
        source: Where it is from, for messages.

    Raises:
        ModelError: if it has no tokens, or none that can pad.
    """
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(
            f"{source!r} has no tokenizer files that can be read (tokenizer.json, vocab.txt, "
            "vocab.json with merges.txt, or tokenizer.model); put those of its base model there"
        )
    tokenizer.init_kwargs.pop("auto_map", None)  # code is neither run nor exported
    if not _takes_segments(tokenizer, config, family):
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        _keep_(tokenizer, "model_input_names", names)
    if classifies:
        _keep_(tokenizer, "padding_side", "right")
    if tokenizer.eos_token_id is None and family.causal:
        ends = [index for index in _ids(config.eos_token_id) if _has(tokenizer, config, index)]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0]) if ends else None
    pad = _pad(tokenizer, config, family, classifies=classifies)
    if pad is None and classifies:
        raise ModelError(
            f"the tokenizer of {source!r} has no token that can pad: neither a pad nor an unknown "
            "token that the model's embedding has and that does not end every text; give it one"
        )
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)


def settle_length_(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Have a tokenizer take texts of `max_length` tokens, as training does; changes it."""
    if tokenizer.model_max_length < max_length:
        _keep_(tokenizer, "model_max_length", max_length)


def agree_(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's pad, begin and end marks into a network's config; changes it.

    Further ends that the base's own generation config lists are kept after the tokenizer's.
    """
    config, generation = network.config, getattr(network, "generation_config", None)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(tokenizer, name)
        if value is None or value >= config.vocab_size:
            continue
        setattr(config, name, value)
        if generation is not None:
            ends = [value, *_ids(generation.eos_token_id)] if name == "eos_token_id" else [value]
            kept = list(dict.fromkeys(ends))
            setattr(generation, name, kept if len(kept) > 1 else value)


def surplus_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """Return the tokens that a model's embedding of `vocabulary` rows lacks, by id."""
    found = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return [token for index, token in found if index >= vocabulary]


def told_surplus(tokens: list[str], vocabulary: int) -> str:
    """Return a sentence on tokens that the embedding lacks.

    >>> told_surplus(["<a>", "<b>"], 640)
    "the tokenizer has 2 tokens that the model's embedding of 640 rows lacks ('<a>', '<b>')"
    """
    more = ", ..." if len(tokens) > _SHOWN else ""
    return (
        f"the tokenizer has {len(tokens)} tokens that the model's embedding of {vocabulary} rows "
        f"lacks ({', '.join(map(repr, tokens[:_SHOWN]))}{more})"
    )


def _takes_segments(tokenizer: PreTrainedTokenizerBase, config: Config, family: Family) -> bool:
    kinds = int(getattr(config, "type_vocab_size", 0) or 0)
    given = tokenizer("a", "b").get("token_type_ids", [0])
    return not family.causal and kinds > 1 and max(given, default=0) < kinds


def _keep_(tokenizer: PreTrainedTokenizerBase, name: str, value: object) -> None:
    """Set what is then saved with the tokenizer, too."""
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value


def _pad(
    tokenizer: PreTrainedTokenizerBase, config: Config, family: Family, *, classifies: bool
) -> int | None:
    """Return the token that pads, None where there is none.

    An encoder's positions may depend on what its config says; a decoder takes its tokenizer's. One
    that has none takes the unknown token, else the end mark. transformers' classifier reads a
    decoder at the last token that does not pad, so what the tokenizer writes last cannot pad there.
    """
    own = [tokenizer.pad_token_id, config.pad_token_id]
    order = own if family.causal else own[::-1]
    last = tokenizer("a")["input_ids"][-1:] if classifies and family.causal else []
    candidates = [*order, tokenizer.unk_token_id, tokenizer.eos_token_id]
    fit = (index for index in candidates if _has(tokenizer, config, index) and index not in last)
    return next(fit, None)


def _has(tokenizer: PreTrainedTokenizerBase, config: Config, place: int | None) -> bool:
    """Say whether a token is in both vocabularies."""
    is_there = place is not None and 0 <= place < config.vocab_size
    return is_there and tokenizer.convert_ids_to_tokens(place) is not None


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [each for each in value if isinstance(each, int)]
