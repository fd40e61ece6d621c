"""From a run to files that ordinary tools load."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForCausalLM

from airtune.engine.checkpoint import load_checkpoint
from airtune.errors import CheckpointError, ModelError, RecipeError, RunExistsError
from airtune.model.base import BaseModel
from airtune.model.gguf import check_gguf, write_gguf
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import take
from airtune.model.save import save_adapter, save_pruned
from airtune.model.slicing import choose_kept
from airtune.model.state import GlobalState, current_base
from airtune.plan import WorkSpec
from airtune.recipe import Recipe, load_recipe
from airtune.records import read_run, storage, write_atomically
from airtune.run.build import load_model
from airtune.run.method import choose_method
from airtune.run.selfcheck import self_check
from airtune.work.network import means_of, tuned_network

Format = Literal["adapter", "merged", "pruned", "gguf"]
MANIFEST, GGUF_NAME = "airtune.json", "model.gguf"
FORMATS: tuple[Format, ...] = ("adapter", "merged", "pruned", "gguf")


def export_run(
    folder: Path, format: Format, *, output: Path | None = None, prune: float | None = None,
    overwrite: bool = False, accept_worse: bool = False,
) -> Path:  # fmt: skip
    """Write what a run has learned, as it stood after its last round.

    Args:
        folder: the run folder.
        format: adapter (PEFT), merged (the dense model with the adapters in it), pruned (a smaller
            model), each loaded by plain peft or transformers; gguf (one file for llama.cpp, pruned
            where the run pruned for good).
        output: where to; None = `<run>/export-<format>`.
        prune: for `pruned`, or another model format, after a run that kept the dense base: fraction
            of heads and of FFN channels to remove, by the importance the run measured.
        overwrite: replace what is there.
        accept_worse: write it even where it is worse than the untuned model.

    Returns:
        The folder that was written, with a manifest `airtune.json`: what it is, how good it was in
        the run and, for models, what a self-check found.

    Raises:
        CheckpointError: if the run has no finished round or is damaged.
        RecipeError: if `pruned` needs a ratio, or it is out of range.
        MissingExtraError: if `gguf` needs a package that is not installed.
        ModelError: if the format cannot say what was learned, it is worse than the untuned model,
            or the files do not answer as the model in memory does.
        RunExistsError: if the output is there.
    """
    if format not in FORMATS:
        raise RecipeError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    trained = _trained(folder)
    if not accept_worse:
        _check_better(folder, trained.quality)
    place = output or folder / f"export-{format}"
    if format == "adapter":
        checked = _write_adapter(place, trained, overwrite=overwrite)
    else:
        kept = keep_all(trained.base.shape)
        if format == "pruned" or prune is not None or trained.state.kept is not None:
            kept = _kept(trained.base, trained.state, prune)
        write = _write_gguf if format == "gguf" else _write_model
        checked = write(place, trained, kept, overwrite=overwrite)
    content = json.dumps(_manifest(trained, format) | checked, indent=1) + "\n"
    write_atomically(place / MANIFEST, content.encode())
    return place


@dataclass(frozen=True, slots=True)
class _Trained:
    """A run as it stood after its last round."""

    base: BaseModel
    state: GlobalState
    work: WorkSpec
    recipe: Recipe
    quality: dict[str, Any]

    @property
    def scale(self) -> float:
        """Scale of the adapters: alpha over rank."""
        return self.recipe.lora.lora_alpha / self.recipe.lora.r


def _write_adapter(place: Path, trained: _Trained, *, overwrite: bool) -> dict[str, Any]:
    if trained.state.merged:
        raise ModelError(
            "this method has merged its adapters into the base, which no adapter can say; "
            "export merged"
        )
    if trained.state.kept is not None:
        raise ModelError(
            "this run pruned the model for good, and its adapters belong to what is left; "
            "export pruned"
        )
    save_adapter(
        place, trained.base, trained.state.adapters, scale=trained.scale,
        head=trained.state.head or None, overwrite=overwrite,
    )  # fmt: skip
    return {}


def _write_model(place: Path, trained: _Trained, kept: Kept, *, overwrite: bool) -> dict[str, Any]:
    base, state = trained.base, replace(trained.state, kept=kept)
    whole = current_base(base, state)
    rank = next(iter(state.adapters.values())).shape[0]
    # a run that kept the dense base was not tuned with means in the place of what is cut off here
    means = means_of(base, state, trained.work) if trained.work.cumulative else None
    save_pruned(
        place, whole, kept, take(state.adapters, base.shape, kept, rank), scale=trained.scale,
        head=state.head or None, means=means, overwrite=overwrite,
    )  # fmt: skip
    work = trained.work if trained.work.cumulative else replace(trained.work, compensate=False)
    tuned = tuned_network(base, state, scale=trained.scale, work=work)
    shape = base.shape
    groups, channels = len(kept.groups[0]), len(kept.channels[0])
    return {
        "slice": {
            "groups": groups, "of_groups": shape.kv_groups, "channels": channels,
            "of_channels": shape.ffn,
            "pruned": float(shape.pruned_fraction(
                1.0 - groups / shape.kv_groups, 1.0 - channels / shape.ffn)),
        },
        "self_check": asdict(self_check(place, tuned.network, base)),
    }  # fmt: skip


def _write_gguf(place: Path, trained: _Trained, kept: Kept, *, overwrite: bool) -> dict[str, Any]:
    """Write the plain folder first, which is checked, and turn it into one file."""
    check_gguf(trained.base.network)
    if place.exists() and not overwrite:
        raise RunExistsError(f"{place} is already there; choose another name or overwrite it")
    with storage(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as temporary:
            plain, written = Path(temporary) / "plain", Path(temporary) / "gguf"
            checked = _write_model(plain, trained, kept, overwrite=False)
            written.mkdir()
            network = AutoModelForCausalLM.from_pretrained(str(plain))
            write_gguf(written / GGUF_NAME, network, trained.base.tokenizer)
            if place.exists():
                shutil.rmtree(place)
            written.replace(place)
    return checked


def _manifest(trained: _Trained, format: Format) -> dict[str, Any]:
    recipe = trained.recipe
    return {
        "format": format,
        "base": {"source": recipe.model.source, "revision": recipe.model.revision,
                 "fingerprint": trained.base.fingerprint},
        "method": recipe.method.name,
        "template": recipe.data.template,
        "quality": trained.quality,
    }  # fmt: skip


def _check_better(folder: Path, quality: Mapping[str, Any]) -> None:
    before, after = quality["untuned"], quality["tuned"]
    if before is not None and after is not None and not after["loss"] <= before["loss"]:
        raise ModelError(
            f"the model of {folder} has a validation loss of {after['loss']:.4g}, the untuned one "
            f"{before['loss']:.4g}; tune it longer, or export it anyway with --force"
        )


def _trained(folder: Path) -> _Trained:
    record = read_run(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    checkpoint = load_checkpoint(folder / "checkpoint", identity=str(record.header["identity"]))
    if checkpoint is None:
        raise CheckpointError(f"{folder} has no finished round to export; let the run get on first")
    if any(name.partition("/")[1] for name in checkpoint.state.adapters):
        raise ModelError(
            "local-only has one model a device, and none to export; export another run"
        )
    base = load_model(recipe, labels=len(record.header["data"]["labels"]), device="cpu")
    validations = [row["validation"] for row in record.rounds if row.get("validation")]
    quality = {
        "untuned": record.rounds[0].get("initial") if record.rounds else None,
        "tuned": validations[-1] if validations else None,
        "measured_on": "the validation share of the devices, model of the last round",
    }
    work = choose_method(recipe).method.work
    return _Trained(base, checkpoint.state, work, recipe, quality)


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
