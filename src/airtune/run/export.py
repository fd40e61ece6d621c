"""From a run to files that ordinary tools load."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from airtune.data.samples import TextRows, read_samples
from airtune.engine.checkpoint import Checkpoint, load_checkpoint
from airtune.errors import CheckpointError, ModelError, RecipeError
from airtune.model.base import BaseModel
from airtune.model.gguf.fields import check_gguf
from airtune.model.gguf.write import Quantisation
from airtune.model.images import read_batches_
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import take
from airtune.model.save import save_adapter, save_pruned, whole_folder
from airtune.model.saved import load_adapted, load_saved
from airtune.model.server import evaluated
from airtune.model.state import GlobalState, current_base
from airtune.plan import Sensitivity, WorkSpec
from airtune.recipe import Recipe
from airtune.records import RunRecord, read_run, write_atomically
from airtune.run.answers import GradedAnswer, sample_answers
from airtune.run.card import CARD, Exported, card_of
from airtune.run.folders import check_moved, saved_recipe
from airtune.run.gguf import adapter_file, check_quantise, model_file
from airtune.run.load import load_model
from airtune.run.manifest import (
    ANYWAY,
    MANIFEST,
    check_better,
    check_place,
    manifest_of,
    quality_of,
    unmeasured,
)
from airtune.run.method import choose_method
from airtune.run.replay import replay
from airtune.run.selfcheck import self_check
from airtune.run.sensitivity import remembered_sensitivity
from airtune.run.slices import check_fraction, kept_at, slice_of
from airtune.work.network import mending_of, tuned_network

Format = Literal["adapter", "merged", "pruned", "gguf", "adapter-gguf"]
Round = Literal["best", "last"]
FORMATS: tuple[Format, ...] = ("adapter", "merged", "pruned", "gguf", "adapter-gguf")


def export_run(
    folder: Path,
    format: Format,
    *,
    output: Path | None = None,
    prune: float | None = None,
    round: Round = "last",
    quantise: Quantisation | None = None,
    overwrite: bool = False,
    accept_worse: bool = False,
) -> Path:
    """Write what a run has learned, as it stood after its last round or its best one.

    The folder gets its name when it is whole and checked; until then what had it stays.

    Args:
        folder: the run folder.
        format: adapter (PEFT), merged (the dense model with the adapters in it), pruned (a smaller
            model), each loaded by plain peft or transformers; gguf (one file for llama.cpp, pruned
            where the run pruned for good) or adapter-gguf (what llama.cpp adds to a base).
        output: folder to write; None = `<run>/export-<format>`.
        prune: for a model format, after a run that kept the dense base: fraction of the blocks'
            weights to remove, heads and channels as the run measured that they matter. How good the
            result is was not measured, so it needs `accept_worse`.
        round: last, or best = the one whose model was best on the devices' validation data.
        quantise: of gguf, f32, f16 or q8_0; of adapter-gguf, f32 or f16; None = as the weights are.
        overwrite: replace what is there.
        accept_worse: write it even where it is worse than the untuned model, or may be.

    Returns:
        The folder that was written, with a manifest `airtune.json`: what it is, how good it was in
        the run and, for models, what a self-check found.

    Raises:
        CheckpointError: if the run has no finished round or is damaged.
        RecipeError: if the format or the round is unknown, `prune` is missing, out of range or of no
            use, or the best round is asked of a run that validated none.
        MissingExtraError: if `gguf` needs a package that is not installed.
        ModelError: if the format cannot say what was learned, it is or may be worse than the
            untuned model, or the files do not answer as the model in memory does.
        RunExistsError: if the output is there, or is no export that `overwrite` may replace.
        StorageError: if it cannot be written.
    """
    _check_asked(format, prune, round)
    check_quantise(format, quantise)
    target = output or folder / f"export-{format}"
    if overwrite:
        check_place(target)
    trained = replace(_trained(folder, round), quantise=quantise)
    kept = _kept(trained, format, prune)
    if prune is not None:
        trained = replace(trained, quality=unmeasured(trained.quality, prune))
    if not accept_worse:
        check_better(folder, trained.quality, prune)
    with whole_folder(target, overwrite=overwrite) as stage:
        checked = _WRITERS[format](stage, trained, kept)
        about = manifest_of(trained.recipe, trained.base, format, trained.quality)
        _describe(stage, trained, about | checked, is_tested=trained.is_last and prune is None)
    return target


def _describe(stage: Path, trained: _Trained, about: dict[str, Any], *, is_tested: bool) -> None:
    """Write the manifest and the model card."""
    content = json.dumps(about, indent=1) + "\n"
    write_atomically(stage / MANIFEST, content.encode())
    card = card_of(
        Exported(
            about["format"],
            trained.recipe,
            trained.base,
            trained.record,
            about["quality"],
            is_tested,
            about["base"]["revision"],
            tuple(GradedAnswer(**each) for each in about["answers"]),
        )
    )
    write_atomically(stage / CARD, card)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A run as it stood after one of its rounds."""

    base: BaseModel
    state: GlobalState
    work: WorkSpec
    recipe: Recipe
    quality: dict[str, Any]
    sensitivity: Sensitivity | None
    """What the run measured that heads and channels cost."""
    samples: TextRows
    """A few test rows."""
    record: RunRecord
    is_last: bool
    """It is the last round."""
    quantise: Quantisation | None = None
    """How a GGUF file stores matrices; None = as they are."""

    @property
    def scale(self) -> float:
        """Scale of the adapters: alpha over rank."""
        return self.recipe.lora.lora_alpha / self.recipe.lora.r


