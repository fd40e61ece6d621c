"""Devices that are cut, in this process: their steps with the server, and what that is worth.

`split` trains them and counts what really crosses; `split_timing` turns it into seconds. What
both ends of a cut remember of samples lasts from round to round and goes into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost.split import SplitCost, split_cost
from airtune.data.federated import FederatedData
from airtune.engine.air import Air
from airtune.engine.clock import Process
from airtune.engine.split_timing import Crossings, SplitTiming, split_round_time
from airtune.engine.timing import refusals
from airtune.engine.uplink import Sent
from airtune.fleet.fleet import Fleet
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.state import GlobalState
from airtune.plan import Bools, Floats, Ints, Problem, RoundPlan
from airtune.split import CutMemory, SplitJob, SplitResult, split_round
from airtune.units import format_bytes
from airtune.work.jobs import Outcome, TrainSettings

RECORDED_SLOTS = 16
"""Slots whose shares a record holds."""


@dataclass(frozen=True, slots=True)
class CutRound:
    """What came of the cut rows of a plan; columns over these m rows."""

    places: Ints
    """Their rows in the whole plan."""
    plan: RoundPlan
    """Of them alone."""
    cost: SplitCost
    faults: list[str]
    columns: Ints
    """Rows, within these m, that trained; in the order of the columns of `result`."""
    result: SplitResult | None
    """None where nobody could."""
    lost: Bools
    outcomes: Mapping[int, Outcome]
    """By row of the whole plan; without those that were lost."""
    is_short: bool = False
    """Some stopped before their last step, as the deadline would have it; nobody stops any more."""

    def laid_out(self, figures: Floats) -> Floats:
        """Return a ledger's table (steps, trained) over all m rows, zero for the others."""
        whole = np.zeros((len(figures), len(self.places)))
        whole[:, self.columns] = figures
        return whole


class Splitter:
    """Trains and times the devices of a run that are cut."""

    def __init__(
        self,
        problem: Problem,
        fleet: Fleet,
        base: BaseModel,
        data: FederatedData,
        *,
        settings: TrainSettings,
    ) -> None:
        """Begin with nothing remembered; `problem.work` says how the server serves."""
        self._problem, self._fleet, self._base, self._data = problem, fleet.true(), base, data
        self._settings = settings
        self._memory = self._before = CutMemory()

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what both ends of the cuts remember, as arrays."""
        return self._memory.arrays()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of cuts.
        """
        self._memory = CutMemory.from_arrays(arrays)

    def train(self, plan: RoundPlan, state: GlobalState, dropped: Bools) -> CutRound:
        """Have the cut rows of a plan train through their cuts, from what was remembered before.

        Args:
            plan: n devices, some of them cut.
            state: as broadcast.
            dropped: devices that will vanish, between forward and backward of some step, (n,).
        """
        places = np.flatnonzero(plan.assignments.cut > 0)
        mine = rows_of(plan, places)
        cost = split_cost(self._problem, mine.assignments)
        faults = self._refusals(mine, cost)
        columns = np.array([row for row, fault in enumerate(faults) if not fault], np.int64)
        result = None
        if len(columns):
            self._before = self._memory.copy()
            result = self._round(mine, state, columns, dropped[places])
        lost = np.zeros(len(places), np.bool_)
        outcomes: dict[int, Outcome] = {}
        if result is not None:
            lost[columns[list(result.ledger.lost_in)]] = True
            outcomes = {
                int(places[row]): outcome
                for row, outcome in zip(columns, result.outcomes, strict=True)
                if not lost[row]
            }
        return CutRound(places, mine, cost, faults, columns, result, lost, outcomes)

    def shortened(
        self,
        done: CutRound,
        stopped_after: Ints,
        plan: RoundPlan,
        state: GlobalState,
        dropped: Bools,
    ) -> tuple[CutRound, RoundPlan]:
        """Have a round trained anew in which devices stop where the deadline has them stop.

        Args:
            done: with all steps.
            stopped_after: of the cut rows, the steps after which each stops; 0 = it does not, (m,).
            plan: the whole one.
            state: as broadcast.
            dropped: as for `train`.

        Returns:
            The round, and the plan as it was done.
        """
        told = plan.assignments.local_steps[done.places]
        steps = np.where(stopped_after > 0, stopped_after, told)
        plan = with_steps(plan, done.places, steps)
        self._memory = self._before
        again = self.train(plan, state, dropped)
        outcomes = dict(again.outcomes)
        for index, part in zip(again.places.tolist(), (steps / told).tolist(), strict=True):
            if index in outcomes and (update := outcomes[index].update) is not None:
                outcomes[index] = replace(outcomes[index], update=replace(update, part=part))
        return replace(again, outcomes=outcomes, is_short=True), plan

    def time(self, done: CutRound, air: Air, sent: Sent) -> Process[SplitTiming]:
        """Let what they did pass on the virtual clock.

        Args:
            done: from `train`.
            air: of the whole plan.
            sent: what the uplink made of the updates.
        """
        able = np.isin(np.arange(len(done.places)), done.columns)
        result, steps = done.result, int(done.plan.assignments.local_steps.max())
        nothing = np.zeros((steps, len(done.places)))
        refused = able & np.array(
            [
                index in done.outcomes and done.outcomes[index].update is None
                for index in done.places.tolist()
            ]
        )
        crossed = Crossings(
            up_bytes=nothing if result is None else done.laid_out(result.ledger.up_bytes),
            down_bytes=nothing if result is None else done.laid_out(result.ledger.down_bytes),
            computed=nothing if result is None else done.laid_out(result.ledger.computed),
            adapter_up_bytes=sent.size_bytes[done.places],
            adapter_down_bytes=done.cost.adapter_down_bytes,
            lost=done.lost,
            refused=refused,
            order=np.arange(0) if result is None else done.columns[list(result.order)],
        )
        return split_round_time(
            self._problem,
            self._fleet,
            done.plan,
            air.part(done.places),
            cost=done.cost,
            crossed=crossed,
            faults=done.faults,
            may_stop=not done.is_short,
        )

    def _round(
        self, plan: RoundPlan, state: GlobalState, columns: Ints, dropped: Bools
    ) -> SplitResult:
        rows = [plan.assignments.row(int(column)) for column in columns]
        draws = generator(self._problem.seed, "dropout step", plan.round).random(len(self._fleet))
        jobs = [
            SplitJob(
                row.device,
                row,
                self._data.devices[row.device].train,
                float(self._problem.devices.weight[row.device]),
            )
            for row in rows
        ]
        drops = {
            row.device: int(draws[row.device] * row.local_steps)
            for row, column in zip(rows, columns, strict=True)
            if dropped[column]
        }
        return split_round(
            self._base,
            state,
            jobs,
            settings=self._settings.at(plan.learning_rate),
            work=self._problem.work,
            workload=self._problem.workload,
            seed=self._problem.seed,
            round=plan.round,
            memory=self._memory,
            drops=drops,
        )

    def _refusals(self, plan: RoundPlan, cost: SplitCost) -> list[str]:
        """Return why a device does not even begin; the server's memory is a reason for all."""
        faults = refusals(self._problem, self._fleet, plan, cost.device_peak_bytes)
        limit = self._problem.server_memory_bytes
        if cost.server_peak_bytes <= limit:
            return faults
        server = (
            f"the server is out of memory: needs {format_bytes(cost.server_peak_bytes)} for "
            f"{len(faults)} devices, has {format_bytes(limit)}"
        )
        return [fault or server for fault in faults]


