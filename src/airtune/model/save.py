"""Writing what was trained so that other tools load it: adapters, merged and pruned models.

A folder appears whole or not at all; `plain` has the configs of pruned models.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from airtune.errors import AirtuneError, ModelError, RunExistsError, StorageError
from airtune.model.base import BaseModel, auto_class
from airtune.model.families import Config
from airtune.model.frame import PREPROCESSOR
from airtune.model.kept import Kept
from airtune.model.lora import Adapters, Head, layer_names, merged
from airtune.model.mending import Mending
from airtune.model.plain import plain_config
from airtune.model.screen import off_screen
from airtune.model.slicing import slice_network
from airtune.plan import ModelShape


def save_adapter(
    folder: str | Path,
    base: BaseModel,
    adapters: Adapters,
    *,
    scale: float,
    head: Head | None = None,
    overwrite: bool = False,
) -> None:
    """Write full-grid adapters as PEFT does; `PeftModel.from_pretrained` loads them.

    Args:
        folder: Where to; appears whole or not at all.
        base: The model they belong to.
        adapters: On the full grid.
        scale: alpha / rank.
        head: The trained task head, saved as one of PEFT's `modules_to_save`.
        overwrite: Replace a folder that is there.

    Raises:
        ModelError: if there are no adapters.
        RunExistsError: if the folder is there and must not be replaced.
        StorageError: if it cannot be written.
    """
    names = layer_names(adapters)
    if not names:
        raise ModelError("there are no adapters to save; train first")
    tensors = {
        f"base_model.model.{base.family.path(*_split(name))}.lora_{part}.weight": adapters[
            f"{name}.{part}"
        ].contiguous()
        for name in names
        for part in ("A", "B")
    }
    whole = dict(head or {}) | _drawn(base)
    tensors |= {f"base_model.model.{name}": value for name, value in whole.items()}
    config = _adapter_config(base, adapters, scale, has_head=bool(head))
    with whole_folder(Path(folder), overwrite=overwrite) as stage:
        config.save_pretrained(str(stage))
        save_file(tensors, stage / "adapter_model.safetensors", metadata={"format": "pt"})
        _save_reader(base, stage)


def _drawn(base: BaseModel) -> Head:
    """Return what the base's files do not hold, so that an adapter has to."""
    return {
        f"{module}.{name}": parameter.detach().float().cpu().contiguous()
        for module in base.drawn
        for name, parameter in base.network.get_submodule(module).named_parameters()
    }


def save_pruned(
    folder: str | Path,
    base: BaseModel,
    kept: Kept,
    adapters: Adapters,
    *,
    scale: float,
    head: Head | None = None,
    mending: Mending | None = None,
    overwrite: bool = False,
) -> None:
    """Write a smaller model with the adapters in its weights; plain transformers loads it.

    Args:
        folder: Where to; appears whole or not at all.
        base: The unpruned model.
        kept: The same number of groups, and of channels, in every block.
        adapters: Of that slice.
        scale: alpha / rank.
        head: The trained task head, or None.
        mending: How the slice makes up for what it lacks; None = not.
        overwrite: Replace a folder that is there.

    Raises:
        ModelError: if no plain config can say what is left, or hold a constant of the mending, or
            the base is held in 4 bits.
        RunExistsError: if the folder is there and must not be replaced.
        StorageError: if it cannot be written.
    """
    constants = frozenset() if mending is None else mending.biased
    plain_config(base, kept, constants=constants)  # refused before anything is sliced
    sliced = slice_network(base, kept, mending=mending)
    network = merged(sliced, base.family, adapters, scale=scale, head=head)
    save_slice(folder, base, kept, network, constants=constants, overwrite=overwrite)


def save_slice(
    folder: str | Path,
    base: BaseModel,
    kept: Kept,
    network: nn.Module,
    *,
    constants: frozenset[str] = frozenset(),
    overwrite: bool = False,
) -> None:
    """Write a slice as a plain model, with whatever weights it has now.

    Args:
        folder: Where to; appears whole or not at all.
        base: The unpruned model.
        kept: What is left of it: the same number of groups, and of channels, in every block.
        network: The slice.
        constants: Output projections that hold one for what they lost, which takes a bias.
        overwrite: Replace a folder that is there.

    Raises:
        ModelError: as `plain_config`.
        RunExistsError: if the folder is there and must not be replaced.
        StorageError: if it cannot be written.
    """
    plain = _plain_network(network, plain_config(base, kept, constants=constants), base.shape)
    with whole_folder(Path(folder), overwrite=overwrite) as stage, off_screen():
        _save_network(plain, stage)
        _save_reader(base, stage)


