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
from typing import Any, TypeAlias

from airtune import calibrate, calibrate_split
from airtune.calibrate_split import SplitMeasured
from airtune.plan import Problem
from airtune.recipe import Recipe
from airtune.run.build import Pieces
from airtune.run.method import Chosen, wants_calibration, wants_split_calibration

Measured: TypeAlias = calibrate.Measured | SplitMeasured
"""What was measured beforehand: the price of pruning, or that of compressing activations."""


def informed(problem: Problem, measured: Measured | None) -> Problem:
    """Return the problem with what was measured, and nothing else of the kind."""
    return replace(
        problem,
        calibration=measured.calibration if isinstance(measured, calibrate.Measured) else None,
        split=measured.calibration if isinstance(measured, SplitMeasured) else None,
    )


def measure(pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]) -> Measured | None:
    """Return what pruning or compression costs, measured now or before, where it is asked for.

    Raises:
        CheckpointError: if what is stored is damaged.
    """
    recipe = pieces.recipe
    stored = stored_measurement(recipe, chosen, fingerprint=pieces.assets.base.fingerprint)
    if stored is not None:
        return stored
    if wants_split_calibration(chosen):
        return _measure_split(pieces, chosen, on_stage)
    if not wants_calibration(chosen):
        return None
    on_stage("calibrating: what does pruning cost here?")
    asked = recipe.calibration
    measured = calibrate.calibrate(
        _setting(pieces, chosen, rounds=asked.rounds, devices=asked.devices, budgets=asked.budgets)
    )
    calibrate.store(calibration_path(recipe, chosen), measured)
    return measured


def remembered(document: Mapping[str, Any]) -> Measured | None:
    """Return the measurement that a run's header holds, if it holds one."""
    if "split_calibration" in document:
        return calibrate_split.from_document(document["split_calibration"])
    stored = document.get("calibration")
    return None if stored is None else calibrate.from_document(stored)


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
    found: Measured | None = None
    if wants_split_calibration(chosen):
        found = calibrate_split.load(calibration_path(recipe, chosen))
    elif wants_calibration(chosen):
        found = calibrate.load(calibration_path(recipe, chosen))
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


def _measure_split(
    pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]
) -> SplitMeasured:
    on_stage("calibrating: what does compressing activations cost here?")
    asked = pieces.recipe.split
    measured = calibrate_split.calibrate_split(
        _setting(pieces, chosen, rounds=asked.rounds, devices=asked.devices),
        [section.spec() for section in asked.codecs], asked.cuts,
    )  # fmt: skip
    calibrate_split.store(calibration_path(pieces.recipe, chosen), measured)
    return measured


def _setting(
    pieces: Pieces, chosen: Chosen, *, rounds: int, devices: int, budgets: tuple[float, ...] = ()
) -> calibrate.Setting:
    return calibrate.Setting(
        base=pieces.assets.base, data=pieces.assets.data, problem=pieces.problem,
        work=chosen.method.work, engine=pieces.engine, rounds=rounds, devices=devices,
        budgets=budgets,
    )  # fmt: skip