def rows_of(plan: RoundPlan, places: Ints) -> RoundPlan:
    """Return a plan of some of its rows."""
    return replace(
        plan,
        reasons=tuple(plan.reasons[index] for index in places),
        assignments=plan.assignments.take(places),
    )


def with_steps(plan: RoundPlan, places: Ints, steps: Ints) -> RoundPlan:
    """Return a plan in which some rows take other numbers of steps, and their reasons say so."""
    told, reasons = plan.assignments.local_steps.copy(), list(plan.reasons)
    for index, count in zip(places.tolist(), steps.tolist(), strict=True):
        if count != told[index]:
            reasons[index] += f"; did {count} of {told[index]} steps by the deadline"
    told[places] = steps
    return replace(
        plan, reasons=tuple(reasons), assignments=replace(plan.assignments, local_steps=told)
    )


def split_record(
    done: CutRound, timed: SplitTiming, air: Air, sent: Sent, *, steps: int
) -> dict[str, object]:
    """Return what a record holds of a split round, in plain values.

    Bytes are totals of the round, of activations with what goes beside them; seconds are means over
    its steps. The lists of `first_step` follow its `device`, with NaN for who did not come so far;
    the server's are the spans in which it computed, one where it serves all at once. Shares are
    those of all devices of the plan, in the slots in which they were used.
    """
    first = timed.first
    record: dict[str, object] = {
        "steps": steps,
        "step_s": _mean(timed.step_s),
        "server_s": _mean(timed.server_s),
        "adapter_up_bytes": float(sent.size_bytes[done.places][done.columns].sum()),
        "adapter_down_bytes": float(done.cost.adapter_down_bytes[done.columns].sum()),
        "server_peak_bytes": done.cost.server_peak_bytes,
        "first_step": {
            "device": done.plan.assignments.device.tolist(),
            "forward_s": first.forward_s.tolist(),
            "upload_s": first.upload_s.tolist(),
            "download_s": first.download_s.tolist(),
            "backward_s": first.backward_s.tolist(),
            "server_start_s": [start_s for start_s, _ in first.server],
            "server_end_s": [end_s for _, end_s in first.server],
        },
        "slots": [
            {"start_s": slot * (air.slot_s or 0.0), "share": air.shares[slot].tolist()}
            for slot in sorted(air.shares)[:RECORDED_SLOTS]
        ],
    }
    if done.result is not None:
        ledger = done.result.ledger
        record |= {
            "activation_up_bytes": float(ledger.up_bytes.sum()),
            "beside_up_bytes": float(ledger.beside_bytes.sum()),
            "gradient_down_bytes": float(ledger.down_bytes.sum()),
            "bound_up_bytes": float(ledger.up_bound_bytes.sum()),
            "bound_down_bytes": float(ledger.down_bound_bytes.sum()),
            "skipped_steps": done.result.skipped,
        }
    return record


def _mean(seconds: Floats) -> float:
    taken = seconds[seconds > 0]
    return float(taken.mean()) if taken.size else 0.0
