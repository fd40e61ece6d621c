"""SFT: split fine-tuning against one shared server model, on two timescales.

Every `large_every` rounds each device gets a cut and a codec so that a step is over soonest within
its memory and a budget on quality, whose price in loss a short calibration has measured. In the
rounds between, both are chosen anew for the links as they are, but no cut is later than the blocks
that the device holds. In every slot the spectrum is divided for what is still to be sent. Cut and codec, and the spectrum, each have the
published solver and one that certifies its answer; the record holds how far apart they are.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237); the
equations are reconstructed. The paper keeps cut and codec on the large timescale; choosing within
the blocks held every round, the certified solvers and the measured price are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from airtune.cost import predict, split_cost
from airtune.errors import InfeasibleError, MethodError, RecipeError
from airtune.methods.codec_menu import CodecChoice, Size, check_codec, codec_menu
from airtune.methods.seen import Seen, see
from airtune.methods.slot import divide_slot, keep_or_divide
from airtune.methods.split_lines import Lines, Priced, check_cut, price, split_problem, told
from airtune.methods.split_reasons import split_reasons
from airtune.plan import (
    Assignments,
    Bools,
    CodecSpec,
    Floats,
    Ints,
    LinkState,
    Method,
    Need,
    Observation,
    Problem,
    Results,
    RoundPlan,
    Solution,
    State,
    Want,
    WorkSpec,
)
from airtune.solve import (
    Spectrum,
    SplitProblem,
    SplitSolution,
    divide_spectrum,
    solve_split,
    solve_split_lagrangian,
)
from airtune.units import format_bytes

_COMPARED_UP_TO = 200
"""Devices up to which the solver that is not used runs too, for the record."""


@dataclass(frozen=True, slots=True)
class Sft:
    """The decider of SFT; its fields are the method's settings, some read by the local work."""

    solver: Literal["exact", "lagrangian"] = "exact"
    """exact: within a certified gap; lagrangian: augmented Lagrangian and rounding, as published."""
    spectrum: Spectrum = "exact"
    """exact, sqp (as published) or equal."""
    cut: Literal["auto"] | int = "auto"
    """Blocks on every device; auto = chosen for each, or the first where device parts are frozen."""
    codec: CodecChoice = "auto"
    """auto = chosen for each device among all that were calibrated; none = identity; topk, deadzone
    and fp16 = of that kind alone; quantised = levels for all entries."""
    keep: Size = "auto"
    """Fraction kept by topk; auto = chosen among those calibrated."""
    bits: int = 4
    """Bits of a quantised value, sign included, if keep is given or codec is quantised."""
    step: Size = "auto"
    """Step of deadzone in standard deviations; auto = chosen among those calibrated."""
    quality_budget: float = 0.01
    """Relative loss increase that compression may cost at the end of the run, estimated from the
    calibration; 0.01 for 1 %."""
    labels: Literal["travel", "stay"] = "travel"
    predict: bool = False
    """Send only the difference to the last reconstruction of the same sample."""
    device_frozen: bool = False
    """Train adapters on the server's blocks only: each sample is sent once, no gradient returns."""
    gradient_step: float = 0.0
    """Dead-zone step of the gradient, in standard deviations; 0 = the activation's codec."""
    reuse_mask: bool = False
    """A Top-K gradient keeps its activation's positions."""
    large_every: int = 10
    """Rounds between choices of the blocks that a device holds."""
    needs: frozenset[Need] = frozenset({"capability", "channel"})

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "lagrangian"):
            raise RecipeError(f"solver must be exact or lagrangian, got {self.solver!r}")
        if self.spectrum not in ("exact", "sqp", "equal"):
            raise RecipeError(f"spectrum must be exact, sqp or equal, got {self.spectrum!r}")
        if self.cut != "auto" and not (isinstance(self.cut, int) and self.cut >= 1):
            raise RecipeError(f"cut must be auto or a whole number from 1 on, got {self.cut!r}")
        if not 0.0 <= self.quality_budget < 1.0:
            raise RecipeError(
                f"quality_budget is a relative loss increase in [0, 1), 0.01 for 1 %, got "
                f"{self.quality_budget:g}"
            )
        if self.large_every < 1:
            raise RecipeError(f"large_every must be at least 1 round, got {self.large_every}")
        if not 0.0 <= self.gradient_step <= 100.0:
            raise RecipeError(
                f"gradient_step must be in [0, 100] standard deviations, got {self.gradient_step:g}"
            )
        check_codec(self.codec, self.keep, self.bits, self.step)

    @property
    def weighs_codecs(self) -> bool:
        """Whether it decides by what compression costs, and so needs that measured."""
        is_open = {"auto": True, "topk": self.keep == "auto", "deadzone": self.step == "auto"}
        return is_open.get(self.codec, False)

    def init(self, problem: Problem) -> State:
        """Return a state in which nobody has a cut yet."""
        nothing = np.full(len(problem.devices), -1, np.int64)
        return {"line": nothing, "cut": nothing.copy(), "decided": -1}

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Choose cuts and codecs, within the blocks held unless it is time for others, and shares.

        Raises:
            InfeasibleError: if a device's memory fits no cut, the server's not even the latest
                cuts, or the budget not even the mildest codecs.
        """
        seen = see(problem, observation)
        lines, why = self._lines(problem)
        priced = price(problem, seen, lines)
        line, cut = (np.asarray(state[name], np.int64).copy() for name in ("line", "cut"))
        decided = int(np.asarray(state["decided"]))
        index = _usual(priced, line[seen.device])
        notes: dict[str, float] = {}
        if seen.able.size:
            task = split_problem(problem, seen, lines, priced, self.quality_budget)
            due = decided < 0 or observation.round - decided >= self.large_every
            able = seen.device[seen.able]
            kept = [] if due else self._within(task, lines, cut[able])
            tasks = kept + _later_and_later(task, lines)
            used, number, notes = self._served(problem, seen, lines, tasks, index)
            index[seen.able] = line[able] = used.index
            if number < len(kept):
                cut[able] = np.maximum(cut[able], lines.cut[used.index])
            else:
                cut[able], decided = lines.cut[used.index], observation.round
            share, solution, apart = self._spectrum(task, used)
            notes |= apart | {
                "quality_loss": task.loss_of(index[seen.able]),
                "step_s": solution.objective,
            }
        else:
            share, solution = np.zeros(0), None
        assignments = told(problem, seen, lines, index, seen.shares(share))
        return _round_plan(
            problem, observation, seen, assignments, why=why, solution=solution, notes=notes
        ), {"line": line, "cut": cut, "decided": decided}

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Divide the coming slot so that the slowest has sent what remains as soon as possible."""
        if self.spectrum == "equal":
            return keep_or_divide(plan, links, remaining_bytes)
        return divide_slot(plan.assignments.device, links, remaining_bytes, self.spectrum)

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Learn nothing: speeds and channels are known, and quality is measured beforehand."""
        return state

    def _lines(self, problem: Problem) -> tuple[Lines, str]:
        last = problem.shape.blocks - 1
        if self.cut != "auto":
            check_cut(self.cut, problem.shape.blocks)
        known = problem.measurements
        codecs, why = codec_menu(
            self.codec,
            keep=self.keep,
            bits=self.bits,
            step=self.step,
            measured=() if known is None else known.codecs_measured,
        )
        codecs = tuple(replace(codec, predict=self.predict) for codec in codecs)
        # below the largest cut nothing is trained where device parts are frozen: all cut first
        widest = 1 if self.device_frozen else last
        cuts = range(1, widest + 1) if self.cut == "auto" else [self.cut]
        lines = Lines.of(cuts, codecs, known, rounds=problem.rounds)
        return (lines if self.weighs_codecs else replace(lines, loss=np.zeros(len(lines)))), why

    def _within(self, task: SplitProblem, lines: Lines, cut: Ints) -> list[SplitProblem]:
        """Return the task with the blocks that devices hold; none if memory or the budget refuse.

        A device may leave blocks that it holds to the server for a round, but needs no others. Where
        both ends remember samples, the cut stays as it is. A device without a cut chooses freely.
        """
        asked, held = lines.cut[None, :], cut[:, None]
        fixed = self.predict or self.device_frozen
        allowed = task.allowed & ((asked == held if fixed else asked <= held) | (held < 0))
        least = np.min(np.where(allowed, task.loss, np.inf), axis=1)
        fits = float(np.sum(least)) <= task.loss_budget
        return [replace(task, allowed=allowed)] if fits else []

    def _served(
        self, problem: Problem, seen: Seen, lines: Lines, tasks: Sequence[SplitProblem], index: Ints
    ) -> tuple[SplitSolution, int, dict[str, float]]:
        """Return the choice in the first task whose answer the server's memory holds, and its place.

        `index` has the lines of the devices that cannot send in this slot.

        Raises:
            InfeasibleError: if it holds none.
        """
        found = index.copy()
        for position, task in enumerate(tasks):
            used, notes = self._choose(task)
            found[seen.able] = used.index
            peak = _server_peak(problem, seen, lines, found)
            if peak <= problem.server_memory_bytes:
                return used, position, notes
        raise InfeasibleError(
            f"the server has {format_bytes(problem.server_memory_bytes)} of memory, but serving "
            f"{len(found)} devices needs {format_bytes(peak)} even through the latest cuts that "
            "fit them; lower the batch, let it serve one after the other or give it more memory"
        )

    def _choose(self, task: SplitProblem) -> tuple[SplitSolution, dict[str, float]]:
        """Return the large timescale's answer, and how far the other solver's is from it."""
        few = len(task) <= _COMPARED_UP_TO
        exact = solve_split(task)
        if self.solver == "exact" and not few:
            return exact, {}
        descended = solve_split_lagrangian(task)
        notes = {
            "gap_lagrangian": float(descended.step_s / exact.bound_s - 1.0),
            "gap_exact": float(exact.gap),
        }
        if self.solver == "exact":
            return exact, notes
        return replace(descended, bound_s=float(min(exact.bound_s, descended.step_s))), notes

    def _spectrum(
        self, task: SplitProblem, chosen: SplitSolution
    ) -> tuple[Floats, Solution, dict[str, float]]:
        """Return shares for the lines chosen, and how far every rule is from the exact one."""
        rows, index = np.arange(len(task)), chosen.index
        fixed, bits = task.forward_s[rows, index], task.bits[rows, index]
        exact = divide_spectrum(task.curves, fixed, bits)
        found = (
            exact
            if self.spectrum == "exact"
            else divide_spectrum(task.curves, fixed, bits, self.spectrum)
        )
        notes = {"gap_spectrum": found.round_s / exact.bound_s - 1.0}
        if self.spectrum != "sqp" and len(task) <= _COMPARED_UP_TO:
            stepped = divide_spectrum(task.curves, fixed, bits, "sqp")
            notes["gap_sqp"] = stepped.round_s / exact.bound_s - 1.0
        step_s = found.round_s + task.after_s(index)
        solution = Solution(
            status=chosen.status,
            objective=step_s,
            iterations=found.iterations + chosen.iterations,
            residual=found.residual,
            gap=float(step_s / chosen.bound_s - 1.0),
            method=f"{chosen.method}, spectrum {self.spectrum}; seconds a step",
        )
        return found.share, solution, notes


def first_plan(settings: Sft, problem: Problem, seen: Seen, *, tolerance: float) -> Assignments:
    """Return what a first round tells the able devices, chosen to within this gap where it is proved.

    Raises:
        InfeasibleError: if a device's memory fits no cut or the budget not even the mildest codecs.
    """
    lines, _ = settings._lines(problem)
    priced = price(problem, seen, lines)
    task = split_problem(problem, seen, lines, priced, settings.quality_budget)
    used = solve_split(task, tolerance=tolerance)
    index = np.zeros(seen.device.shape, np.int64)
    index[seen.able] = used.index
    return told(problem, seen, lines, index, seen.shares(used.share)).take(seen.able)


def _later_and_later(task: SplitProblem, lines: Lines) -> list[SplitProblem]:
    """Return the task with every cut, then without the earliest cuts, while each device has one."""
    left = [task.allowed & (lines.cut >= floor) for floor in np.unique(lines.cut)]
    return [replace(task, allowed=allowed) for allowed in left if allowed.any(axis=1).all()]


def _usual(priced: Priced, held: Ints) -> Ints:
    """Return each device's last line while it fits, or the one that asks least of its memory."""
    rows: Ints = np.arange(held.shape[0])
    known: Bools = (held >= 0) & priced.allowed[rows, np.maximum(held, 0)]
    return np.asarray(np.where(known, held, np.argmin(priced.peak_bytes, axis=1)), np.int64)