def _write_adapter(stage: Path, trained: _Trained, kept: Kept) -> dict[str, Any]:
    if trained.state.merged:
        raise ModelError(
            "this method merges its adapters into the base, so there is no adapter; export merged"
        )
    if trained.state.kept is not None:
        raise ModelError(
            "this run pruned the model for good, and its adapters fit only the pruned model; "
            "export pruned"
        )
    save_adapter(
        stage,
        trained.base,
        trained.state.adapters,
        scale=trained.scale,
        head=trained.state.head or None,
        overwrite=True,
    )
    saved = load_adapted(stage, trained.base, revision=trained.recipe.model.revision)
    return _asked(stage, saved, trained, trained.state, trained.work)


def _write_model(stage: Path, trained: _Trained, kept: Kept) -> dict[str, Any]:
    base, state = trained.base, replace(trained.state, kept=kept)
    whole = current_base(base, state)
    rank = next(iter(state.adapters.values())).shape[0]
    # what is written must be sayable, whatever the devices trained with
    work = replace(trained.work, cumulative=True)
    save_pruned(
        stage,
        whole,
        kept,
        take(state.adapters, base.shape, kept, rank),
        scale=trained.scale,
        head=state.head or None,
        mending=mending_of(base, state, work),
        overwrite=True,
    )
    saved = load_saved(stage, base)
    found = {"slice": slice_of(base, kept)} | _asked(stage, saved, trained, state, work)
    if base.frame is not None:
        read_batches_(saved)
    return {**found, "self_check": asdict(self_check(saved, base))}


def _asked(
    stage: Path, saved: nn.Module, trained: _Trained, state: GlobalState, work: WorkSpec
) -> dict[str, Any]:
    """Ask what was saved the run's own test rows: is it the tuned model, and what does it say?"""
    base, samples, limit = trained.base, trained.samples, trained.recipe.data.max_length
    tuned = tuned_network(base, state, scale=trained.scale, work=work).network
    answers = sample_answers(saved, stage, base, samples, max_length=limit)
    return {
        "replay": asdict(replay(saved, stage, tuned, base, samples, max_length=limit)),
        "answers": [asdict(answer) for answer in answers],
    }


def _write_gguf(stage: Path, trained: _Trained, kept: Kept) -> dict[str, Any]:
    """Write the plain folder first, which is checked, and turn it into one file."""
    check_gguf(trained.base.network)
    plain = stage / "plain"
    checked = _write_model(plain, trained, kept)
    found = model_file(stage, plain, trained.base, trained.samples, trained.quantise)
    shutil.rmtree(plain)
    return checked | found


