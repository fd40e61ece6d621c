"""The part of a model that a cut device holds, read from safetensors by their index.

Read are the tensors around the blocks and those of the first blocks, one after the other, with
positioned reads: a file is neither mapped nor read as a whole, so that a device whose memory is
capped below the model can hold its part. What is not held stands in the network as `Absent`.

    front     embedding, final norm, task head: with every part
    0, 1, ..  a block
    output    the output layer of a language model whose embedding is not tied to it
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
)

from airtune.errors import ModelError
from airtune.model.admission import agree_
from airtune.model.base import (
    DTYPES,
    BaseModel,
    base_of,
    check_complete,
    digest_of,
    drawn_modules,
    loading,
    torch_device_of,
)
from airtune.model.classes import name_classes_
from airtune.model.families import Config, replace_module_, shape_from_config
from airtune.model.frame import load_frame
from airtune.model.images import read_batches_
from airtune.model.refusals import check_finite
from airtune.model.source import load_config, load_tokenizer, reading
from airtune.model.stages import check_cut
from airtune.plan import ModelShape

FRONT, OUTPUT = "front", "output"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d+)\.")
_OUTPUT_LAYER = "lm_head"
Classes: TypeAlias = Mapping[type[Config], type[PreTrainedModel]]


class Absent(nn.Module):
    """Stands where a block or an output layer is that another machine holds."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError("this machine holds a part of the model, and was asked for all of it")


def group_of(name: str) -> str:
    """Return which part of a model a tensor belongs to, by its name in a file or a network.

    >>> group_of("model.layers.3.mlp.up_proj.weight"), group_of("h.0.ln_1.bias")
    ('3', '0')
    >>> group_of("model.embed_tokens.weight"), group_of("lm_head.weight")
    ('front', 'output')
    """
    if name.startswith(f"{_OUTPUT_LAYER}."):
        return OUTPUT
    found = _BLOCK.search(name)
    return FRONT if found is None else found[1]


def held_groups(blocks: int, *, output: bool = False) -> frozenset[str]:
    """Return the groups that a part of so many blocks holds."""
    return frozenset({FRONT, *map(str, range(blocks)), *([OUTPUT] if output else [])})


def part_fingerprints(network: nn.Module) -> dict[str, str]:
    """Return a hash of each group of a network's weights that is here, as `fingerprint` makes one."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict().items():
        groups.setdefault(group_of(name), {})[name] = tensor
    return {group: digest_of(tensors) for group, tensors in groups.items()}


def load_part(
    folder: Path,
    *,
    blocks: int,
    output: bool = False,
    labels: int = 0,
    classes: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
) -> BaseModel:
    """Load what surrounds the blocks of a model, and its first ones.

    Args:
        folder: Of the model, with weights in safetensors; files of which nothing is held may lack.
        blocks: How many are held, from the first on.
        output: The output layer of a language model is held too, where it is no tied embedding.
        labels: Number of classes; 0 = a language model.
        classes: Their names, for the model's config.
        dtype: As for `load_base`.
        device: As for `load_base`.

    Raises:
        ModelError: if the part is outside the model, or cannot be read or is not whole.
    """
    base = read_part(folder, blocks=blocks, output=output, labels=labels, dtype=dtype)
    network = base.network.to(torch_device_of(device))
    if classes:
        name_classes_(network, classes)
    if base.shape.family == "vit":
        return replace(base, frame=load_frame(folder))
    tokenizer = load_tokenizer(folder, classifies=labels > 0)
    agree_(network, tokenizer)
    return replace(base, tokenizer=tokenizer)


def read_part(
    folder: Path, *, blocks: int, output: bool = False, labels: int = 0, dtype: str = "float32"
) -> BaseModel:
    """Load a part as `load_part` does, on the CPU and without a tokenizer.

    Raises:
        ModelError: as for `load_part`.
    """
    config = load_config(folder)
    shape = shape_from_config(config, labels=labels)
    check_cut(blocks, shape.blocks)
    wanted = held_groups(blocks, output=output)
    tensors = read_tensors(folder, lambda name: group_of(name) in wanted, DTYPES[dtype])
    part = _shortened(config, blocks)
    part.num_labels = labels or part.num_labels
    is_apart = shape.task == "causal-lm" and not shape.tied
    if is_apart and not output:
        part.tie_word_embeddings = True  # else a head that nobody reads would be drawn
    chosen = _classes(shape)[type(part)]
    with reading(folder), loading():
        network, report = chosen.from_pretrained(
            None,
            config=part,
            state_dict=tensors,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=labels > 0,
        )
    base = _with_absent(network, shape.blocks, output=output or not is_apart)
    check_complete(report, base.family, folder, classifies=labels > 0)
    check_finite(network, str(folder))
    if shape.family == "vit":
        read_batches_(network)
    missing = drawn_modules(report, base.family)
    return replace(base, shape=shape, source=str(folder), held=blocks, drawn=missing)


def read_tensors(
    folder: Path, is_wanted: Callable[[str], bool], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the tensors of a model whose names are wanted; nothing else of its files is read.

    Args:
        folder: With `model.safetensors`, or shards and their index.
        is_wanted: Told a tensor's name.
        dtype: Of what is returned, where a tensor holds floating-point numbers.

    Raises:
        ModelError: if a file is missing or damaged.
    """
    found: dict[str, torch.Tensor] = {}
    try:
        for file in _files(folder, is_wanted):
            with safe_open(file, "pt", backend="pread") as weights:
                for name in filter(is_wanted, weights.keys()):
                    tensor = weights.get_tensor(name)
                    found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"the weights in {folder} cannot be read in part: {error}; it needs {WHOLE}, or shards "
            f"and {INDEX}, as save_pretrained writes them"
        ) from error
    return found


def _files(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """Return the files that hold a wanted tensor."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / WHOLE]
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    names = {str(file) for name, file in places.items() if is_wanted(name)}
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{INDEX} names a file outside its folder")
    return [folder / name for name in sorted(names)]


def _classes(shape: ModelShape) -> Classes:
    """Return the network classes of a task, by config."""
    if shape.task == "causal-lm":
        return cast(Classes, MODEL_FOR_CAUSAL_LM_MAPPING)
    if shape.family == "vit":
        return cast(Classes, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
    return cast(Classes, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)


def _shortened(config: Config, blocks: int) -> Config:
    """Return a config of the first blocks; what it lists for each block is cut as well."""
    part, before = copy.deepcopy(config), int(config.num_hidden_layers)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == before and name != "architectures":
            setattr(part, name, value[:blocks])
    part.num_hidden_layers = blocks
    return part


def _with_absent(network: PreTrainedModel, blocks: int, *, output: bool) -> BaseModel:
    """Return the network as a base, with stand-ins for the blocks and head that are not held."""
    base = base_of(network)
    held = base.family.block_list(network)
    held.extend(Absent() for _ in range(blocks - len(held)))
    if not output:
        replace_module_(network, _OUTPUT_LAYER, Absent())
    return base
