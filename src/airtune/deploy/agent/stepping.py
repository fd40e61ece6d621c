"""How a device times its own steps and chooses its work by its own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from airtune.cost import peak_memory, train_flops, upload_bytes
from airtune.engine.pacing import of_arm
from airtune.plan import Assignment, Assignments, Floats, ModelShape, Pace, Workload
from airtune.plan.pace import settle
from airtune.units import BITS_PER_BYTE


class OwnSpeed:
    """Seconds a FLOP, as this device found them in its last round or in one step tried before."""

    def __init__(self, shape: ModelShape, workload: Workload) -> None:
        """Know nothing yet."""
        self._shape, self._workload = shape, workload
        self._unit_s: float | None = None

    def learn(self, row: Assignment, seconds: float) -> None:
        """Take what a round of work took."""
        self._unit_s = seconds / float(train_flops(self._shape, self._workload, rows_of([row]))[0])

    def settle(
        self,
        row: Assignment,
        pace: Pace,
        *,
        way_s: float,
        up_bps: float | None,
        memory_bytes: float | None,
        try_step: Callable[[Assignment], object],
    ) -> tuple[Assignment, int]:
        """Return what this device does, and the number of its arm.

        Args:
            row: what it was told.
            pace: by when to be done, and the arms.
            way_s: seconds that have passed since the round began.
            up_bps: rate of its upload; None = not known, and taken to be no time.
            memory_bytes: that it may use; None = not known.
            try_step: does one step of a row, where the speed is not known; its time is part of the
                round's.
        """
        began = time.perf_counter()
        if self._unit_s is None:
            once = replace(row, local_steps=1)
            try_step(once)
            self.learn(once, time.perf_counter() - began)
        arms = [of_arm(row, pace, arm, 1) for arm in range(max(len(pace.arms), 1))]
        rows = rows_of(arms)
        flops = train_flops(self._shape, self._workload, rows)
        workload = replace(self._workload, upload=self._workload.upload_of(row))
        sent = upload_bytes(self._shape, workload, rows)
        send_s: Floats = np.zeros(len(arms)) if not up_bps else sent * BITS_PER_BYTE / up_bps
        allowed = np.ones((1, len(arms)), np.bool_)
        if memory_bytes is not None:
            peak_bytes = peak_memory(self._shape, self._workload, rows).total
            allowed = (peak_bytes <= memory_bytes)[None]
        found = settle(
            pace,
            start_s=np.array([way_s + time.perf_counter() - began]),
            step_s=((self._unit_s or 0.0) * flops)[None],
            send_s=send_s[None],
            allowed=allowed,
        )
        arm = int(found.arm[0])
        return of_arm(row, pace, arm, int(found.steps[0])), arm


def rows_of(rows: list[Assignment]) -> Assignments:
    """Return rows of one device as columns; their numbers stand for nothing."""
    count = len(rows)
    return Assignments(
        device=np.arange(count),
        prune_heads=np.array([row.prune_heads for row in rows]),
        prune_ffn=np.array([row.prune_ffn for row in rows]),
        rank=np.array([row.rank for row in rows]),
        share=np.ones(count),
        local_steps=np.array([row.local_steps for row in rows]),
        cut=np.array([row.cut for row in rows], np.int64),
        codec_index=np.zeros(count, np.int64),
    )
