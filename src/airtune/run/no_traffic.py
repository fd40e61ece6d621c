"""The engine of controls that send nothing: nobody takes part, or the server does all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.engine.base import Engine, Execution, Split
from airtune.engine.checks import Divide
from airtune.model.state import GlobalState
from airtune.plan import Observation, RoundPlan


@dataclass(frozen=True, slots=True)
class NoTraffic:
    """Trains on one engine and is judged on another, as the fleet is; nothing crosses the air."""

    trains: Engine
    """`untuned`: the fleet's own, on which nobody is there; `pooled`: of a fleet of one, the server."""
    judges: Engine
    """The fleet's own, whose devices hold the data on which models are judged."""
    is_empty: bool = False
    """Nobody is ever there."""

    def observe(self, round: int, time_s: float) -> Observation:
        """Return who is there."""
        seen = self.trains.observe(round, time_s)
        if self.is_empty:
            return replace(seen, available=np.zeros_like(seen.available))
        return seen

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Train, and count no traffic."""
        done = self.trains.execute(plan, state, divide, start_s=start_s)
        free = np.zeros(len(plan.assignments))
        moved = done.results.download_s + done.results.upload_s
        results = replace(
            done.results,
            download_s=free,
            upload_s=free,
            download_bytes=free,
            upload_bytes=free,
            finish_s=done.results.finish_s - moved,
        )
        return replace(done, results=results, end_s=done.start_s + float(results.compute_s.max()))

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return that nobody exceeds a cap: nothing crosses a device's link."""
        return ("",) * len(plan.assignments)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again."""
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality on the devices' own shares."""
        return self.judges.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what those that train remember."""
        return self.trains.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.trains.restore(arrays)

    def close(self) -> None:
        """Close both engines."""
        self.trains.close()
        self.judges.close()
