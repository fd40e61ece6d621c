"""Cuts, codecs and spectrum: certified gaps, an exact integer programme, time; plans of real sizes.

The instances are a vision transformer's menu (cuts after each block, eight codecs from a twentieth
to all of the entries) for devices of a cell as in `solvers`, 0.3-10 TFLOP/s, each with memory for a
random number of blocks, and a quality budget that binds. The integer programme (HiGHS) minimises
server and backward time at each of many times A of sending; it is exact at those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from airtune.cost import known_shapes, predict
from airtune.fleet import load_fleet
from airtune.methods import build_method
from airtune.plan import ModelShape, Observation, Problem, Workload
from airtune.solve import (
    SplitProblem,
    SplitSolution,
    divide_spectrum,
    solve_split,
    solve_split_lagrangian,
)
from benchmarks.figure import Figure, at_most
from benchmarks.solvers import cell, median_ms, timed

Array = NDArray[np.float64]
KEPT = np.array([0.9, 1.2, 1.7, 2.1, 2.8, 3.5, 4.5, 8.0])
"""Bits an entry of the codecs."""
LOSS = np.array([0.08, 0.04, 0.02, 0.012, 0.006, 0.003, 0.001, 0.0])
BLOCK_FLOPS = 2.0 * 85e6 / 12 * 8 * 197
SERVER = 1e13
PLANNED = {
    "vit-base": Workload(16, 197, 10, 8, ("q_proj", "v_proj"), trains_head=True),
    "llama-2-7b": Workload(
        4, 256, 10, 8, ("q_proj", "v_proj"), dtype_bytes=2, base_bits=16, checkpointing=True,
        loss_chunk=256,
    ),
}  # fmt: skip
SPLITS: dict[str, tuple[str, dict[str, object]]] = {
    "federated LoRA": ("fedavg-lora", {}),
    "sequential": ("split-sequential", {}),
    "SplitFed V1": ("splitfed-v1", {}),
    "SplitFed V2": ("splitfed-v2", {}),
    "SplitLoRA": ("splitlora", {}),
    "SFT": ("sft", {"codec": "topk", "keep": 0.3}),
    "SFT, frozen device part": ("sft", {"codec": "topk", "keep": 0.3, "device_frozen": True}),
}


def menus(n: int, seed: int, *, cuts: int = 11, codecs: int = 8, links: int = 1) -> SplitProblem:
    """Return one drawn cell of n devices with its menus."""
    drawn = cell(n, seed).curves
    curves = replace(
        drawn,
        link=np.arange(n) % links,
        signal=drawn.signal * links,
        scale=drawn.scale / links,
        budget=np.ones(links),
    )
    draws = np.random.default_rng(1000 + seed)
    speed = 10.0 ** draws.uniform(11.5, 13.0, (n, 1))
    cut, codec = (grid.ravel() for grid in np.mgrid[1 : cuts + 1, 0:codecs])
    bits = np.ones((n, 1)) * KEPT[codec] * 8 * 197 * 768
    downlink = curves.scale * np.log2(1.0 + 40.0 * curves.signal)
    return SplitProblem(
        curves=curves,
        forward_s=cut * BLOCK_FLOPS / speed,
        bits=bits,
        down_s=bits / downlink[:, None],
        backward_s=2.0 * cut * BLOCK_FLOPS / speed,
        server_s=np.ones((n, 1)) * (cuts + 1 - cut) * BLOCK_FLOPS * 3 / SERVER * 20 / n,
        loss=draws.dirichlet(np.full(n, 3.0))[:, None] * (LOSS[codec] * (1.0 + 0.1 * cut)),
        allowed=cut <= draws.uniform(2, cuts + 2, (n, 1)),
        loss_budget=0.015,
    )


def run() -> Iterator[Figure]:
    """Yield every figure of the split solvers."""
    for n, goal, limit_s in ((100, 1e-3, 0.2), (1000, 1e-4, 1.0)):
        found = [timed(partial(solve_split, menus(n, seed))) for seed in range(5)]
        gap = float(np.median([solution.gap for _, solution in found]))
        worst = max(solution.gap for _, solution in found)
        told = f"its own bound, median of 5 cells; worst {worst:.1e}"
        yield at_most(f"splits.gap[{n}]", gap, goal, told)
        seconds = median_ms(found) / 1e3
        told = "processor time in s; up to twice the goal counts as holding"
        yield Figure(f"splits.s[{n}]", seconds, f"<= {limit_s:g}", seconds <= 2.0 * limit_s, told)
    yield from against_programme()
    yield from published()
    yield from spectrum()
    yield from planned()


def against_programme() -> Iterator[Figure]:
    """Hold the search against the exact integer programme for N up to 20."""
    for n in (10, 20):
        apart = []
        for seed in range(3):
            problem = menus(n, seed, cuts=4, codecs=5)
            found = solve_split(problem)
            apart.append(found.step_s / _exact_step_s(problem, found) - 1.0)
        told = f"scipy's milp at 16 times A about the answer, 3 cells of {n}, worst"
        yield at_most(f"splits.against_milp[{n}]", max(apart), 2e-3, told)


def published() -> Iterator[Figure]:
    """Show how far the augmented Lagrangian with rounding ends from the bound."""
    for n in (10, 20, 100):
        apart = [
            solve_split_lagrangian(menus(n, seed)).step_s / solve_split(menus(n, seed)).bound_s
            - 1.0
            for seed in range(3)
        ]
        told = f"certified bound, 3 cells of {n}, median; worst {max(apart):.3f}"
        yield Figure(
            f"splits.lagrangian_gap[{n}]",
            float(np.median(apart)),
            ">= 0 everywhere",
            min(apart) >= -1e-9,
            told,
        )


def spectrum() -> Iterator[Figure]:
    """Compare the quadratic steps of the small timescale with the exact division."""
    exact, stepped = [], []
    for seed in range(5):
        problem = cell(1000, seed)
        call = partial(divide_spectrum, problem.curves, problem.compute_s, problem.bits)
        exact.append(timed(call))
        stepped.append(timed(partial(call, "sqp")))
    gap = max(found.gap for _, found in exact)
    yield at_most("splits.spectrum.gap[1000]", gap, 1e-8, "its own tangent bound")
    ms = median_ms(exact)
    told = "processor time in ms; up to twice the goal counts as holding"
    yield Figure("splits.spectrum.ms[1000]", ms, "<= 2", ms <= 4.0, told)
    apart = [
        other.round_s / one.bound_s - 1.0
        for (_, one), (_, other) in zip(exact, stepped, strict=True)
    ]
    told = f"the exact division's bound, worst of 5; {median_ms(stepped) / ms:.0f} times its time"
    yield Figure("splits.spectrum.sqp_gap[1000]", max(apart), "none", True, told)


def planned() -> Iterator[Figure]:
    """Plan rounds of a vision transformer and of a 7B model on ten devices of a cell."""
    for name, workload in PLANNED.items():
        figures = {
            label: _round_of(known_shapes()[name], workload, *choice)
            for label, choice in SPLITS.items()
        }
        base_s, base_bytes = figures["sequential"]
        for label, (round_s, sent) in figures.items():
            told = f"{label}: {round_s:.1f} s and {sent / 1e6:.1f} MB a round; sequential split learning"
            yield Figure(
                f"splits.plan.delay[{name}, {label}]",
                round_s / base_s,
                "none",
                True,
                f"{told}; bytes {sent / base_bytes:.3f}",
            )


def _round_of(
    shape: ModelShape, workload: Workload, name: str, settings: dict[str, object]
) -> tuple[float, float]:
    """Return the median seconds of a planned round over eight draws of the links, and its bytes."""
    fleet, method = load_fleet("cell-10"), build_method(name, settings)
    samples = np.full(len(fleet), 5 * workload.batch * workload.local_steps)
    problem = Problem(
        shape,
        fleet.profiles(samples),
        workload,
        rounds=50,
        seed=0,
        work=method.work,
        server_flops_per_s=fleet.server.flops_per_s,
        server_memory_bytes=fleet.server.memory_bytes,
    )
    rounds, sent = [], []
    for number in range(8):
        links, speed = fleet.links_at(number, 0, 0.0), fleet.flops_at(number)
        seen = Observation(number, 0.0, links, links.available, speed)
        plan, _ = method.decider.plan(problem, method.decider.init(problem), seen)
        found = predict(problem, plan.assignments, links=links, flops_per_s=speed)
        able = np.isfinite(found.finish_s)
        rounds.append(float(np.max(found.finish_s[able])))
        sent.append(float(np.sum(found.upload_bytes + found.download_bytes)))
    return float(np.median(rounds)), float(np.median(sent))


def _exact_step_s(problem: SplitProblem, found: SplitSolution) -> float:
    """Return the best of the integer programmes at times A about an answer's."""
    middle = found.step_s - problem.after_s(found.index)
    best = float("inf")
    for sent_s in middle * np.linspace(0.75, 1.25, 16):
        index = _programme(problem, float(sent_s))
        if index is not None:
            best = min(best, problem.divide(index).round_s + problem.after_s(index))
    return best


