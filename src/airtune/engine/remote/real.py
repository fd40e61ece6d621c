"""An engine whose devices are elsewhere, on the real clock: times and bytes are what was measured.

    finish    from the moment a task is handed over until its answer is whole, by the server's clock
    download  from the first part of the task to the last, where it arrives
    judging   and compute: what the device reports; clocks are never compared
    upload    from the first part of the answer to the last, where it arrives

What is left of finish is the ticket, connections, loading and waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import (
    Prediction,
    most_upload_bytes,
    peak_memory,
    predict,
    split_cost,
    stream_bytes,
)
from airtune.engine.base import EngineSettings, Execution, Setup, Split
from airtune.engine.checks import Divide, check_shares
from airtune.engine.forecast import Forecast
from airtune.engine.limits import RoundLimits
from airtune.engine.measuring import lacks_scores, measured
from airtune.engine.pacing import let_settle
from airtune.engine.remote.answers import qualities
from airtune.engine.remote.devices import Trained
from airtune.engine.remote.measured import CarriedOut, ReadyRound, as_done, execution_of, seen_of
from airtune.engine.remote.split import JOIN_S, ServedSplit, no_stream, open_split, served_record
from airtune.engine.remote.workers import RemoteWorkers, judges_of
from airtune.engine.stream import StreamTiming
from airtune.engine.stream.message import HEADER_BYTES
from airtune.engine.timing import refusals
from airtune.engine.workers import broadcast, restore, snapshot
from airtune.errors import InfeasibleError, MethodError
from airtune.fleet.fleet import Fleet
from airtune.fleet.rates import uplink_bps
from airtune.model.state import GlobalState
from airtune.plan import (
    Assignment,
    Assignments,
    Floats,
    Ints,
    LinkState,
    Need,
    Observation,
    RoundPlan,
    mask_observation,
)
from airtune.units import format_bytes
from airtune.work.downloads import Broadcast
from airtune.work.evaluate import weigh


class RealEngine:
    """Devices elsewhere, on the real clock; see `airtune.engine.base.Engine`."""

    def __init__(
        self,
        fleet: Fleet,
        workers: RemoteWorkers,
        *,
        needs: frozenset[Need] = frozenset(),
        settings: EngineSettings,
    ) -> None:
        """Begin with nothing learnt. Bytes are counted where messages leave and come.

        Args:
            fleet: devices and links as declared.
            workers: reach the devices.
            needs: what the method asks to know; the rest is hidden from it.
            settings: participation, learning rate and the like.
        """
        self._fleet, self._workers, self._needs = fleet, workers, needs
        self._problem, self._settings, self._remote = workers.problem, settings, workers.remote
        self._limits = RoundLimits(
            self._problem, self._remote.traffic_budget, participation=settings.participation
        )
        self._forecast = Forecast(len(fleet))
        alone = self._problem.devices.dedicated
        self._unpaced = frozenset(() if alone is None else np.flatnonzero(alone).tolist())

    def close(self) -> None:
        """Close the workers."""
        self._workers.close()

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what devices remember, what they used of the month, and what was learnt of them."""
        return snapshot(self._workers, self._limits, self._forecast)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        restore(self._workers, self._limits, self._forecast, arrays)

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; off the clock."""
        return self._workers.evaluate(state, split)

    def _flops_per_s(self, round: int) -> Floats:
        return self._forecast.flops_per_s(self._fleet, round)

    def _links(self, round: int, time_s: float) -> LinkState:
        return self._forecast.links(self._fleet, round, time_s)

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit; empty where it is within all."""
        most, assignments = None, plan.assignments
        if self._limits.traffic_budget.cap_bytes is not None:
            update, steps = self._most(assignments)
            both = {device: size + steps.get(device, 0.0) for device, size in update.items()}
            found = self._remote.most_bytes(list(assignments), state, both)
            most = np.array([found[int(device)] for device in assignments.device], np.float64)
        links = self._fleet.links_at(plan.round, 0, self._limits.traffic_budget.now_s)
        speeds = self._flops_per_s(plan.round)
        return self._limits.faults(plan, most, links=links, flops_per_s=speeds)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again; where no device can be reached, wait until one can, or so long.

        Raises:
            InfeasibleError: if all that are there have used up their month: a server does not
                wait for weeks.
        """
        traffic_budget = self._limits.traffic_budget
        if self._limits.is_used_up:
            days = math.ceil((traffic_budget.month_ends_s - traffic_budget.now_s) / 86400.0)
            raise InfeasibleError(
                f"no connected device has enough bytes for a round left of its "
                f"{format_bytes(traffic_budget.cap_bytes or 0.0)} a month "
                f"(limits.device_bytes_per_month); the next month begins in {days} days: go on then "
                "with --resume"
            )
        self._limits.check_energy()
        if self._remote.online():
            return time_s + idle_s
        return time_s + self._workers.wait_for_one(idle_s)

    def _most(self, assignments: Assignments) -> tuple[dict[int, float], dict[int, float]]:
        """Return the most that updates take, and that the steps of cut devices do, by device."""
        steps = stream_bytes(self._problem, assignments)
        updates = most_upload_bytes(
            self._problem, replace(assignments, cut=np.zeros_like(assignments.cut))
        )
        spare = steps * (assignments.local_steps + 2) / assignments.local_steps
        numbers = assignments.device.tolist()
        return (
            dict(zip(numbers, updates.tolist(), strict=True)),
            {device: size for device, size in zip(numbers, spare.tolist(), strict=True) if size},
        )

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know; devices that cannot be reached are not there."""
        self._limits.traffic_budget.begin_round(time_s)
        links = self._links(round, time_s)
        online = np.zeros(len(self._fleet), np.bool_)
        online[sorted(self._remote.online())] = True
        observation = Observation(
            round=round,
            time_s=time_s,
            links=replace(links, available=online),
            available=self._limits.asked(round, online),
            flops_per_s=self._flops_per_s(round),
        )
        return mask_observation(observation, self._needs)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Have the devices work, and wait for them or for the deadline.

        Raises:
            MethodError: if the plan gives out more of a link than there is, or cuts devices
                where nothing serves split rounds.
            TrainingError: if importance is needed and no device measured it, or the server's half
                of a split round failed.
        """
        state, setup = self.scored(plan, state, start_s)
        ready = self.prepare(plan, state, start_s + setup.duration_s)
        return replace(self.settle(ready, self.carry_out(ready)), setup=setup)

    def prepare(self, plan: RoundPlan, state: GlobalState, begin_s: float) -> ReadyRound:
        """Return all that a round needs before anything is sent.

        Args:
            plan: of the round.
            state: of the server, with the scores that the plan needs.
            begin_s: when the devices begin.

        Raises:
            MethodError: if the plan gives out more of a link than there is.
        """
        sent = broadcast(self._problem, plan, state)
        links = self._links(plan.round, begin_s)
        share = check_shares(plan.assignments.share, plan.assignments, links)
        rates = uplink_bps(links, share, plan.assignments.device)
        problem, assignments = self._problem, plan.assignments
        peak_bytes = peak_memory(problem.shape, problem.workload, assignments).total
        if np.any(assignments.cut > 0):
            parts = split_cost(problem, assignments)
            peak_bytes = np.where(assignments.cut > 0, parts.device_peak_bytes, peak_bytes)
        faults = refusals(problem, self._fleet, plan, peak_bytes)
        foreseen = self._foreseen(plan, links, sent)
        known = predict(problem, foreseen, links=links, flops_per_s=self._flops_per_s(plan.round))
        return ReadyRound(
            plan,
            state if sent is None else sent.state,
            sent,
            begin_s,
            faults=tuple(faults),
            rows=tuple(assignments.row(index) for index, fault in enumerate(faults) if not fault),
            upload_bps={
                int(device): float(rate)
                for device, rate in zip(assignments.device, rates, strict=True)
                if np.isfinite(rate) and rate > 0
            },
            peak_bytes=np.asarray(peak_bytes, np.float64),
            predicted_s=known.finish_s,
            expected=self._forecast.expect(
                foreseen, self._declared(plan, foreseen, begin_s), is_judging=plan.is_judging
            ),
        )

    def _foreseen(self, plan: RoundPlan, links: LinkState, sent: Broadcast | None) -> Assignments:
        """Return a plan's assignments, with what devices will settle on for themselves."""
        return let_settle(
            self._problem,
            plan,
            links=links,
            flops_per_s=self._flops_per_s(plan.round),
            memory_bytes=self._fleet.memory_bytes,
            download_bytes=None if sent is None else float(sent.size_bytes),
        ).assignments

    def settle(self, ready: ReadyRound, carried: CarriedOut) -> Execution:
        """Return a round that was carried out, and learn from it."""
        begin_s, done = ready.begin_s, carried.done
        plan = as_done(ready.plan, done)
        assignments = plan.assignments
        for item in done.values():
            if item.outcome.update is not None:
                self._remote.counted[item.outcome.device] = plan.round
        found = execution_of(self._problem, self._fleet, ready, plan, carried)
        self._forecast.learn(
            assignments,
            self._declared(plan, assignments, begin_s),
            seen_of(assignments, done),
            ready.expected,
        )
        return replace(
            found,
            split=carried.split,
            expected=ready.expected,
            learnt=self.learnt(assignments.device),
            is_coded=ready.sent is not None,
            plan=plan,
            validation=self.validation(done) if plan.is_judging else None,
            planned_peak_bytes=ready.peak_bytes,
        )

    def learnt(self, device: Ints) -> Mapping[str, object]:
        """Return what a record holds of what was learnt of devices; see `Forecast.learnt`."""
        return self._forecast.learnt(device)

    def _declared(self, plan: RoundPlan, assignments: Assignments, begin_s: float) -> Prediction:
        """Return what a plan would take at the speeds and rates that were declared."""
        return predict(
            self._problem,
            assignments,
            links=self._fleet.links_at(plan.round, 0, begin_s),
            flops_per_s=self._fleet.flops_at(plan.round),
        )

    def validation(self, done: Mapping[int, Trained]) -> Mapping[str, float] | None:
        """Return how those that took part judge the model that they were given; None = nobody did."""
        found = qualities({device: item.answer for device, item in done.items()})
        if not any(one.count for one in found.values()):
            return None
        return weigh(list(found.values()), self._problem.devices.weight[list(found)])

    def carry_out(
        self, ready: ReadyRound, *, is_wanted: Callable[[], bool] | None = None
    ) -> CarriedOut:
        """Have the devices train; by several threads at once for rounds of devices of their own.

        Args:
            ready: the round.
            is_wanted: asked again and again; where it says no, nobody is waited for any longer.

        Raises:
            MethodError: if devices are cut and nothing serves split rounds.
            TrainingError: if the server's half of a split round failed.
        """
        plan, state, rows, began = ready.plan, ready.state, ready.rows, time.monotonic()
        deadline_s = plan.deadline_of(self._problem)
        split = self._split(rows, plan, state)
        update, steps = self._most(plan.assignments)
        endpoints = None if split is None else split.endpoints
        if endpoints is not None and self._limits.traffic_budget.cap_bytes is not None:
            endpoints = {
                device: replace(endpoint, most_bytes=steps[device])
                for device, endpoint in endpoints.items()
            }
        try:
            done = self._remote.train(
                rows,
                state,
                round=plan.round,
                deadline_s=deadline_s,
                learning_rate=plan.learning_rate,
                sent=ready.sent,
                pace=plan.pace,
                endpoints=endpoints,
                upload_bps=ready.upload_bps,
                expected=update,
                unpaced=self._unpaced,
                is_wanted=is_wanted,
                judges=judges_of(self._problem, self._fleet) if plan.is_judging else frozenset(),
            )
            if split is None:
                return CarriedOut(done, None, time.monotonic() - began)
            cut = {row.device: done[row.device] for row in split.task.rows}
            joined, result = split.join(cut)
            self._give_back(steps, cut, joined)
            record = served_record(split.task, result, cut)
            return CarriedOut(done | joined, record, time.monotonic() - began)
        finally:
            if split is not None:
                split.opened.close()

    def _give_back(
        self, most: Mapping[int, float], cut: Mapping[int, Trained], joined: Mapping[int, Trained]
    ) -> None:
        """Count what the steps really took; of a device that came twice or not, all set aside."""
        for device, item in cut.items():
            reply, both = item.answer.reply, joined[device].answer
            if reply is None or reply.figures.get("connections") != 1.0:
                continue
            steps = float(reply.figures.get("steps") or 0.0)
            crossed = float(both.sent_bytes - item.answer.sent_bytes) + (
                both.received_bytes - item.answer.received_bytes
            )
            # a message's header is not in its bytes: four a step at most, and the welcome
            crossed += HEADER_BYTES * (4.0 * steps + 1.0)
            self._remote.settle_steps(device, most[device], min(crossed, most[device]))

    def _split(
        self, rows: Sequence[Assignment], plan: RoundPlan, state: GlobalState
    ) -> ServedSplit | None:
        """Begin to serve the devices that are cut, if any is.

        Raises:
            MethodError: if nothing serves such rounds here.
        """
        cut = [row for row in rows if row.cut]
        if not cut:
            return None
        if self._workers.serve is None:
            raise MethodError(no_stream(len(cut)))
        deadline_s = plan.deadline_of(self._problem)
        return open_split(
            self._workers.serve,
            cut,
            run=self._remote.run_name,
            round=plan.round,
            base=self._workers.base,
            state=state,
            problem=self._problem,
            settings=self._settings.train.at(plan.learning_rate),
            timing=StreamTiming(join_s=JOIN_S).within(deadline_s or 3600.0),
        )

    def scored(
        self, plan: RoundPlan, state: GlobalState, start_s: float
    ) -> tuple[GlobalState, Setup]:
        """Have importance measured where it is needed and not known; its time is what it took."""
        if not lacks_scores(self._workers, plan, state):
            return state, Setup()
        began = time.monotonic()
        state, priced = measured(self._workers, self._fleet, plan, state, start_s=start_s)
        # pooled second moments go out with the round's tasks, whose bytes are counted there
        sent_bytes = priced.download_bytes / max(len(priced.devices), 1)
        return state, replace(
            priced,
            duration_s=time.monotonic() - began,
            download_bytes=0.0,
            each_bytes=priced.each_bytes - sent_bytes,
        )
