"""The header of a run's records: what was run, on what, in plain values."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from airtune.plan import Measurements, Method
from airtune.run.build import Pieces
from airtune.run.method import Chosen
from airtune.run.protection import epsilon_of


def header(pieces: Pieces, chosen: Chosen, measured: Measurements | None) -> dict[str, Any]:
    """Return the header.

    Args:
        pieces: what the run is made of.
        chosen: the method as built, and how it is called in reports.
        measured: what the knobs cost, or None where the method wants none of it.
    """
    method = chosen.method
    recipe, assets, problem = pieces.recipe, pieces.assets, pieces.problem
    document: dict[str, Any] = {
        "name": recipe.label,
        "seed": recipe.seed,
        "recipe_hash": recipe.digest(),
        "identity": identity(pieces),
        "method": {
            "name": chosen.label,
            "registered": method.name,
            "settings": settings_of(method),
            "summary": chosen.summary,
            "reconstructed": chosen.reconstructed,
            "aggregate": method.aggregate.rule,
            "importance": method.work.importance,
        },
        "model": {
            "source": recipe.model.source,
            "parameters": problem.shape.parameters,
            "fingerprint": assets.base.fingerprint,
            "shape": asdict(problem.shape),
            "dtype": recipe.model.dtype,
            "device": str(assets.base.device),
        },
        "fleet": {
            "name": assets.fleet.name,
            "devices": len(assets.fleet),
            "assumptions": [*assets.fleet.assumptions, *_assumptions(pieces)],
            "links": [_link(pieces, index) for index in range(len(assets.fleet.specs))],
        },
        "data": {
            "source": recipe.data.source,
            "task": recipe.data.task,
            "partition": recipe.data.partition,
            "labels": list(assets.data.labels),
            "fingerprint": assets.data.fingerprint,
            **assets.data.counts,
            "ledger": assets.data.ledger.as_document(),
        },
        "workload": asdict(problem.workload),
        "target": None if recipe.target is None else recipe.target.model_dump(),
        "rounds": recipe.train.rounds,
        "threads": pieces.engine.threads,
    }
    if recipe.protection.model_dump(exclude_defaults=True):
        asked = recipe.protection.model_dump()
        document["protection"] = {**asked, "epsilon": epsilon_of(recipe)}
    if problem.sensitivity is not None:
        document["sensitivity"] = asdict(problem.sensitivity)
    if measured is not None:
        document["measurements"] = measured.as_document()
    return document


def settings_of(method: Method) -> dict[str, Any]:
    """Return the settings of a method's decider in plain values; {} where it has none."""
    decider: object = method.decider
    decider = getattr(decider, "inner", decider)
    if not is_dataclass(decider) or isinstance(decider, type):
        return {}
    found = {entry.name: getattr(decider, entry.name) for entry in fields(decider) if entry.init}
    return {name: value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _assumptions(pieces: Pieces) -> list[str]:
    workload = pieces.problem.workload
    return [
        f"the clock counts the FLOPs and bytes of the trained model, with every sequence at "
        f"{workload.tokens} tokens",
        "the clock excludes evaluation, aggregation and the first transfer of the base model, for "
        "every method",
    ]


def _link(pieces: Pieces, index: int) -> dict[str, Any]:
    spec = pieces.assets.fleet.specs[index]
    return {
        "name": spec.name,
        "kind": spec.kind,
        "rate": spec.rate.kind,
        "up_bandwidth_hz": spec.up_bandwidth_hz,
        "devices": int((pieces.assets.fleet.link == index).sum()),
    }


def identity(pieces: Pieces) -> str:
    """Return a hash of recipe, data and model: only such a run may use a checkpoint."""
    parts = [
        pieces.recipe.digest(),
        pieces.assets.base.fingerprint,
        pieces.assets.data.fingerprint,
        repr(sorted(pieces.assets.data.counts.items())),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