def _plain_network(network: nn.Module, config: Config, shape: ModelShape) -> PreTrainedModel:
    """Return the class that plain transformers would make, holding the network's tensors."""
    with torch.device("meta"):
        plain = auto_class(shape).from_config(config)
    tensors = network.state_dict()
    for name, expected in plain.state_dict().items():
        if name not in tensors and name.endswith(".bias"):  # of a switch that another layer needs
            tensors[name] = torch.zeros(expected.shape, dtype=plain.dtype)
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    generation = getattr(network, "generation_config", None)
    if generation is not None:
        plain.generation_config = generation
    return plain.eval()


def _adapter_config(
    base: BaseModel, adapters: Adapters, scale: float, *, has_head: bool
) -> LoraConfig:
    names = layer_names(adapters)
    rank = adapters[f"{names[0]}.A"].shape[0]
    alpha = scale * rank
    return LoraConfig(
        base_model_name_or_path=base.source,
        task_type=_peft_task(base.shape),
        inference_mode=True,
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        target_modules=_target_modules(base, names),
        modules_to_save=_whole_modules(base, has_head=has_head),
        fan_in_fan_out=base.family.name == "gpt2",
    )


def _whole_modules(base: BaseModel, *, has_head: bool) -> list[str] | None:
    """Return the modules that an adapter holds whole."""
    names = list(base.family.heads) if has_head else []
    return [*names, *(module.rpartition(".")[2] for module in base.drawn)] or None


def _peft_task(shape: ModelShape) -> str | None:
    """Return PEFT's name of the task; it has none for images."""
    if shape.family == "vit":
        return None
    return "SEQ_CLS" if shape.labels else "CAUSAL_LM"


def _target_modules(base: BaseModel, names: list[str]) -> list[str] | str:
    """Return the layers' names, or a pattern where one name is the end of an untouched one's."""
    chosen = {_split(name)[1] for name in names}
    paths = base.family.linears
    ambiguous = any(
        paths[other].endswith(f".{name}")
        for name in chosen
        for other in paths
        if other not in chosen
    )
    if ambiguous:
        pattern = "|".join(sorted(re.escape(paths[name]) for name in chosen))
        return rf".*\.\d+\.({pattern})"
    return sorted(chosen)


def _split(name: str) -> tuple[int, str]:
    block, _, linear = name.partition(".")
    return int(block), linear


def _save_network(network: PreTrainedModel, folder: Path) -> None:
    """Write a network as transformers does, with the generation config as its base has it.

    transformers itself refuses one that was changed and says more than counts, a temperature without
    sampling for instance, as published models have it.
    """
    if not network.can_generate():
        network.save_pretrained(str(folder))
        return
    generation = network.generation_config
    network.generation_config = GenerationConfig()
    network.save_pretrained(str(folder))
    generation.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])


def _save_reader(base: BaseModel, folder: Path) -> None:
    """Write what turns texts or images into what the model reads."""
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(str(folder))
    if base.frame is not None:
        (folder / PREPROCESSOR).write_text(base.frame.as_preprocessor(), encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Hand out an empty folder that takes its final name only when the block ends well.

    What was there under that name stays until then, and is gone for good only afterwards.

    Args:
        folder: The final name.
        overwrite: Replace what is there.

    Raises:
        RunExistsError: if it is there and must not be replaced.
        StorageError: if it cannot be written.
    """
    _check_free(folder, overwrite=overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as holder:
            made = Path(holder, "new")
            made.mkdir()
            yield made
            _check_free(folder, overwrite=overwrite)  # another process may have been sooner
            _swap(made, folder, aside=Path(holder, "old"))
    except AirtuneError:
        raise
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or "StorageFull" in str(error)
        reason = "the disk is full" if is_full else str(error)
        raise StorageError(
            f"cannot write {folder}: {reason}; free space or choose another folder"
        ) from error


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise RunExistsError(
            f"{folder} is already there; choose another folder, or replace it: --force, or "
            "overwrite=True from Python"
        )


def _swap(made: Path, folder: Path, *, aside: Path) -> None:
    """Give a folder its final name; what has it is put aside, and back where that fails."""
    try:
        if folder.exists():
            folder.replace(aside)
        made.replace(folder)
    finally:
        if aside.exists() and not folder.exists():
            aside.replace(folder)
