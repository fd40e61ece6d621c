"""What pruning or compression costs here: measured once, stored, and found again.

A measurement is stored under a key that needs no weights, so that the planner finds it too. The
weights' fingerprint is in the file: a run, which has the weights, uses it only where they are the
same; a planner, which loads none, takes it as it is. Nor does the key hold the seed: what pruning
costs belongs to the model and the data, and runs that differ in their draws share one measurement.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

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
from airtune.recipe.schema import CalibrationSection, SplitSection
from airtune.records import storage
from airtune.run.build import Pieces
from airtune.run.method import Chosen, wants_calibration, wants_split_calibration
from airtune.run.places import resolved

_Told = Callable[[int, int], None]
_Way = Callable[[Pieces, Chosen, Path, _Told], Measured]


def informed(problem: Problem, measured: Measured | None) -> Problem:
    """Return the problem with what was measured, and nothing else of the kind."""
    found = None if measured is None else measured.calibration
    return replace(
        problem,
        calibration=found if isinstance(found, Calibration) else None,
        split=found if isinstance(found, SplitCalibration) else None,
    )


def measure(
    pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None],
    on_round: Callable[[int, int], None],
) -> Measured | None:  # fmt: skip
    """Return what pruning or compression costs, measured now or before, where it is asked for.

    What is interrupted goes on from its last short round; another run that asks for the same waits.

    Args:
        pieces: what is trained.
        chosen: the method.
        on_stage: told what begins.
        on_round: told how many rounds of short runs are done, and of how many.

    Raises:
        CheckpointError: if what is stored is damaged.
    """
    recipe, measured_by = pieces.recipe, _way(chosen)
    if measured_by is None:
        return None
    path, fingerprint = calibration_path(recipe, chosen), pieces.assets.base.fingerprint
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        stored = stored_measurement(recipe, chosen, fingerprint=fingerprint)
        if stored is not None:
            return stored
        begun = path.with_name(f"{path.stem}-{fingerprint[:8]}-s{recipe.seed}.partial")
        on_stage("calibrating")
        measured = measured_by(pieces, chosen, begun, on_round)
        store(path, measured)
        shutil.rmtree(begun)
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
    values = resolved(recipe).plain()
    parts = {part: values[part] for part in ("model", "lora", "data", section)}
    parts["train"] = {key: value for key, value in values["train"].items() if key != "rounds"}
    parts["fleet"] = [values["fleet"]["source"], values["fleet"]["devices"]]
    parts["work"] = asdict(chosen.method.work)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(recipe.output) / "cache" / f"{name}-{key}.json"


def _way(chosen: Chosen) -> _Way | None:
    """Return how what a method wants to know is measured; None = it wants to know nothing."""
    if wants_split_calibration(chosen):
        return _measure_codecs
    return _measure_pruning if wants_calibration(chosen) else None


def _measure_pruning(pieces: Pieces, chosen: Chosen, begun: Path, told: _Told) -> Measured:
    asked = pieces.recipe.calibration
    setting = _setting(pieces, chosen, asked, begun, told, runs=1 + len(asked.budgets))
    return calibrate_pruning(setting, asked.budgets)


def _measure_codecs(pieces: Pieces, chosen: Chosen, begun: Path, told: _Told) -> Measured:
    asked = pieces.recipe.split
    codecs = dict.fromkeys(section.spec() for section in asked.codecs)
    setting = _setting(pieces, chosen, asked, begun, told, runs=1 + len(codecs))
    return calibrate_codecs(setting, list(codecs), asked.cuts)


def _setting(
    pieces: Pieces, chosen: Chosen, asked: CalibrationSection | SplitSection, begun: Path,
    told: _Told, *, runs: int,
) -> Setting:  # fmt: skip
    done = count(1)
    return Setting(
        base=pieces.assets.base, data=pieces.assets.data, problem=pieces.problem,
        work=chosen.method.work, engine=pieces.engine, rounds=asked.rounds, devices=asked.devices,
        folder=begun, on_round=lambda: told(next(done), runs * asked.rounds),
    )  # fmt: skip
