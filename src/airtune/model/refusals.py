"""What is refused before a model is loaded, or as soon as it is, with what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from airtune.errors import ModelError
from airtune.model.families import Config

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that only points to one that Git LFS did not fetch."""
_ADAPTER = "adapter_config.json"
_SHOWN = 3
"""Names in one sentence."""


def refuse_no_model(source: str | Path) -> None:
    """Refuse a folder that has no model of its own, or whose files were not fetched.

    Raises:
        ModelError: if it has no config but a folder in it has, holds a PEFT adapter, or pointers of
            Git LFS in place of files.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return
    if (folder / _ADAPTER).is_file():
        raise ModelError(
            f"{source} holds a PEFT adapter ({_ADAPTER}), which is no base: set model.source to the "
            f"model it belongs to{_base_of(folder / _ADAPTER)}, or merge the two first "
            "(merge_and_unload, then save_pretrained)"
        )
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(
                    f"{path} is a Git LFS pointer and not the file; run git lfs pull in its folder"
                )
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inner and not (folder / "config.json").is_file():
        raise ModelError(
            f"{source} has no config.json, but {', '.join(inner[:_SHOWN])} in it has; set model.source "
            f"to {folder / inner[-1]}, for instance"
        )


def _base_of(adapter: Path) -> str:
    """Return which base an adapter names, in brackets, or ""."""
    try:
        said = json.loads(adapter.read_text(encoding="utf-8"))
    except ValueError:
        return ""
    name = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    return f" ({name})" if name else ""


def refuse_class_names(settings: Mapping[str, Any], source: str | Path) -> None:
    """Refuse a config whose `id2label` does not give names to numbers, before transformers reads it.

    Raises:
        ModelError: with what it says.
    """
    names = settings.get("id2label")
    if names is None or (isinstance(names, dict) and all(map(_is_number, names))):
        return
    raise ModelError(
        f"id2label in the config of {str(source)!r} must give a name to each number, "
        f'{{"0": "cat", "1": "dog"}} for instance, got {names!r:.80}; put it right (label2id is the '
        "other way round), or take both out"
    )


def refuse_generation(source: str | Path, config: Config, revision: str | None) -> None:
    """Refuse settings of generation that transformers does not take when it loads the model.

    Raises:
        ModelError: naming the file, with transformers' reason.
    """
    reads: Mapping[str, Callable[[], object]] = {
        "config.json": lambda: GenerationConfig.from_model_config(config),
        "generation_config.json": lambda: GenerationConfig.from_pretrained(
            source, revision=revision
        ),
    }
    for file, read in reads.items():
        try:
            read()
        except OSError:  # there is none
            continue
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ModelError(
                f"{file} of {str(source)!r} has a setting of generation that transformers refuses: "
                f"{error}; repair or remove it: tuning needs none, as answers are written greedily"
            ) from error


def refuse_quantised(config: Config, source: str | Path) -> None:
    """Refuse weights that were saved in few bits.

    Raises:
        ModelError: naming how.
    """
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    kind = said.get("quant_method") if isinstance(said, dict) else type(said).__name__
    raise ModelError(
        f"the weights of {str(source)!r} are quantised ({kind or 'quantization_config'}), and those are "
        "not tuned here; give the model that they were made from, with model.load_in_4bit: true to hold "
        "it in 4 bits"
    )


def refuse_pickled(source: str | Path) -> None:
    """Refuse a folder that has weights as pickles only.

    Raises:
        ModelError: naming one of the files.
    """
    folder = Path(source)
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{source} has its weights as pickled files only ({pickled[0]}), which can run code "
            "when they are read; save them as safetensors, or set model.allow_pickle: true if you "
            "trust whoever made them"
        )


def check_finite(network: PreTrainedModel, source: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        ModelError: naming the first such tensors.
    """
    bad = [name for name, weight in network.named_parameters() if not _is_finite(weight)]
    if bad:
        raise ModelError(
            f"{len(bad)} tensors of {source!r} hold values that are not finite, {bad[0]} for one; "
            "the files are damaged, or were saved in a type too narrow for them"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    """Return whether a weight has neither NaN nor infinity, by its least and largest number.

    These are NaN where any is, and take no memory; a mask takes more than an embedding does, which a
    device whose memory is capped may not have.
    """
    if not (weight.is_floating_point() and weight.numel()):
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(weight.detach()))


def _is_number(key: object) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and re.fullmatch(r"\d+", key) is not None)
