"""A round on the virtual clock: the devices' work is real, its seconds come from the cost model.

What a round costs in seconds, bytes and joules comes from the cost model and the links (`timing`).
The same seed gives the same run, bit for bit, wherever the workers are, as long as the number of
threads is the same. Wall time plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from airtune.cost import broadcast_bytes, most_bytes, peak_memory, predict
from airtune.data.federated import FederatedData
from airtune.engine.air import Air
from airtune.engine.base import EngineSettings, Execution, ExpectedRound, Setup, Split
from airtune.engine.checks import Divide
from airtune.engine.clock import alone, in_step
from airtune.engine.forecast import Forecast, seen_in
from airtune.engine.gathered import faults_of, in_time, results_of, updates_of
from airtune.engine.limits import RoundLimits, with_data
from airtune.engine.measuring import lacks_scores, measured, most_measuring_bytes
from airtune.engine.pacing import let_settle
from airtune.engine.split_timing import SplitTiming
from airtune.engine.splitting import CutRound, rows_of, split_record
from airtune.engine.timing import Timing, joined, refusals, time_round, whole_round
from airtune.engine.uplink import Sent
from airtune.engine.workers import LocalWorkers, Workers, broadcast, restore, snapshot
from airtune.fleet.fleet import Fleet
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.state import GlobalState
from airtune.plan import (
    Bools,
    Floats,
    LinkState,
    Need,
    Observation,
    Problem,
    Results,
    RoundPlan,
    WorkSpec,
    mask_observation,
)
from airtune.wire.traffic_budget import TrafficBudget
from airtune.work.jobs import Outcome


class VirtualEngine:
    """Workers on the virtual clock; see `airtune.engine.base.Engine`."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Workers,
        *,
        needs: frozenset[Need] = frozenset(),
        settings: EngineSettings,
    ) -> None:
        """Begin with nothing used of the month.

        Args:
            fleet: devices and links.
            workers: who does the work.
            needs: what the method asks to know; the rest is hidden from it.
            settings: participation, dropouts and the like.
        """
        self._fleet, self._true = fleet, fleet.true()
        self._workers, self._needs = workers, needs
        self._forecast = Forecast(len(fleet))
        self._learns = settings.learns and fleet.truth is not None
        self._problem, self._settings = workers.problem, settings
        self._limits = RoundLimits(
            self._problem,
            TrafficBudget(self._problem.device_bytes_per_month, len(fleet)),
            participation=settings.participation,
        )

    def close(self) -> None:
        """Close the workers."""
        self._workers.close()

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what devices remember from round to round, and what they used of the month."""
        return snapshot(self._workers, self._limits, self._forecast if self._learns else None)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        restore(self._workers, self._limits, self._forecast, arrays)

    def _flops_per_s(self, round: int) -> Floats:
        """Return how fast each device is taken to be."""
        return self._forecast.flops_per_s(self._fleet, round)

    def _links(self, round: int, time_s: float) -> LinkState:
        """Return the links as they are taken to be at the start of a round."""
        return self._forecast.links(self._fleet, round, time_s)

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know: links at the start, speeds, and who is asked."""
        self._limits.traffic_budget.begin_round(time_s)
        links = self._links(round, time_s)
        there = with_data(links.available, self._problem.devices.weight)
        observation = Observation(
            round=round,
            time_s=time_s,
            links=links,
            available=self._limits.asked(round, there),
            flops_per_s=self._flops_per_s(round),
        )
        return mask_observation(observation, self._needs)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Let the devices train and the virtual clock run.

        Raises:
            MethodError: if the plan gives out more of a link than there is, or asks for work that
                does not exist.
        """
        setup = Setup()
        if lacks_scores(self._workers, plan, state):
            state, setup = measured(self._workers, self._true, plan, state, start_s=start_s)
        begin_s = start_s + setup.duration_s
        sent = broadcast(self._problem, plan, state)
        self._workers.begin_round(sent)
        if sent is not None:
            state = sent.state
        size_bytes = None if sent is None else float(sent.size_bytes)
        if plan.pace is not None:
            plan, size_bytes = self._settled(plan, size_bytes, begin_s)
        predicted = predict(
            self._problem,
            plan.assignments,
            links=self._links(plan.round, begin_s),
            flops_per_s=self._flops_per_s(plan.round),
        )
        record = None
        if np.any(plan.assignments.cut > 0):
            plan, timing, outcomes, record = self._through_cuts(
                plan, state, divide, start_s=begin_s, download_bytes=size_bytes
            )
        elif self._workers.uplink.is_coded(plan):
            timing, outcomes = self._train_then_time(
                plan, state, divide, start_s=begin_s, download_bytes=size_bytes
            )
        else:
            timing = time_round(
                self._problem,
                self._true,
                plan,
                divide,
                start_s=begin_s,
                dropped=self._dropped(plan),
                download_bytes=size_bytes,
            )
            outcomes = self._workers.train(plan, state, in_time(timing))
        status = timing.status.copy()
        for index, outcome in outcomes.items():
            status[index] = outcome.status
        results = results_of(
            self._problem, plan, timing, status, outcomes, predicted_s=predicted.finish_s
        )
        expected = self._learnt(plan, results, begin_s) if self._learns else None
        beside = np.where(np.isin(results.device, setup.devices), setup.each_bytes, 0.0)
        self._limits.traffic_budget.spend(
            results.device, results.download_bytes + results.upload_bytes + beside
        )
        return Execution(
            results=results,
            updates=updates_of(outcomes),
            state=state,
            start_s=begin_s,
            end_s=begin_s + timing.end_s,
            bandwidth_hz=timing.bandwidth_hz,
            memory_bytes=self._fleet.memory_bytes[plan.assignments.device],
            faults=faults_of(timing, outcomes),
            setup=setup,
            expected=expected,
            learnt=self._forecast.learnt(plan.assignments.device) if self._learns else None,
            split=record,
            plan=plan,
            is_coded=sent is not None,
        )

    def _settled(
        self, plan: RoundPlan, size_bytes: float | None, begin_s: float
    ) -> tuple[RoundPlan, float]:
        """Return a plan with what its devices settle on, and the bytes that each receives first.

        What is sent comes before what is chosen, so it holds the largest arm.
        """
        problem = self._problem
        size_bytes = size_bytes or broadcast_bytes(
            problem.shape, problem.workload, plan.assignments
        )
        settled = let_settle(
            problem,
            plan,
            links=self._true.links_at(plan.round, 0, begin_s),
            flops_per_s=self._true.flops_at(plan.round),
            memory_bytes=self._true.memory_bytes,
            download_bytes=size_bytes,
        )
        return settled, size_bytes

    def _learnt(self, plan: RoundPlan, results: Results, begin_s: float) -> ExpectedRound | None:
        """Learn from what a round took; returns what was expected of it."""
        declared = predict(
            self._problem,
            plan.assignments,
            links=self._fleet.links_at(plan.round, 0, begin_s),
            flops_per_s=self._fleet.flops_at(plan.round),
        )
        expected = self._forecast.expect(plan.assignments, declared, is_judging=False)
        self._forecast.learn(plan.assignments, declared, seen_in(results), expected)
        return expected

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit; empty where it is within all."""
        most = most_bytes(self._problem, plan.assignments)
        if lacks_scores(self._workers, plan, state):
            most += most_measuring_bytes(self._workers, self._fleet, plan)
        links = self._links(plan.round, self._limits.traffic_budget.now_s)
        speeds = self._flops_per_s(plan.round)
        return self._limits.faults(plan, most, links=links, flops_per_s=speeds)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again: next month where all that are there have used up this one."""
        if self._limits.is_used_up:
            return self._limits.traffic_budget.month_ends_s
        self._limits.check_energy()
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; off the clock."""
        return self._workers.evaluate(state, split)

    def _dropped(self, plan: RoundPlan) -> Bools:
        """Return which devices of the plan will vanish, shape (n,)."""
        draws = generator(self._problem.seed, "dropout", plan.round).random(len(self._fleet))
        return np.asarray(draws[plan.assignments.device] < self._settings.dropout)

    def _train_then_time(
        self,
        plan: RoundPlan,
        state: GlobalState,
        divide: Divide,
        *,
        start_s: float,
        download_bytes: float | None,
    ) -> tuple[Timing, dict[int, Outcome]]:
        """Have everybody train who can answer: how long a coded update takes, only coding tells."""
        dropped = self._dropped(plan)
        sent = self._workers.uplink.send(
            plan, state, self._workers.train(plan, state, self._able(plan, dropped))
        )
        timing = time_round(
            self._problem,
            self._true,
            plan,
            divide,
            start_s=start_s,
            dropped=dropped,
            upload_bytes=sent.size_bytes,
            download_bytes=download_bytes,
        )
        came = {index: sent.outcomes[index] for index in in_time(timing)}
        self._workers.uplink.settle(sent, state, came)
        return timing, came

    def _through_cuts(
        self,
        plan: RoundPlan,
        state: GlobalState,
        divide: Divide,
        *,
        start_s: float,
        download_bytes: float | None,
    ) -> tuple[RoundPlan, Timing, dict[int, Outcome], Mapping[str, object]]:
        """Have cut devices train through their cuts and the others the whole model, then time it.

        Where the deadline stops some before their last step, once more with as many as they did.
        """
        dropped, splitter = self._dropped(plan), self._workers.splitter
        whole = np.flatnonzero(plan.assignments.cut == 0)
        done = splitter.train(plan, state, dropped)
        able = whole[self._able(rows_of(plan, whole), dropped[whole])] if len(whole) else whole
        trained = self._workers.train(plan, state, able.tolist())

        def passed(plan: RoundPlan, done: CutRound) -> tuple[Timing, SplitTiming, Sent, Air]:
            outcomes = {**trained, **done.outcomes}
            sent = self._workers.uplink.send(plan, state, outcomes)
            usual = sent.size_bytes.copy()
            if done.result is not None:
                usual[done.places[done.columns]] = done.result.up_bytes[0]
            air = Air(self._true, plan, divide, start_s=start_s, usual_bytes=usual)
            if len(able):
                size_bytes = download_bytes or broadcast_bytes(
                    self._problem.shape, self._problem.workload, rows_of(plan, whole).assignments
                )
                air.broadcast(able, size_bytes, until_s=plan.until_s(self._problem))
            cut_time = splitter.time(done, air, sent)
            parts = []
            if len(whole):
                whole_time = whole_round(
                    self._problem,
                    self._true,
                    rows_of(plan, whole),
                    air.part(whole),
                    dropped=dropped[whole],
                    upload_bytes=sent.size_bytes[whole],
                    download_bytes=download_bytes,
                )
                timed, timing = in_step(cut_time, whole_time)
                parts.append((whole, timing))
            else:
                timed = alone(cut_time)
            parts.append((done.places, timed.timing))
            return joined(len(plan.assignments), parts), timed, sent, air

        timing, timed, sent, air = passed(plan, done)
        if timed.stopped_after.any():
            done, plan = splitter.shortened(done, timed.stopped_after, plan, state, dropped)
            timing, timed, sent, air = passed(plan, done)
        came = {index: sent.outcomes[index] for index in in_time(timing) if index in sent.outcomes}
        self._workers.uplink.settle(sent, state, came)
        steps = int(done.plan.assignments.local_steps.max())
        return plan, timing, came, split_record(done, timed, air, sent, steps=steps)

    def _able(self, plan: RoundPlan, dropped: Bools) -> list[int]:
        """Return the rows of a plan without cuts whose device can answer."""
        peak_bytes = peak_memory(
            self._problem.shape, self._problem.workload, plan.assignments
        ).total
        faults = refusals(self._problem, self._fleet, plan, peak_bytes)
        return [index for index, fault in enumerate(faults) if not fault and not dropped[index]]


def local_engine(
    fleet: Fleet,
    problem: Problem,
    base: BaseModel,
    data: FederatedData,
    *,
    needs: frozenset[Need] = frozenset(),
    work: WorkSpec | None = None,
    settings: EngineSettings | None = None,
) -> VirtualEngine:
    """Return the engine of a fleet whose devices all train in this process.

    Args:
        fleet: devices and links.
        problem: unmasked: with speeds, memory and powers.
        base: the frozen dense model.
        data: of as many devices as the fleet has.
        needs: what the method asks to know; the rest is hidden from it.
        work: switches of the method's local work; None = the problem's.
        settings: participation, dropouts, learning rate and the like.

    Raises:
        FleetError: if fleet, problem and data differ in their number of devices.
    """
    settings = settings or EngineSettings()
    workers = LocalWorkers(fleet, problem, base, data, work=work, settings=settings)
    return VirtualEngine(fleet, workers, needs=needs, settings=settings)
