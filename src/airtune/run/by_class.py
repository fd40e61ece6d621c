"""How good a classifier is for each class, measured once at a run's end on its test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from airtune.model.server import evaluated
from airtune.model.state import GlobalState
from airtune.plan import WorkSpec
from airtune.run.build import Pieces
from airtune.work.batches import join_examples
from airtune.work.evaluate import score
from airtune.work.network import tuned_network

MOST_ROWS = 2000
"""Test rows that are asked, evenly over a larger set."""


def by_class_of(pieces: Pieces, work: WorkSpec) -> Callable[[GlobalState], Mapping[str, Any]]:
    """Return what measures recall and precision of each class on a run's last state.

    Args:
        pieces: what the run is made of.
        work: of its method.
    """

    def measure(state: GlobalState) -> Mapping[str, Any]:
        test, labels = pieces.assets.data.test, pieces.assets.data.labels
        if not labels or not len(test):
            return {}
        chosen = np.linspace(0, len(test) - 1, min(len(test), MOST_ROWS)).astype(np.int64)
        part = join_examples([(test, chosen)])
        tuned = tuned_network(
            pieces.assets.base, evaluated(state), scale=pieces.engine.train.scale, work=work
        )
        said = score(tuned.network, part, chunk=0).answer
        right = np.asarray(part.targets)
        return {
            "test_by_class": [_class(name, right == i, said == i) for i, name in enumerate(labels)]
        }

    return measure


def _class(name: str, is_it: Any, is_said: Any) -> dict[str, Any]:
    """Return a class's rows and shares; None where there is nothing to take a share of."""
    both, rows, said = (int(column.sum()) for column in (is_it & is_said, is_it, is_said))
    return {
        "class": name,
        "rows": rows,
        "recall": both / rows if rows else None,
        "precision": both / said if said else None,
    }