def _write_adapter_gguf(stage: Path, trained: _Trained, kept: Kept) -> dict[str, Any]:
    """Write PEFT's folder first, which is checked, and turn it into one file."""
    check_gguf(trained.base.network)
    plain = stage / "plain"
    checked = _write_adapter(plain, trained, kept)
    found = adapter_file(
        stage, trained.base, trained.state.adapters, scale=trained.scale, quantise=trained.quantise
    )
    shutil.rmtree(plain)
    return checked | found


_WRITERS = {
    "adapter": _write_adapter,
    "merged": _write_model,
    "pruned": _write_model,
    "gguf": _write_gguf,
    "adapter-gguf": _write_adapter_gguf,
}


def _check_asked(format: str, prune: float | None, round: str) -> None:
    """Refuse what no run can be written as, before one is loaded."""
    if format not in FORMATS:
        raise RecipeError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if round not in ("best", "last"):
        raise RecipeError(f"round must be best or last, got {round!r}")
    if prune is None:
        return
    check_fraction(prune)
    if format in ("adapter", "adapter-gguf"):
        raise RecipeError(
            f"prune {prune:g} is for merged, pruned and gguf: an adapter holds nothing of the "
            "model to remove; export pruned, or leave prune out"
        )


def _trained(folder: Path, round: Round = "last") -> _Trained:
    record = read_run(folder)
    recipe = saved_recipe(folder, record.header)
    check_moved(folder, record.header, ["model.source"])
    checkpoint = _checkpoint(folder, str(record.header["identity"]), round)
    if any(name.partition("/")[1] for name in checkpoint.state.adapters):
        raise ModelError(
            "local-only has one model a device, and none to export; export another run"
        )
    base = load_model(recipe, classes=record.header["data"]["labels"], device="cpu")
    _check_base(folder, base, str(record.header["model"]["fingerprint"]), recipe)
    work = choose_method(recipe).method.work
    sensitivity = remembered_sensitivity(record.header)
    state = evaluated(checkpoint.state)
    quality, samples = quality_of(record, checkpoint.rounds), read_samples(folder)
    is_last = checkpoint.rounds == len(record.rounds)
    return _Trained(base, state, work, recipe, quality, sensitivity, samples, record, is_last)


def _checkpoint(folder: Path, identity: str, round: Round) -> Checkpoint:
    """Return the last checkpoint, or the best one, which the last names."""
    saved_in = folder / "checkpoint"
    last = load_checkpoint(saved_in, identity=identity)
    if last is None:
        raise CheckpointError(f"{folder} has no finished round to export; let the run get on first")
    if round == "last":
        return last
    named = last.progress.get("best")
    if named is None:
        raise RecipeError(
            f"{folder} validated no round, so none is known to be the best; export round last, or "
            "run it with data.held_out above 0"
        )
    best = load_checkpoint(saved_in, identity=identity, rounds=named["round"] + 1)
    if best is None:
        raise CheckpointError(
            f"{saved_in} no longer holds round {named['round'] + 1}, the best of {folder}; export "
            "round last"
        )
    return best


def _check_base(folder: Path, base: BaseModel, trained_on: str, recipe: Recipe) -> None:
    """Refuse other weights than the run's; those it held in 4 bits cannot be told apart."""
    if base.fingerprint != trained_on and not recipe.model.load_in_4bit:
        raise ModelError(
            f"{recipe.model.source} holds other weights now than when {folder} was run; get those "
            "back, by model.revision for instance"
        )


def _kept(trained: _Trained, format: Format, prune: float | None) -> Kept:
    """Return what is left of the model that is written."""
    state, shape = trained.state, trained.base.shape
    if state.kept is not None:
        if prune is not None:
            raise RecipeError(
                f"this run pruned the model for good, so prune {prune:g} would prune what is "
                "pruned; leave prune out"
            )
        return state.kept
    if prune is None:
        if format == "pruned":
            raise RecipeError(
                "this run kept the dense base, so pruned needs to know how much: prune 0.3 for "
                "instance; its quality is not that of the run, so it is written only with "
                f"{ANYWAY}; evaluate it"
            )
        return keep_all(shape)
    if state.importance is None:
        raise ModelError(
            "the run never pruned, so it measured no importance to prune by; export merged, or tune "
            "with a method that prunes, jcpba or uniform-prune for instance"
        )
    return kept_at(trained.base, state.importance, trained.sensitivity, prune)
