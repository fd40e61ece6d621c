"""Reading config and tokenizer of a model source: a hub id, a folder, or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from airtune.errors import AirtuneError, ModelError
from airtune.model.admission import settle_tokenizer_
from airtune.model.families import Config, family_of
from airtune.model.gguf.source import gguf_config, gguf_tokenizer, is_gguf
from airtune.model.hub import is_out_of_reach
from airtune.model.refusals import refuse_class_names, refuse_no_model, refuse_quantised

Tokenizer: TypeAlias = PreTrainedTokenizerBase

_FAULTS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers' loaders raise for files that are missing, damaged, or say what cannot be."""


def load_config(source: str | Path, revision: str | None = None) -> Config:
    """Return a model's config; no weight is read.

    Raises:
        ModelError: if it cannot be found or read, or its weights are quantised.
        MissingExtraError: if it is a GGUF file and the gguf package is not installed.
    """
    with reading(source):
        if is_gguf(source):
            return gguf_config(source)
        refuse_no_model(source)
        _check_reachable(str(source), revision)
        said, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        refuse_class_names(said, source)
        config: Config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        refuse_quantised(config, source)
        return config


def load_tokenizer(
    source: str | Path, *, classifies: bool = False, revision: str | None = None
) -> Tokenizer:
    """Return a model's tokenizer, settled as `load_base` does; no weight is read.

    Args:
        source: Hub id, local folder, or GGUF file.
        classifies: The task is classification.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: if it cannot be found or read, or has no token that can pad.
        MissingExtraError: if it is a GGUF file and the gguf package is not installed.
    """
    config = load_config(source, revision)
    with reading(source):
        tokenizer: Tokenizer = (
            gguf_tokenizer(source)
            if is_gguf(source)
            else AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        )
        settle_tokenizer_(
            tokenizer, config, family_of(config), classifies=classifies, source=str(source)
        )
        return tokenizer


def _check_reachable(source: str, revision: str | None) -> None:
    """Refuse a hub id at once where the hub does not answer and the cache lacks it."""
    if Path(source).expanduser().exists():
        return
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    if is_out_of_reach():
        raise ModelError(
            f"cannot load model {source!r}: there is no such folder, {constants.ENDPOINT} does not "
            f"answer, and {constants.HF_HUB_CACHE} has no such model; give a folder, or fetch it first"
        )


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Turn what transformers' loaders raise into a ModelError that says what to give instead."""
    try:
        yield
    except AirtuneError:
        raise
    except _FAULTS as error:
        first, *more = (str(error).strip() or type(error).__name__).splitlines()
        reason = f"{first} {more[0].strip()}" if first.endswith(":") and more else first
        if isinstance(error, KeyError | TypeError | AttributeError):
            reason = f"transformers does not take a value in its json files ({reason})"
        raise ModelError(
            f"cannot load model {str(source)!r}: {reason}; give a hub id, a folder with config.json, "
            "weights and tokenizer, or a GGUF file (HF_HUB_OFFLINE and HF_HOME are obeyed)"
        ) from error
