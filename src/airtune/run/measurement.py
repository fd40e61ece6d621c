"""What pruning or compression costs here: measured once, stored, and found again.

A measurement is stored under a key that needs no weights, so that the planner finds it too. The
weights' fingerprint is in the file: a run, which has the weights, uses it only where they are the
same; a planner, which loads none, takes it as it is. Nor does the key hold the seed: what pruning
costs belongs to the model and the data, and runs that differ in their draws share one measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from airtune.calibrate import (
    Measured,
    Setting,
    calibrate_codecs,
    calibrate_pruning,
    from_document,
    load,
    store,
)
from airtune.plan import Calibration, Problem, SplitCalibration
from airtune.recipe import Recipe
from airtune.run.build import Pieces
from airtune.run.method import Chosen, wants_calibration, wants_split_calibration


def informed(problem: Problem, measured: Measured | None) -> Problem:
    """Return the problem with what was measured, and nothing else of the kind."""
    found = None if measured is None else measured.calibration
    return replace(
        problem,
        calibration=found if isinstance(found, Calibration) else None,
        split=found if isinstance(found, SplitCalibration) else None,
    )


def measure(pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]) -> Measured | None:
    """Return what pruning or compression costs, measured now or before, where it is asked for.

    Raises:
        CheckpointError: if what is stored is damaged.
    """
    recipe, measured_by = pieces.recipe, _way(chosen)
    if measured_by is None:
        return None
    stored = stored_measurement(recipe, chosen, fingerprint=pieces.assets.base.fingerprint)
    if stored is not None:
        return stored
    measured = measured_by(pieces, chosen, on_stage)
    store(calibration_path(recipe, chosen), measured)
    return measured


def remembered(document: Mapping[str, Any]) -> Measured | None:
    """Return the measurement that a run's header holds, if it holds one."""
    stored = document.get("split_calibration", document.get("calibration"))
    return None if stored is None else from_document(stored)


def stored_measurement(
    recipe: Recipe, chosen: Chosen, *, fingerprint: str | None = None
) -> Measured | None:
    """Return what an earlier run has measured of this setting, or None.

    Args:
        recipe: checked.
        chosen: its method.
        fingerprint: of the weights that are to be trained; None = whatever they are.

    Raises:
        CheckpointError: if the file is damaged.
    """
    found = None if _way(chosen) is None else load(calibration_path(recipe, chosen))
    is_other = found is not None and fingerprint is not None and found.fingerprint != fingerprint
    return None if is_other else found


def calibration_path(recipe: Recipe, chosen: Chosen) -> Path:
    """Return where the measurement of this model, data, training and local work is stored."""
    split = wants_split_calibration(chosen)
    section, name = ("split", "split-calibration") if split else ("calibration", "calibration")
    values = recipe.plain()
    parts = {part: values[part] for part in ("model", "lora", "data", section)}
    parts["train"] = {key: value for key, value in values["train"].items() if key != "rounds"}
    parts["fleet"] = [values["fleet"]["source"], values["fleet"]["devices"]]
    parts["work"] = asdict(chosen.method.work)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(recipe.output) / "cache" / f"{name}-{key}.json"


def _way(chosen: Chosen) -> Callable[[Pieces, Chosen, Callable[[str], None]], Measured] | None:
    """Return how what a method wants to know is measured; None = it wants to know nothing."""
    if wants_split_calibration(chosen):
        return _measure_codecs
    return _measure_pruning if wants_calibration(chosen) else None


def _measure_pruning(pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]) -> Measured:
    on_stage("calibrating: what does pruning cost here?")
    asked = pieces.recipe.calibration
    setting = _setting(pieces, chosen, rounds=asked.rounds, devices=asked.devices)
    return calibrate_pruning(setting, asked.budgets)


def _measure_codecs(pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]) -> Measured:
    on_stage("calibrating: what does compressing activations cost here?")
    asked = pieces.recipe.split
    setting = _setting(pieces, chosen, rounds=asked.rounds, devices=asked.devices)
    return calibrate_codecs(setting, [section.spec() for section in asked.codecs], asked.cuts)


def _setting(pieces: Pieces, chosen: Chosen, *, rounds: int, devices: int) -> Setting:
    return Setting(
        base=pieces.assets.base, data=pieces.assets.data, problem=pieces.problem,
        work=chosen.method.work, engine=pieces.engine, rounds=rounds, devices=devices,
    )  # fmt: skip
