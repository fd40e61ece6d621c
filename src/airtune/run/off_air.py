"""Engines of controls that send nothing: nobody takes part, or the server does all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.engine.base import Execution, Split
from airtune.engine.checks import Divide
from airtune.engine.local import LocalEngine
from airtune.model.state import GlobalState
from airtune.plan import Observation, RoundPlan


@dataclass(frozen=True, slots=True)
class OffAir:
    """What engines of controls have in common: the fleet is watched and judged, nothing is sent."""

    federated: LocalEngine
    """The fleet's own engine."""

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return that nobody exceeds a cap: nothing crosses a device's link."""
        return ("",) * len(plan.assignments)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again."""
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality on the devices' own shares."""
        return self.federated.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the fleet remembers."""
        return self.federated.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.federated.restore(arrays)

    def close(self) -> None:
        """Close the fleet's engine."""
        self.federated.close()


@dataclass(frozen=True, slots=True)
class UntunedEngine(OffAir):
    """Nobody is ever there."""

    def observe(self, round: int, time_s: float) -> Observation:
        """Return a round without devices."""
        seen = self.federated.observe(round, time_s)
        return replace(seen, available=np.zeros_like(seen.available))

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Execute what the fleet would; the loop never asks for it."""
        return self.federated.execute(plan, state, divide, start_s=start_s)


@dataclass(frozen=True, slots=True)
class PooledEngine(OffAir):
    """Trains at the server on everything and is judged as the fleet is."""

    server: LocalEngine
    """Of one device that holds all data."""

    def observe(self, round: int, time_s: float) -> Observation:
        """Return the server's own state."""
        return self.server.observe(round, time_s)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Train at the server."""
        done = self.server.execute(plan, state, divide, start_s=start_s)
        free = np.zeros(len(plan.assignments))
        moved = done.results.download_s + done.results.upload_s
        results = replace(
            done.results, download_s=free, upload_s=free, download_bytes=free, upload_bytes=free,
            finish_s=done.results.finish_s - moved,
        )  # fmt: skip
        return replace(done, results=results, end_s=done.start_s + float(results.compute_s.max()))

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the server remembers."""
        return self.server.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.server.restore(arrays)

    def close(self) -> None:
        """Close both engines."""
        self.server.close()
        self.federated.close()
