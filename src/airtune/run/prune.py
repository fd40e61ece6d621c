"""A smaller base before anything is tuned: pruned, mended, and taught by the dense model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from airtune.calibrate import SensitivityProbe, chosen_devices, measure_sensitivity, scored_state
from airtune.errors import ModelError, RecipeError, RunInterruptedError
from airtune.model.base import BaseModel
from airtune.model.batch import Sequences
from airtune.model.kept import Kept
from airtune.model.mending import Mending
from airtune.model.save import save_slice, whole_folder
from airtune.model.saved import load_saved
from airtune.model.slicing import slice_network
from airtune.plan import WorkSpec
from airtune.recipe import ON_DEVICE, Recipe
from airtune.records import write_atomically
from airtune.run.execute import Watch
from airtune.run.load import Assets, load_assets
from airtune.run.manifest import MANIFEST, check_place, manifest_of
from airtune.run.selfcheck import SelfCheck, self_check
from airtune.run.sensitivity import DEVICES
from airtune.run.slices import check_fraction, kept_at, slice_of
from airtune.work.batches import join
from airtune.work.distil import distil_
from airtune.work.evaluate import evaluate
from airtune.work.network import mending_of

_WORK = WorkSpec(mend="least-squares", cumulative=True)


@dataclass(frozen=True, slots=True)
class PrunedBase:
    """A smaller base that was written, and how good it is."""

    folder: Path
    check: SelfCheck
    """What it weighs and how fast it is, beside the dense model."""
    steps: int
    """Of distillation."""
    dense: float
    """Loss of the dense model on the test rows, in nats a scored token."""
    mended: float
    """Of the slice, mended by least squares."""
    written: float
    """Of what is in the folder, read back by plain transformers."""


def prune_base(
    recipe: Recipe,
    prune: float,
    *,
    steps: int,
    output: Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> PrunedBase:
    """Write a smaller base model, which `model.source` takes in place of the dense one.

    The recipe's training rows are read on this machine: to measure which heads and channels matter,
    and as texts on which the slice learns to answer as the dense model does. Labels are not used.

    Args:
        recipe: checked; its model, data, batch size and seed are used.
        prune: fraction of the blocks' weights to remove.
        steps: of distillation, eight texts each; 0 = none.
        output: folder to write; None = `pruned-<prune>` in the recipe's output folder.
        overwrite: replace what is there.
        watch: receives the progress.

    Raises:
        RecipeError: if `prune` or `steps` is out of range, or the task is not causal-lm.
        DataError: if the data are missing, malformed or too few.
        ModelError: if no plain config can say what is left, or what was written reads otherwise.
        TrainingError: if the distillation diverges.
        RunExistsError: if the output is there, or is nothing that `overwrite` may replace.
        RunInterruptedError: on Ctrl-C; nothing is written then.
        StorageError: if it cannot be written.
    """
    _check(recipe, prune, steps)
    watch = watch or Watch()
    target = output or Path(recipe.output) / f"pruned-{prune:g}"
    if overwrite:
        check_place(target)
    watch.on_begin(target.name, 0)
    try:
        with whole_folder(target, overwrite=overwrite) as stage:
            return replace(_written(stage, recipe, prune, steps, watch), folder=target)
    except KeyboardInterrupt as error:
        raise RunInterruptedError("interrupted; nothing was written") from error


def _check(recipe: Recipe, prune: float, steps: int) -> None:
    check_fraction(prune)
    if steps < 0:
        raise RecipeError(f"steps must be 0 or more, got {steps}")
    if recipe.data.task != "causal-lm":
        raise RecipeError(
            f"a base is pruned before tuning where data.task is causal-lm, got {recipe.data.task}: a "
            "classifier's head has learnt nothing yet; tune with a method that prunes, fedspine for "
            "instance"
        )
    if recipe.data.source == ON_DEVICE:
        raise RecipeError(
            "data.source is devices, and a base is pruned on rows of this machine; name a file with "
            "rows of the same kind: data.source=rows.jsonl"
        )


def _written(stage: Path, recipe: Recipe, prune: float, steps: int, watch: Watch) -> PrunedBase:
    watch.on_stage("loading model and data")
    whole = recipe.model.model_copy(update={"dtype": "float32", "load_in_4bit": False})
    assets = load_assets(recipe.model_copy(update={"model": whole}))
    base, test = assets.base, assets.data.test
    watch.on_stage("measuring what heads and channels cost")
    kept, mending, student = _slice(recipe, assets, prune)
    dense, mended = (evaluate(network, test).loss for network in (base.network, student))
    if steps:
        _distil_(student, recipe, assets, steps, watch)
    save_slice(stage, base, kept, student, constants=mending.biased, overwrite=True)
    saved = load_saved(stage, base)
    written = evaluate(saved, test).loss
    found = PrunedBase(stage, self_check(saved, base), steps, dense, mended, written)
    _check_written(found, prune, in_memory=evaluate(student, test).loss if steps else mended)
    _describe(stage, recipe, base, kept, found)
    return found


def _check_written(found: PrunedBase, prune: float, *, in_memory: float) -> None:
    """Refuse a model that is no smaller, or answers otherwise when it is read back."""
    if found.check.parameters >= found.check.dense_parameters:
        raise RecipeError(
            f"pruning {prune:g} removes less than the constants of the mending add; prune more, 0.1 "
            "for instance"
        )
    if not math.isclose(found.written, in_memory, rel_tol=1e-3):
        raise ModelError(
            f"the written model has a loss of {found.written:.4g} on the test rows, the one in memory "
            f"{in_memory:.4g}; nothing is kept, report this"
        )


def _slice(recipe: Recipe, assets: Assets, prune: float) -> tuple[Kept, Mending, nn.Module]:
    """Return what is left, how it is mended, and the slice, whose tensors are its own."""
    base, batch = assets.base, recipe.train.per_device_train_batch_size
    few = chosen_devices(assets.data, DEVICES)
    probe = SensitivityProbe(base, few, _WORK, batch, recipe.seed)
    scored = scored_state(probe)
    mending = mending_of(base, scored, _WORK)
    if mending is None or scored.importance is None:
        raise ModelError("no device has rows to measure on; give data with more rows")
    kept = kept_at(base, scored.importance, measure_sensitivity(probe, scored), prune)
    return kept, mending, copy.deepcopy(slice_network(base, kept, mending=mending))


def _distil_(student: nn.Module, recipe: Recipe, assets: Assets, steps: int, watch: Watch) -> None:
    """Let a slice learn from the dense model on the training rows of all devices."""

    def told(step: int, divergence: float) -> None:
        if step % -(-steps // 10) == 0 or step == steps:
            watch.on_stage(f"distilled {step} of {steps} steps, {divergence:.3f} nats from dense")

    watch.on_stage(f"distilling in {steps} steps")
    held = [part.train for part in assets.data.devices if isinstance(part.train, Sequences)]
    distil_(
        student,
        assets.base.network,
        join((rows, range(len(rows))) for rows in held),
        steps=steps,
        batch=recipe.train.per_device_train_batch_size,
        seed=recipe.seed,
        on_step=told,
    )


def _describe(stage: Path, recipe: Recipe, base: BaseModel, kept: Kept, found: PrunedBase) -> None:
    losses = {name: asdict(found)[name] for name in ("dense", "mended", "written")}
    quality = {"loss": losses, "measured_on": "the test rows", "distilled_steps": found.steps}
    about = manifest_of(recipe, base, "pruned", quality) | {
        "method": "prune",
        "slice": slice_of(base, kept),
        "self_check": asdict(found.check),
    }
    write_atomically(stage / MANIFEST, json.dumps(about, indent=1) + "\n")