def _programme(problem: SplitProblem, sent_s: float) -> NDArray[np.int64] | None:
    """Return the lines with the least server and backward time at A, None where none can."""
    n, k = problem.bits.shape
    left = sent_s - problem.forward_s
    curves = problem.curves.take(np.repeat(np.arange(n), k))
    rate = problem.bits / np.where(left > 0, left, 1.0)
    share = curves.share_for(rate.ravel()).reshape(n, k)
    able = problem.allowed & (left > 0) & (share <= 1.0)
    one = np.kron(np.eye(n), np.ones(k))
    rows: list[Array] = [np.append(row, 0.0) for row in one]
    rows.append(np.append(np.where(able, share, 0.0).ravel(), 0.0))
    rows.append(np.append(problem.loss.ravel(), 0.0))
    for place in range(n):
        back = one[place] * np.tile(problem.backward_s[place], n)
        rows.append(np.append(problem.down_s.ravel() + back, -1.0))
    low = np.concatenate([np.ones(n), np.full(n + 2, -np.inf)])
    high = np.concatenate([np.ones(n), [1.0, problem.loss_budget], np.zeros(n)])
    answer = milp(
        np.append(problem.server_s.ravel(), 1.0),
        integrality=np.append(np.ones(n * k), 0),
        constraints=LinearConstraint(csr_array(np.array(rows)), low, high),
        bounds=Bounds(0, np.append(able.ravel().astype(np.float64), np.inf)),
        options={"mip_rel_gap": 1e-4, "time_limit": 3.0},
    )
    return None if answer.x is None else np.argmax(answer.x[:-1].reshape(n, k), axis=1)
