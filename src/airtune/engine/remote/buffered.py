"""Asynchronous rounds over devices elsewhere, on the real clock; see `airtune.engine.buffered`.

Each device that is told has a deadline of its own, and nobody waits for it but who wants its update.
A round ends when enough updates have come since the last; what else has come by then counts too.
Tasks that are out when a run ends or is killed are given up: their devices begin anew. A model that
is judged with tasks is the one that each device was given, whenever that was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import peak_memory
from airtune.engine.base import Execution, Split
from airtune.engine.buffered import InFlight, arrived_in, begun, on_free_links
from airtune.engine.checks import Divide
from airtune.engine.remote.devices import Trained
from airtune.engine.remote.measured import CarriedOut, ReadyRound
from airtune.engine.remote.real import RealEngine
from airtune.engine.splitting import rows_of
from airtune.model.state import GlobalState
from airtune.plan import Observation, Problem, RoundPlan

_LOOK_S = 0.5


class BufferedRealEngine:
    """An engine of real devices whose rounds end with the K-th update."""

    def __init__(self, inner: RealEngine, problem: Problem, *, buffer: int) -> None:
        """Have nothing on its way.

        Args:
            inner: reaches the devices.
            problem: of the run, with the local work.
            buffer: updates with which a round ends, at least 1.
        """
        self._inner, self._problem, self._buffer = inner, problem, buffer
        self._pool = ThreadPoolExecutor(len(problem.devices), thread_name_prefix="device")
        self._flying: dict[Future[CarriedOut], ReadyRound] = {}
        """In the order in which they began, a round of one device each."""
        self._closing = threading.Event()
        self._waited_s = 0.0

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know; waits where all that are there are at work."""
        began = time.monotonic()
        while True:
            at_work = self._at_work()
            seen = self._inner.observe(round, time_s)
            free = seen.available.copy()
            free[[_device(ready) for ready in at_work.values()]] = False
            if free.any() or not at_work:
                self._waited_s = time.monotonic() - began
                return replace(seen, available=free)
            wait(at_work, timeout=_LOOK_S, return_when=FIRST_COMPLETED)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Have the free devices begin, and wait for as many updates as the buffer holds.

        Raises:
            MethodError: if the plan gives out more of a link than there is.
            TrainingError: if importance is needed and no device measured it.
        """
        state, setup = self._inner.scored(plan, state, start_s)
        begin_s = start_s + self._waited_s + setup.duration_s
        began = time.monotonic()
        self._begin(plan, state, begin_s)
        arrived, done = self._arrived()
        found = arrived_in(
            self._problem,
            plan,
            state,
            arrived,
            start_s=begin_s,
            end_s=begin_s + time.monotonic() - began,
            left=len(self._at_work()),
        )
        told = found.results.device
        peak_bytes = peak_memory(
            self._problem.shape, self._problem.workload, (found.plan or plan).assignments
        ).total
        return replace(
            found,
            setup=setup,
            learnt=self._inner.learnt(told),
            planned_peak_bytes=peak_bytes,
            validation=self._inner.validation(done),
        )

    def _begin(self, plan: RoundPlan, state: GlobalState, begin_s: float) -> None:
        """Have each device of a plan begin, as a round of its own."""
        taken = {
            _device(ready): float(ready.plan.assignments.share[0])
            for ready in self._at_work().values()
        }
        plan = on_free_links(self._problem, plan, taken)
        for index in range(len(plan.assignments)):
            ready = self._inner.prepare(rows_of(plan, np.array([index])), state, begin_s)
            going = self._pool.submit(
                self._inner.carry_out, ready, is_wanted=lambda: not self._closing.is_set()
            )
            self._flying[going] = ready

    def _arrived(self) -> tuple[list[InFlight], dict[int, Trained]]:
        """Wait until the buffer is full or all have come; returns each device at most once."""
        arrived: dict[int, InFlight] = {}
        done: dict[int, Trained] = {}
        while True:
            for going, ready in list(self._flying.items()):
                if going.done() and _device(ready) not in arrived:
                    del self._flying[going]
                    carried = going.result()
                    [entry] = begun(self._problem, ready.plan, self._inner.settle(ready, carried))
                    arrived[entry.device] = entry
                    done |= carried.done
            came = sum(entry.change is not None for entry in arrived.values())
            waiting = [one for one, ready in self._flying.items() if _device(ready) not in arrived]
            if came >= self._buffer or not waiting:
                return list(arrived.values()), done
            wait(waiting, return_when=FIRST_COMPLETED)

    def _at_work(self) -> dict[Future[CarriedOut], ReadyRound]:
        return {one: ready for one, ready in self._flying.items() if not one.done()}

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit; empty where it is within all."""
        return self._inner.over_cap(plan, state)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again where no device is there."""
        return self._inner.idle_until_s(time_s, idle_s)

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of a model, off the clock; devices that are at work are not asked."""
        return self._inner.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the engine remembers; what is on its way is not in it."""
        return self._inner.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        self._inner.restore(arrays)

    def close(self) -> None:
        """Give up what is on its way, and give back whatever is held."""
        self._closing.set()
        self._pool.shutdown()
        self._inner.close()


def _device(ready: ReadyRound) -> int:
    return int(ready.plan.assignments.device[0])
