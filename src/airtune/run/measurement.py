"""What the knobs cost here: each table measured once, stored, and found again.

A table is stored under a key that needs no weights, so that the planner finds it too. The weights'
fingerprint is in the file: a run, which has the weights, uses it only where they are the same; a
planner, which loads none, takes it as it is. Nor does the key hold the seed: what a knob costs
belongs to the model and the data, and runs that differ in their draws share one measurement. Methods
that want the same table share it, too, and tables share the short runs that both are read off.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from filelock import FileLock

from airtune.calibrate import (
    CalibrationSetting,
    load,
    measure_codecs,
    measure_cut,
    measure_pruning,
    measure_ranks,
    measure_steps,
    measure_uploads,
    store,
)
from airtune.plan import TABLES, CodecSpec, Measurements, joined
from airtune.recipe import Recipe
from airtune.recipe.schema import CodecSection
from airtune.records import storage
from airtune.run.build import Pieces
from airtune.run.folders import resolved
from airtune.run.method import Chosen

_Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Way:
    """How one table is measured."""

    section: Literal["calibration", "split"]
    """Of the recipe; its `rounds` and `devices` are the size of the short runs."""
    settings: tuple[str, ...]
    """What else of the section it depends on."""
    runs: Callable[[Recipe], int]
    """Most short runs that it takes."""
    measure: Callable[[CalibrationSetting, Recipe], Measurements]


def _menu(sections: Sequence[CodecSection]) -> list[CodecSpec]:
    return list(dict.fromkeys(section.spec() for section in sections))


_WAYS = {
    "pruning": _Way(
        "calibration", ("budgets",), lambda recipe: 1 + len(recipe.calibration.budgets),
        lambda setting, recipe: measure_pruning(setting, recipe.calibration.budgets),
    ),
    "ranks": _Way("calibration", (), lambda recipe: 4, lambda setting, recipe: measure_ranks(setting)),
    "codecs": _Way(
        "split", ("codecs", "cuts"), lambda recipe: 1 + len(_menu(recipe.split.codecs)),
        lambda setting, recipe: measure_codecs(
            setting, _menu(recipe.split.codecs), recipe.split.cuts
        ),
    ),
    "cut": _Way(
        "split", ("cuts",), lambda recipe: 2,
        lambda setting, recipe: measure_cut(setting, recipe.split.cuts),
    ),
    "steps": _Way("calibration", (), lambda recipe: 4, lambda setting, recipe: measure_steps(setting)),
    "uploads": _Way(
        "calibration", ("uploads",), lambda recipe: 2 + len(_menu(recipe.calibration.uploads)),
        lambda setting, recipe: measure_uploads(setting, _menu(recipe.calibration.uploads)),
    ),
}  # fmt: skip


def tables_of(chosen: Chosen) -> tuple[str, ...]:
    """Return the names of the tables that a method wants."""
    return tuple(name for name in TABLES if name in chosen.method.wants)


def measure(
    pieces: Pieces,
    chosen: Chosen,
    on_stage: Callable[[str], None],
    on_round: _Told,
    *,
    tables: Collection[str] | None = None,
) -> Measurements | None:
    """Return what the knobs cost, measured now or before, of those that the method wants.

    What is interrupted goes on from its last short round; another run that asks for the same waits.

    Args:
        pieces: what is trained.
        chosen: the method.
        on_stage: told what begins.
        on_round: told how many rounds of short runs are done, and of how many.
        tables: names of tables instead of those that the method wants.

    Raises:
        CheckpointError: if what is stored is damaged.
        TrainingError: if the short runs give no usable update.
    """
    asked = tables_of(chosen) if tables is None else tuple(tables)
    if not asked:
        return None
    recipe, fingerprint = pieces.recipe, pieces.assets.base.fingerprint
    begun = _stored_at(recipe, chosen, "short-runs", f"-{fingerprint[:8]}-s{recipe.seed}.partial")
    with storage(begun):
        begun.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(begun.with_suffix(".lock")):
        missing = [name for name in asked if _loaded(recipe, chosen, name, fingerprint) is None]
        if missing:
            on_stage("calibrating")
        done, total = count(1), sum(_rounds(recipe, name) for name in missing)
        for name in missing:
            setting = _setting(pieces, chosen, name, begun, lambda: on_round(next(done), total))
            store(table_path(recipe, chosen, name), _WAYS[name].measure(setting, recipe))
        shutil.rmtree(begun, ignore_errors=True)
    return stored_measurements(recipe, chosen, fingerprint=fingerprint, tables=asked)


def stored_measurements(
    recipe: Recipe,
    chosen: Chosen,
    *,
    fingerprint: str | None = None,
    tables: Collection[str] | None = None,
) -> Measurements | None:
    """Return what earlier runs have measured of this setting, or None.

    Args:
        recipe: checked.
        chosen: its method.
        fingerprint: of the weights that are to be trained; None = whatever they are.
        tables: names of tables instead of those that the method wants.

    Raises:
        CheckpointError: if a file is damaged.
        MismatchError: if tables are of different weights and no fingerprint says which count.
    """
    asked = tables_of(chosen) if tables is None else tables
    found = [_loaded(recipe, chosen, name, fingerprint) for name in asked]
    parts = [part for part in found if part is not None]
    return joined(parts) if parts else None


def table_path(recipe: Recipe, chosen: Chosen, table: str) -> Path:
    """Return where a table for this model, data, training and local work is stored."""
    way = _WAYS[table]
    section = getattr(recipe, way.section).model_dump(mode="json")
    asked = {key: section[key] for key in ("rounds", "devices", *way.settings)}
    if table == "pruning":  # whose slices have heads and channels by what these cost
        asked["sensitivity"] = "sensitivity" in chosen.method.wants
    return _stored_at(recipe, chosen, table, ".json", **asked)


def _stored_at(recipe: Recipe, chosen: Chosen, name: str, ending: str, **asked: object) -> Path:
    values = resolved(recipe).plain()
    parts: dict[str, object] = {part: values[part] for part in ("model", "lora", "data")}
    parts["train"] = {key: value for key, value in values["train"].items() if key != "rounds"}
    parts["fleet"] = [values["fleet"]["source"], values["fleet"]["devices"]]
    for way in ("upload", "download"):
        if values[way]["kind"] != "identity":
            parts[way] = values[way]
    parts["work"] = asdict(chosen.method.work)
    parts["asked"] = asked
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(recipe.output) / "cache" / f"{name}-{key}{ending}"


def _loaded(
    recipe: Recipe, chosen: Chosen, table: str, fingerprint: str | None
) -> Measurements | None:
    found = load(table_path(recipe, chosen, table))
    is_other = found is not None and fingerprint is not None and found.fingerprint != fingerprint
    return None if is_other else found


def _rounds(recipe: Recipe, table: str) -> int:
    """Return the rounds of a table's short runs, all together."""
    way = _WAYS[table]
    return int(way.runs(recipe) * getattr(recipe, way.section).rounds)


def _setting(
    pieces: Pieces, chosen: Chosen, table: str, begun: Path, on_round: Callable[[], None]
) -> CalibrationSetting:
    asked = getattr(pieces.recipe, _WAYS[table].section)
    return CalibrationSetting(
        base=pieces.assets.base,
        data=pieces.assets.data,
        problem=pieces.problem,
        work=chosen.method.work,
        engine=pieces.engine,
        rounds=asked.rounds,
        devices=asked.devices,
        folder=begun,
        on_round=on_round,
    )
