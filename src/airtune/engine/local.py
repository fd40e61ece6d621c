"""The local engine: one process, real training, virtual time.

Devices truly train on their own data; what a round costs in seconds, bytes and joules comes from the
cost model and the links (`timing`). The same seed gives the same run, bit for bit, as long as the
number of threads is the same, which the engine therefore pins. Wall time plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.cost import broadcast_bytes, gram_bytes, most_bytes, peak_memory
from airtune.data.federated import FederatedData
from airtune.engine import measuring
from airtune.engine.air import Air
from airtune.engine.base import Execution, Setup, Split, with_work
from airtune.engine.checks import Divide
from airtune.engine.clock import alone, in_step
from airtune.engine.gathered import faults_of, in_time, results_of, under, updates_of
from airtune.engine.joules import EnergyLimit
from airtune.engine.pacing import let_settle
from airtune.engine.participation import sampled, with_data
from airtune.engine.splitting import Splitter, rows_of, split_record
from airtune.engine.timing import Timing, joined, refusals, time_round, whole_round
from airtune.engine.uplink import Uplink
from airtune.errors import FleetError, RecipeError
from airtune.fleet.fleet import Fleet
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.importance import Importance, pool
from airtune.model.mending import Grams
from airtune.model.state import GlobalState
from airtune.plan import (
    Bools,
    Floats,
    Need,
    Observation,
    Problem,
    RoundPlan,
    WorkSpec,
    mask_observation,
)
from airtune.wire.allowance import Allowance
from airtune.work.downloads import Broadcast, code_broadcast
from airtune.work.evaluate import evaluate, evaluate_devices, exact_match
from airtune.work.importance import (
    importance_bytes,
    measure_device_grams,
    measure_importance,
    report_bytes,
)
from airtune.work.network import current_base, tuned_network, wants_means
from airtune.work.train import Job, Outcome, TrainSettings, train


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How the local engine runs a fleet."""

    train: TrainSettings = field(default_factory=TrainSettings)
    participation: float = 1.0
    """Fraction of the available devices that are asked each round, in (0, 1]."""
    dropout: float = 0.0
    """Probability that a device vanishes after it was given its assignment, in [0, 1)."""
    threads: int = 1
    """Threads of torch; another number gives other last bits."""
    answer_of: Callable[[str], str | None] | None = None
    """Finds the answer in a generated text; None = exact match is not measured on the test set."""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0.0 < self.participation <= 1.0:
            raise RecipeError(
                f"participation must be above 0 and at most 1, got {self.participation:g}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise RecipeError(f"dropout must be at least 0 and below 1, got {self.dropout:g}")
        if self.threads < 1:
            raise RecipeError(f"threads must be at least 1, got {self.threads}")


class LocalEngine:
    """Runs a fleet in this process; see `airtune.engine.base.Engine`."""

    def __init__(
        self, fleet: Fleet, problem: Problem, base: BaseModel, data: FederatedData, *,
        needs: frozenset[Need] = frozenset(), work: WorkSpec | None = None,
        settings: LocalSettings | None = None,
    ) -> None:  # fmt: skip
        """Hold the fleet and pin the threads until `close`.

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
        if not len(fleet) == len(problem.devices) == len(data.devices):
            raise FleetError(
                f"the fleet has {len(fleet)} devices, the problem {len(problem.devices)} and the "
                f"data {len(data.devices)}; set fleet.devices so that they agree"
            )
        self._fleet, self._base, self._data = fleet, base, data
        self._needs = needs
        self._work = problem.work if work is None else work
        self._problem = with_work(problem, self._work)
        self._settings = LocalSettings() if settings is None else settings
        self._uplink = Uplink(self._problem)
        self._splitter = Splitter(self._problem, fleet, base, data, settings=self._settings.train)
        self._allowance = Allowance(problem.device_bytes_per_month, len(fleet))
        self._energy = EnergyLimit(problem)
        self._there = np.zeros(len(fleet), np.bool_)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._settings.threads)

    def close(self) -> None:
        """Give the threads back."""
        torch.set_num_threads(self._threads_before)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what devices remember from round to round beside the global state."""
        uplink = {f"uplink/{name}": array for name, array in self._uplink.snapshot().items()}
        cut = {f"cut/{name}": item for name, item in self._splitter.snapshot().items()}
        month = {f"month/{name}": item for name, item in self._allowance.snapshot().items()}
        return uplink | cut | month

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        self._uplink.restore(under("uplink/", arrays))
        self._splitter.restore(under("cut/", arrays))
        self._allowance.restore(under("month/", arrays))

    def _flops_per_s(self, round: int) -> Floats:
        """Return how fast each device of the fleet is taken to be."""
        return self._fleet.flops_at(round)

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know: links at the start, speeds, and who is asked."""
        self._allowance.begin_round(time_s)
        links = self._fleet.links_at(round, 0, time_s)
        observation = Observation(
            round=round,
            time_s=time_s,
            links=links,
            available=self._asked(round, with_data(links.available, self._problem.devices.weight)),
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
        if measuring.prunes(plan.assignments, self._problem) and self._lacks_scores(state):
            state, setup = self._measure(plan, state, start_s)
        else:
            setup = Setup()
        begin_s = start_s + setup.duration_s
        sent = self._broadcast(plan, state)
        if sent is not None:
            state = sent.state
        size_bytes = None if sent is None else float(sent.size_bytes)
        if plan.pace is not None:
            # what is sent comes before what is chosen, so it holds the largest arm
            size_bytes = size_bytes or broadcast_bytes(
                self._problem.shape, self._problem.workload, plan.assignments
            )
            plan = let_settle(
                self._problem, self._fleet, plan, start_s=begin_s, download_bytes=size_bytes
            )
        record = None
        if np.any(plan.assignments.cut > 0):
            timing, outcomes, record = self._through_cuts(
                plan, state, divide, start_s=begin_s, download_bytes=size_bytes
            )
        elif self._uplink.is_coded(plan):
            timing, outcomes = self._train_then_time(
                plan, state, divide, start_s=begin_s, download_bytes=size_bytes
            )
        else:
            timing = time_round(
                self._problem, self._fleet, plan, divide,
                start_s=begin_s, dropped=self._dropped(plan), download_bytes=size_bytes,
            )  # fmt: skip
            outcomes = self._train(plan, state, in_time(timing))
        status = timing.status.copy()
        for place, outcome in outcomes.items():
            status[place] = outcome.status
        results = results_of(self._problem, plan, timing, status, outcomes)
        measured = np.where(np.isin(results.device, setup.devices), setup.each_bytes, 0.0)
        self._allowance.spend(
            results.device, results.download_bytes + results.upload_bytes + measured
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
            split=record,
            plan=plan,
            is_coded=sent is not None,
        )

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit; empty where it is within all."""
        most = most_bytes(self._problem, plan.assignments)
        if measuring.prunes(plan.assignments, self._problem) and self._lacks_scores(state):
            each = report_bytes(self._problem.shape)
            if self._work.mend == "least-squares":
                each += 2.0 * gram_bytes(self._problem.shape)
            most[measuring.scorers(self._problem, self._fleet, plan)] += each
        return self._over(plan, self._allowance.faults(plan.assignments.device, most))

    def _over(self, plan: RoundPlan, short: Sequence[str]) -> tuple[str, ...]:
        """Return why each row's device is left out: its bytes of the month, or its joules."""
        joules = self._energy.faults(
            plan, flops_per_s=self._flops_per_s(plan.round),
            links=self._fleet.links_at(plan.round, 0, self._allowance.now_s),
        )  # fmt: skip
        return tuple(one or other for one, other in zip(short, joules, strict=True))

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again: next month where all that are there have used up this one."""
        if self._there.any() and self._allowance.short[self._there].all():
            return self._allowance.month_ends_s
        self._energy.check(self._there)
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; off the clock.

        Raises:
            DataError: if there is nothing to evaluate on.
        """
        lora = tuned_network(self._base, state, scale=self._settings.train.scale, work=self._work)
        chunk = self._problem.workload.loss_chunk
        if split == "validation":
            held = [device.validation for device in self._data.devices]
            return evaluate_devices(lora.network, held, self._problem.devices.weight, chunk=chunk)
        quality = evaluate(lora.network, self._data.test, chunk=chunk)
        figures = {"loss": quality.loss, "perplexity": quality.perplexity,
                   "accuracy": quality.accuracy}  # fmt: skip
        answer_of, tokenizer = self._settings.answer_of, self._base.tokenizer
        if answer_of is not None and tokenizer is not None and self._data.test_prompts:
            figures["exact_match"] = exact_match(
                lora.network,
                self._data.test_prompts,
                tokenizer=tokenizer,
                answer_of=answer_of,
                max_new_tokens=self._settings.max_new_tokens,
            )
        return {name: value for name, value in figures.items() if value is not None}

    def _asked(self, round: int, available: Bools) -> Bools:
        """Return who takes part: a sample of those that are there, at least one of them."""
        self._there = available
        stream = generator(self._problem.seed, "participation", round)
        return sampled(available, self._allowance.short, self._settings.participation, stream)

    def _dropped(self, plan: RoundPlan) -> Bools:
        """Return which devices of the plan will vanish, shape (n,)."""
        draws = generator(self._problem.seed, "dropout", plan.round).random(len(self._fleet))
        return np.asarray(draws[plan.assignments.device] < self._settings.dropout)

    def _broadcast(self, plan: RoundPlan, state: GlobalState) -> Broadcast | None:
        """Return what the devices are sent, None where it is the state as it is."""
        spec = self._problem.workload.download
        if spec.kind == "identity" or not len(plan.assignments):
            return None
        return code_broadcast(
            state, plan.assignments, spec, generator(self._problem.seed, "download", plan.round),
            shape=self._problem.shape, work=self._work,
        )  # fmt: skip

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
        sent = self._uplink.send(plan, state, self._train(plan, state, self._able(plan, dropped)))
        timing = time_round(
            self._problem, self._fleet, plan, divide,
            start_s=start_s, dropped=dropped, upload_bytes=sent.size_bytes,
            download_bytes=download_bytes,
        )  # fmt: skip
        came = {place: sent.outcomes[place] for place in in_time(timing)}
        self._uplink.settle(sent, state, came)
        return timing, came

    def _through_cuts(
        self,
        plan: RoundPlan,
        state: GlobalState,
        divide: Divide,
        *,
        start_s: float,
        download_bytes: float | None,
    ) -> tuple[Timing, dict[int, Outcome], Mapping[str, object]]:
        """Have cut devices train through their cuts and the others the whole model, then time it."""
        dropped = self._dropped(plan)
        whole = np.flatnonzero(plan.assignments.cut == 0)
        rest = rows_of(plan, whole)
        done = self._splitter.train(plan, state, dropped)
        able = whole[self._able(rest, dropped[whole])] if len(whole) else whole
        outcomes = {**self._train(plan, state, able.tolist()), **done.outcomes}
        sent = self._uplink.send(plan, state, outcomes)
        usual = sent.size_bytes.copy()
        if done.result is not None:
            usual[done.places[done.columns]] = done.result.up_bytes[0]
        air = Air(self._fleet, plan, divide, start_s=start_s, usual_bytes=usual)
        cut_time = self._splitter.time(done, air, sent)
        if len(whole):
            whole_time = whole_round(
                self._problem, self._fleet, rest, air.part(whole),
                dropped=dropped[whole], upload_bytes=sent.size_bytes[whole],
                download_bytes=download_bytes,
            )  # fmt: skip
            timed, timing = in_step(cut_time, whole_time)
            parts = [(done.places, timed.timing), (whole, timing)]
        else:
            timed = alone(cut_time)
            parts = [(done.places, timed.timing)]
        timing = joined(len(plan.assignments), parts)
        came = {place: sent.outcomes[place] for place in in_time(timing) if place in sent.outcomes}
        self._uplink.settle(sent, state, came)
        steps = int(done.plan.assignments.local_steps.max())
        return timing, came, split_record(done, timed, air, sent, steps=steps)

    def _able(self, plan: RoundPlan, dropped: Bools) -> list[int]:
        """Return the rows of a plan without cuts whose device can answer."""
        peak_bytes = peak_memory(
            self._problem.shape, self._problem.workload, plan.assignments
        ).total
        faults = refusals(self._problem, self._fleet, plan, peak_bytes)
        return [place for place, fault in enumerate(faults) if not fault and not dropped[place]]

    def _train(
        self, plan: RoundPlan, state: GlobalState, places: Sequence[int]
    ) -> dict[int, Outcome]:
        """Train devices; takes and returns by row of the plan."""
        rows = [plan.assignments.row(place) for place in places]
        jobs = [
            Job(row.device, row, self._data.devices[row.device].train,
                float(self._problem.devices.weight[row.device]))
            for row in rows
        ]  # fmt: skip
        outcomes = train(
            self._base, state, jobs, settings=self._settings.train.at(plan.learning_rate),
            work=self._work,
            workload=self._problem.workload, seed=self._problem.seed, round=plan.round,
        )  # fmt: skip
        return dict(zip(places, outcomes, strict=True))

    def _measure(
        self, plan: RoundPlan, state: GlobalState, start_s: float
    ) -> tuple[GlobalState, Setup]:
        """Have devices that hold the dense model measure importance, and pool what they report.

        Where none does, the server scores by the size of weights, and nothing is mended.
        """
        base = current_base(self._base, state)
        needs_data = measuring.asks_data(base, self._work)
        rows = measuring.scorers(self._problem, self._fleet, plan)
        if not (needs_data and rows.size):
            return measuring.server_scores(base, state, self._problem), Setup(
                faults=(measuring.NOBODY_SCORES,) if needs_data else ()
            )
        found, faults = self._reports(plan.assignments.device[rows].tolist(), state)
        devices, reports = list(found), list(found.values())
        weights = self._problem.devices.weight[devices].tolist()
        pooled = pool(reports, weights)
        if state.importance is not None:
            pooled = replace(state.importance, means=pooled.means)
        state = replace(state, importance=pooled, grams=self._grams(base, devices))
        setup = measuring.price_measuring(
            self._problem, self._fleet, rows_of(plan, rows),
            report_bytes=importance_bytes(reports[0]), start_s=start_s,
        )  # fmt: skip
        return state, replace(setup, faults=faults)

    def _grams(self, base: BaseModel, devices: Sequence[int]) -> Grams | None:
        """Have devices measure second moments, where least squares need them, and pool those."""
        if self._work.mend != "least-squares":
            return None
        able = measuring.holders_of_grams(self._problem, self._fleet, np.array(devices, np.int64))
        weight = self._problem.devices.weight
        held = [(int(one), self._data.devices[one].train, float(weight[one])) for one in able]
        return measure_device_grams(
            base, held, batch=self._problem.workload.batch, seed=self._problem.seed
        )

    def _reports(
        self, devices: Sequence[int], state: GlobalState
    ) -> tuple[dict[int, Importance], tuple[str, ...]]:
        """Have devices measure importance on their own data; by device, and why some have none."""
        base = current_base(self._base, state)
        measured = {
            device: measure_importance(
                base, self._data.devices[device].train, criterion=self._work.importance,
                batch=self._problem.workload.batch, seed=self._problem.seed, device=device,
            )
            for device in devices
        }  # fmt: skip
        return measured, ()

    def _lacks_scores(self, state: GlobalState) -> bool:
        """Whether something has to be measured before anything can be pruned."""
        known = state.importance
        lacks_means = known is not None and known.means is None
        lacks_grams = self._work.mend == "least-squares" and state.grams is None
        return (
            lacks_grams
            or known is None
            or (self._work.cumulative and lacks_means and wants_means(self._base, self._work))
        )
