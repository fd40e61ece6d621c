"""From a run to files that ordinary tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from airtune.engine.checkpoint import load_checkpoint
from airtune.errors import CheckpointError, ModelError, RecipeError
from airtune.model.base import BaseModel, load_base
from airtune.model.kept import Kept
from airtune.model.lora import take
from airtune.model.save import save_adapter, save_merged, save_pruned
from airtune.model.slicing import choose_kept
from airtune.model.state import GlobalState, current_base
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run.build import model_source

Format = Literal["adapter", "merged", "pruned", "gguf"]
FORMATS: tuple[Format, ...] = ("adapter", "merged", "pruned", "gguf")


def export_run(
    folder: Path, format: Format, *, output: Path | None = None, prune: float | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write what a run has learned, as it stood after its last round.

    Args:
        folder: the run folder.
        format: adapter (PEFT), merged (the dense model with the adapters in it), pruned (a smaller
            model), each loaded by plain peft or transformers.
        output: where to; None = `<run>/export-<format>`.
        prune: for `pruned` after a run that kept the dense base: fraction of heads and of FFN
            channels to remove, by the importance the run measured.
        overwrite: replace what is there.

    Returns:
        The folder that was written.

    Raises:
        CheckpointError: if the run has no finished round or is damaged.
        RecipeError: if `pruned` needs a ratio, or it is out of range.
        ModelError: if the format cannot say what was learned.
        RunExistsError: if the output is there.
    """
    if format == "gguf":
        raise ModelError(
            "gguf is not written yet; export merged, then convert that folder with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    if format not in FORMATS:
        raise RecipeError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    base, state, scale = _trained(folder)
    place = output or folder / f"export-{format}"
    if format == "adapter":
        if state.merged:
            raise ModelError(
                "this method has merged its adapters into the base, which no adapter can say; "
                "export merged"
            )
        save_adapter(place, base, state.adapters, scale=scale, head=state.head or None,
                     overwrite=overwrite)  # fmt: skip
    elif format == "merged":
        save_merged(place, current_base(base, state), state.adapters, scale=scale,
                    head=state.head or None, overwrite=overwrite)  # fmt: skip
    else:
        kept = _kept(base, state, prune)
        rank = next(iter(state.adapters.values())).shape[0]
        save_pruned(
            place, current_base(base, state), kept, take(state.adapters, base.shape, kept, rank),
            scale=scale, head=state.head or None, overwrite=overwrite,
        )  # fmt: skip
    return place


def _trained(folder: Path) -> tuple[BaseModel, GlobalState, float]:
    record = read_run(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    checkpoint = load_checkpoint(folder / "checkpoint", identity=str(record.header["identity"]))
    if checkpoint is None:
        raise CheckpointError(f"{folder} has no finished round to export; let the run get on first")
    if any(name.partition("/")[1] for name in checkpoint.state.adapters):
        raise ModelError(
            "local-only has one model a device, and none to export; export another run"
        )
    base = load_base(
        model_source(recipe),
        labels=len(record.header["data"]["labels"]),
        dtype=recipe.model.dtype,
        device="cpu",
        revision=recipe.model.revision,
    )
    return base, checkpoint.state, recipe.lora.lora_alpha / recipe.lora.r


def _kept(base: BaseModel, state: GlobalState, prune: float | None) -> Kept:
    if state.kept is not None:
        return state.kept
    if prune is None:
        raise RecipeError(
            "this run kept the dense base, so pruned needs to know how much: --prune 0.3 for "
            "instance; its quality is not that of the run, measure it"
        )
    if not 0.0 < prune < 1.0:
        raise RecipeError(f"--prune must be above 0 and below 1, got {prune:g}")
    if state.importance is None:
        raise ModelError(
            "the run never pruned, so it measured no importance to prune by; export merged"
        )
    shape = base.shape
    groups, channels = int(shape.kept_groups(prune)), int(shape.kept_channels(prune))
    return choose_kept(state.importance, shape, groups, channels)
