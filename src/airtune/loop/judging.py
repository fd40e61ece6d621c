"""How good the model is while it is trained: who judges it when, the best so far, the target.

A model is judged on the devices' held-out data after a round. Over real devices that rides with the
next round's tasks: a device judges the model that it is given before it trains on it, so nothing is
sent twice and nobody waits for an extra answer; only the last model is judged by tasks of their own.
Such a judgement stands in the record of the round whose tasks it came with, as `validation_before`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airtune.errors import RecipeError
from airtune.records import METRICS, main_metric

Progress = dict[str, Any]
"""What the loop remembers from round to round: plain values, saved with the checkpoint."""


@dataclass(frozen=True, slots=True)
class Target:
    """The quality that a run is timed to."""

    metric: Literal["loss", "perplexity", "accuracy"]
    value: float
    window: int = 1
    """Evaluations that are averaged before they are compared."""

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "perplexity", "accuracy"):
            raise RecipeError(
                f"target.metric must be loss, perplexity or accuracy, got {self.metric!r}"
            )
        if not math.isfinite(self.value) or self.window < 1:
            raise RecipeError(
                f"target.value must be finite and target.window at least 1, got {self.value} "
                f"and {self.window}"
            )

    def is_reached(self, history: list[float]) -> bool:
        """Return whether the mean of the last `window` evaluations is good enough.

        >>> Target("loss", 2.0, window=2).is_reached([9.0, 2.5, 1.5])
        True
        """
        if len(history) < self.window:
            return False
        mean = sum(history[-self.window :]) / self.window
        return METRICS[self.metric].meets(mean, self.value)


def first_progress(*, is_judged: bool) -> Progress:
    """Return what is known before the first round.

    Args:
        is_judged: the untuned model is judged before the first round, or not at all.
    """
    return {
        "history": [],
        "best": None,
        "reached": None,
        "empty": 0,
        "initial": None,
        "judged": is_judged,
    }


def is_due(rounds: int, every: int) -> bool:
    """Return whether the model after so many rounds is judged; 0 = the untuned one.

    >>> [rounds for rounds in range(7) if is_due(rounds, 3)], is_due(0, 0)
    ([0, 3, 6], False)
    """
    return every > 0 and rounds % every == 0


def judged(
    progress: Progress,
    validation: Mapping[str, float],
    target: Target | None,
    *,
    rounds: int,
    time_s: float,
) -> Progress:
    """Return the progress with a judgement of the model after so many rounds.

    Args:
        progress: before; not changed.
        validation: of the model.
        target: of the run.
        rounds: after which the model was as it was judged; 0 = the untuned one.
        time_s: when it was.

    Raises:
        RecipeError: if the target's metric is not measured on this task.
    """
    if not rounds:
        return {**progress, "initial": dict(validation)}
    here = {"round": rounds - 1, "time_s": time_s, **validation}
    found = {**progress, "last": here}
    metric = main_metric(validation, None if target is None else target.metric)
    best = progress["best"]
    if best is None or metric.is_better(metric.of(validation), metric.of(best)):
        found["best"] = here
    if target is not None:
        if target.metric not in validation:
            raise RecipeError(
                f"target.metric {target.metric!r} is not measured on this task; "
                f"use one of {', '.join(sorted(validation))}"
            )
        found["history"] = [*progress["history"], validation[target.metric]][-target.window :]
        if progress["reached"] is None and target.is_reached(found["history"]):
            found["reached"] = here
    return found
