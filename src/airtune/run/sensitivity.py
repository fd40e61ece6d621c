"""What heads and channels cost here: measured once, stored, and found again.

Stored as the calibrations are (see `measurement`): under a key that needs no weights, with the
weights' fingerprint in the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from airtune.calibrate import SensitivityProbe, chosen_devices, measure_sensitivity
from airtune.errors import CheckpointError
from airtune.plan import Sensitivity
from airtune.recipe import Recipe
from airtune.records import write_atomically
from airtune.run.build import Pieces
from airtune.run.folders import resolved
from airtune.run.method import Chosen

DEVICES = 4
"""Devices whose data it is measured on."""


def with_sensitivity(pieces: Pieces, chosen: Chosen, on_stage: Callable[[str], None]) -> Pieces:
    """Return the pieces with what heads and channels cost, where the method prunes by it.

    Raises:
        CheckpointError: if what is stored is damaged.
        ModelError: if the model cannot be measured on these data.
    """
    if "sensitivity" not in chosen.method.wants:
        return pieces
    recipe, base = pieces.recipe, pieces.assets.base
    found = stored_sensitivity(recipe, chosen, fingerprint=base.fingerprint)
    if found is None:
        on_stage("measuring what heads and channels cost")
        data = chosen_devices(pieces.assets.data, DEVICES)
        found = measure_sensitivity(
            SensitivityProbe(
                base, data, chosen.method.work, pieces.problem.workload.batch, recipe.seed
            )
        )
        document = {"fingerprint": base.fingerprint, **asdict(found)}
        write_atomically(_path(recipe, chosen), json.dumps(document, indent=1))
    return known_sensitivity(pieces, found)


def known_sensitivity(pieces: Pieces, sensitivity: Sensitivity | None) -> Pieces:
    """Return the pieces with a sensitivity in their problem."""
    return replace(pieces, problem=replace(pieces.problem, sensitivity=sensitivity))


def remembered_sensitivity(header: Mapping[str, Any]) -> Sensitivity | None:
    """Return what a run's header holds of it.

    Raises:
        CheckpointError: if it is damaged.
    """
    return None if header.get("sensitivity") is None else _read(header["sensitivity"], "the header")


def stored_sensitivity(
    recipe: Recipe, chosen: Chosen, *, fingerprint: str | None = None
) -> Sensitivity | None:
    """Return what an earlier run has measured of this setting, or None.

    Args:
        recipe: checked.
        chosen: its method.
        fingerprint: of the weights that are to be trained; None = whatever they are.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = _path(recipe, chosen)
    if "sensitivity" not in chosen.method.wants or not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        is_other = fingerprint is not None and document["fingerprint"] != fingerprint
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(str(path), error) from error
    return None if is_other else _read(document, str(path))


def _read(document: Mapping[str, Any], where: str) -> Sensitivity:
    try:
        curves = {
            name: tuple(map(float, document[name]))
            for name in ("heads", "heads_cost", "ffn", "ffn_cost")
        }
        return Sensitivity(**curves, source=str(document["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the stored sensitivity in {where} is damaged: {error}; remove it, it is measured again"
    )


def _path(recipe: Recipe, chosen: Chosen) -> Path:
    values = resolved(recipe).plain()
    work = chosen.method.work
    parts = {
        "model": values["model"],
        "data": values["data"],
        "batch": recipe.train.per_device_train_batch_size,
        "fleet": [values["fleet"]["source"], values["fleet"]["devices"]],
        "work": [work.importance, work.mend, work.cumulative],
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(recipe.output) / "cache" / f"sensitivity-{key}.json"
