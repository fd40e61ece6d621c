"""What an attacker reads out of the activations of a run that split, measured once at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from airtune.model.images import Examples, Images
from airtune.model.state import GlobalState, current_base
from airtune.plan import CodecSpec, Ints
from airtune.records import read_run
from airtune.run.build import Pieces
from airtune.work.batches import join_examples
from airtune.work.leakage import Leakage, measure_leakage

_EXAMPLES = 200
"""Most examples of the test set; half are the attacker's own."""
_CUTS, _CODECS = 4, 3
"""Most cuts and, beside no compression, most codecs of the recipe's menu that are measured."""


def leakage_of(pieces: Pieces, folder: Path) -> Callable[[GlobalState], Mapping[str, Any]]:
    """Return what measures a run's leakage on its last state.

    Args:
        pieces: what the run is made of.
        folder: its records; a run in which no device ever cut the model has nothing to measure.
    """

    def measure(state: GlobalState) -> Mapping[str, Any]:
        used = np.unique(read_run(folder).devices["cut"])
        if not used.size or used.max() == 0:
            return {}
        own, unseen = _halves(pieces.assets.data.test)
        found = measure_leakage(
            current_base(pieces.assets.base, state),
            own,
            unseen,
            cuts=_cuts(pieces, used[used > 0]),
            codecs=_codecs(pieces),
            adapters=state.adapters,
            scale=pieces.engine.train.scale,
            tokens=pieces.problem.workload.tokens,
            seed=pieces.problem.seed,
        )
        return {"leakage": [_document(one) for one in found]}

    return measure


def _halves(test: Examples) -> tuple[Examples, Examples]:
    half = min(len(test), _EXAMPLES) // 2
    rows = np.arange(2 * half)
    if isinstance(test, Images):
        return test.take(rows[:half]), test.take(rows[half:])
    return join_examples([(test, rows[:half])]), join_examples([(test, rows[half:])])


def _cuts(pieces: Pieces, used: Ints) -> list[int]:
    """Return the cuts of the run and, up to four in all, others spread over the model."""
    chosen = [int(used[index]) for index in _spread(used.size, _CUTS)]
    every = range(1, pieces.problem.shape.blocks)
    others = [every[index] for index in _spread(len(every), _CUTS) if every[index] not in chosen]
    return sorted([*chosen, *others][:_CUTS])


def _codecs(pieces: Pieces) -> list[CodecSpec]:
    menu = [section.spec() for section in pieces.recipe.split.codecs]
    return list(
        dict.fromkeys([CodecSpec(), *(menu[index] for index in _spread(len(menu), _CODECS))])
    )


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` places among so many, evenly spread, the first and the last included."""
    return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def _document(found: Leakage) -> dict[str, Any]:
    return asdict(found) | {"codec": found.codec.label}