def _server_peak(problem: Problem, seen: Seen, lines: Lines, index: Ints) -> float:
    rows = told(problem, seen, lines, index, np.ones(index.shape))
    return split_cost(problem, rows).server_peak_bytes


def _round_plan(
    problem: Problem,
    observation: Observation,
    seen: Seen,
    assignments: Assignments,
    *,
    why: str,
    solution: Solution | None,
    notes: dict[str, float],
) -> RoundPlan:
    speed = observation.flops_per_s
    fleet_speed = np.full(observation.available.shape, np.nan) if speed is None else speed
    expected = predict(problem, assignments, links=seen.links, flops_per_s=fleet_speed)
    cost = split_cost(problem, assignments)
    reachable = expected.finish_s[np.isfinite(expected.finish_s)]
    return RoundPlan(
        round=observation.round,
        assignments=assignments,
        reasons=split_reasons(problem.shape.blocks, seen, assignments, expected, cost, why=why),
        predicted_s=float(np.max(reachable)) if reachable.size else float("nan"),
        deadline_s=problem.deadline_s,
        solution=solution,
        notes=notes,
    )


def sft(name: str, settings: object) -> Method:
    """Return the method of these settings with the local work they ask for."""
    if not isinstance(settings, Sft):
        raise MethodError(f"settings must be Sft, got {type(settings).__name__}")
    step = settings.gradient_step
    work = WorkSpec(
        labels=settings.labels,
        device_frozen=settings.device_frozen,
        reuse_mask=settings.reuse_mask,
        gradient=CodecSpec("deadzone", step=step) if step else None,
    )
    wants: frozenset[Want] = frozenset({"codecs"} if settings.weighs_codecs else ())
    first = 1 if settings.device_frozen else None
    cut = first if settings.cut == "auto" else settings.cut
    return Method(name, settings, work=work, wants=wants, may_cut=True, cut=cut)
