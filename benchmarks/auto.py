"""`auto` at plan level: rounds needed times seconds a round, against the other methods; its solver.

What lines cost in rounds is assumed here, the same for every method: no model is trained. A method
that cannot do with a device's memory plans without it, so that it does less work than `auto`. The
fixed arm is the best (pruning, rank) that all devices that hold it have in common, with equal shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import process_time

import numpy as np

from airtune.cost import known_shapes, predict
from airtune.errors import InfeasibleError
from airtune.fleet import Fleet, load_fleet
from airtune.methods import build_method
from airtune.methods.levels import ladder_of
from airtune.methods.mixed_pricing import pruning_curve
from airtune.methods.seen import even_shares
from airtune.plan import (
    Assignments,
    Bools,
    CodecRounds,
    CodecSpec,
    Measurements,
    Observation,
    Problem,
    PrunedRounds,
    RankRounds,
    RoundPlan,
    Workload,
    whole_model,
)
from benchmarks.declared import wrong_declarations
from benchmarks.figure import Figure, at_least, at_most

PRUNED = (0.0, 0.1, 0.2, 0.3, 0.5)
PRUNED_ROUNDS = (0.0, 0.02, 0.07, 0.16, 0.5)
"""ln of the rounds needed at these mean pruning rates, assumed."""
CODECS = {
    CodecSpec("fp16"): 0.0, CodecSpec("deadzone", step=0.75): 0.01,
    CodecSpec("deadzone", step=2.0): 0.05, CodecSpec("topk", keep=0.1, bits=4): 0.15,
}  # fmt: skip
"""The same of what crosses a cut."""
_TEXT = Workload(
    4, 256, 10, 8, ("q_proj", "v_proj"), dtype_bytes=2, base_bits=16, checkpointing=True,
    loss_chunk=256,
)  # fmt: skip
_IMAGES = Workload(16, 197, 10, 8, ("q_proj", "v_proj"), trains_head=True)
_SENTENCES = Workload(16, 128, 10, 8, ("q_proj", "v_proj"), trains_head=True)
CASES: dict[str, tuple[str, str, Workload]] = {
    "minilm-l6, phones": ("minilm-l6", "phones", _SENTENCES),
    "vit-base, cell-10": ("vit-base", "cell-10", _IMAGES),
    "qwen2.5-0.5b, cell-10": ("qwen2.5-0.5b", "cell-10", _TEXT),
    "qwen2.5-0.5b, jetson-80": ("qwen2.5-0.5b", "jetson-80", _TEXT),
    "llama-3.2-1b, orin-6-sites": ("llama-3.2-1b", "orin-6-sites", _TEXT),
    "roberta-base, jetson-80": ("roberta-base", "jetson-80", _SENTENCES),
    "llama-3.2-1b, mixed-20": ("llama-3.2-1b", "mixed-20", _TEXT),
    "qwen2.5-0.5b, mixed-20": ("qwen2.5-0.5b", "mixed-20", _TEXT),
    "vit-base, mixed-20": ("vit-base", "mixed-20", _IMAGES),
}


def assumed(rank: int) -> Measurements:
    """Return what lines cost in rounds, as this benchmark assumes it; losses are a fifth of that."""
    ranks = [(rank // 8, 0.3), (rank // 4, 0.15), (rank // 2, 0.05), (rank, 0.0)]
    pruning = zip(PRUNED, PRUNED_ROUNDS, strict=True)
    return Measurements(
        "assumed",
        "assumed, not measured",
        pruning=tuple(PrunedRounds(at, k, k / 5.0) for at, k in pruning),
        ranks=tuple(RankRounds(at, k, k / 5.0) for at, k in ranks),
        codecs=tuple(CodecRounds(1, codec, k, k / 5.0) for codec, k in CODECS.items()),
        cut=0.0,
        most_pruned=0.7,
    )


def problem_of(model: str, fleet: Fleet, workload: Workload) -> Problem:
    """Return what a method knows of a case before the first round."""
    shape = known_shapes()[model]
    names = tuple(linear.name for linear in shape.linears)
    targets = tuple(each for each in names if each in workload.lora_targets) or names[:1]
    return Problem(
        shape,
        fleet.profiles(np.full(len(fleet), 200)),
        replace(workload, lora_targets=targets),
        rounds=100,
        seed=0,
        server_flops_per_s=fleet.server.flops_per_s,
        server_memory_bytes=fleet.server.memory_bytes,
        measurements=assumed(workload.rank),
    )


def run() -> Iterator[Figure]:
    """Yield the plan table, gaps and times of the solver, and what wrong declarations cost."""
    ratios: dict[str, list[float]] = {"presets": [], "mixed": []}
    for name, (model, fleet, workload) in CASES.items():
        found = table(model, load_fleet(fleet), workload)
        mine, _ = found.pop("auto")
        ratio = min(cost for cost, _ in found.values()) / mine
        ratios["mixed" if fleet == "mixed-20" else "presets"].append(ratio)
        said = ", ".join(
            f"{other} {cost:.4g} ({count} devices)" for other, (cost, count) in found.items()
        )
        yield at_least(f"auto.rounds_times_s[{name}]", ratio, 1.0, f"auto {mine:.4g}; {said}")
    for kind, goal in (("presets", 1.4), ("mixed", 1.6)):
        mean = float(np.exp(np.mean(np.log(ratios[kind]))))
        yield at_least(
            f"auto.geometric_mean[{kind}]", mean, goal, f"best other of {len(ratios[kind])}"
        )
    yield from solver()
    model, fleet, workload = CASES["qwen2.5-0.5b, jetson-80"]
    some = load_fleet(fleet, devices=12)
    yield from wrong_declarations(
        problem_of(model, some, workload), some, "12 of qwen2.5-0.5b, jetson-80"
    )


def solver() -> Iterator[Figure]:
    """Yield proved gaps and processor seconds of a plan for cells of several sizes."""
    model, fleet, workload = CASES["vit-base, cell-10"]
    for devices, rounds, gap_goal, s_goal in (
        (10, 5, 0.03, 0.3),
        (100, 3, 0.01, None),
        (1000, 1, 0.01, 2.0),
    ):
        drawn = load_fleet(fleet, devices=devices)
        problem = problem_of(model, drawn, workload)
        gaps, seconds = [], []
        for number in range(rounds):
            begun = process_time()
            plan = planned("auto", problem, seen_of(drawn, number))
            seconds.append(process_time() - begun)
            gaps.append(plan.solution.gap if plan.solution else np.nan)
        told = f"its own bound, median of {rounds}; worst {max(gaps):.3g}"
        yield at_most(f"auto.gap[{devices}]", float(np.median(gaps)), gap_goal, told)
        if s_goal is not None:
            told = "processor time of a plan in s; up to twice the goal counts as holding"
            middle = float(np.median(seconds))
            yield Figure(f"auto.s[{devices}]", middle, f"<= {s_goal:g}", middle <= 2 * s_goal, told)


def table(model: str, fleet: Fleet, workload: Workload) -> dict[str, tuple[float, int]]:
    """Return K T in seconds and how many devices take part, by method."""
    problem, seen = problem_of(model, fleet, workload), seen_of(fleet, 0)
    holds = fleet.memory_bytes[:, None] >= ladder_of(problem).peak_bytes
    least = ladder_of(problem).pruned <= 0.7
    found = {
        "auto": rated(problem, seen, planned("auto", problem, seen).assignments),
        "fedavg-lora": fixed(problem, seen, holds, 0, workload.rank),
    }
    arms = [
        fixed(problem, seen, holds, level, rank)
        for level in np.flatnonzero(least)[::4]
        for rank in (8, 4, 2)
    ]
    most = max(count for _, count in arms)
    found["fixed arm"] = min(arm for arm in arms if arm[1] == most)
    able = replace(seen, available=seen.available & holds[:, least].any(axis=1))
    found["jcpba"] = rated(problem, able, planned("jcpba", problem, able).assignments)
    for budget in (0.01, 0.03):
        try:
            plan = planned("sft", problem, seen, quality_budget=budget)
        except InfeasibleError:
            continue
        found["sft"] = min(found.get("sft", (np.inf, 0)), rated(problem, seen, plan.assignments))
    return found


def planned(name: str, problem: Problem, seen: Observation, **settings: object) -> RoundPlan:
    """Return a method's first plan."""
    decider = build_method(name, settings).decider
    return decider.plan(problem, decider.init(problem), seen)[0]


def seen_of(fleet: Fleet, number: int) -> Observation:
    """Return what a method sees at the start of a round."""
    links = fleet.links_at(number, 0, 0.0)
    return Observation(number, 0.0, links, links.available, fleet.flops_at(number))


def fixed(
    problem: Problem, seen: Observation, holds: Bools, level: int, rank: int
) -> tuple[float, int]:
    """Return K T of one pruning level and rank for all that hold it, at equal shares."""
    steps, devices = ladder_of(problem), problem.devices
    device = np.flatnonzero(seen.available & holds[:, level])
    if not device.size:
        return np.inf, 0
    alone = None if devices.dedicated is None else devices.dedicated[device]
    told = replace(
        whole_model(
            device,
            rank=rank,
            local_steps=problem.workload.local_steps,
            share=even_shares(devices.link[device], alone),
        ),
        prune_heads=np.full(device.size, steps.prune_heads[level]),
        prune_ffn=np.full(device.size, steps.prune_ffn[level]),
    )
    return rated(problem, seen, told)


def rated(problem: Problem, seen: Observation, told: Assignments) -> tuple[float, int]:
    """Return K T of a plan in seconds, and how many devices it has that can send."""
    measured, weight = assumed(problem.workload.rank), problem.devices.weight[told.device]
    links, speed = seen.links, seen.flops_per_s
    if links is None or speed is None:
        raise ValueError("the observation must hide nothing")
    finish_s = predict(problem, told, links=links, flops_per_s=speed).finish_s
    able = np.isfinite(finish_s)
    weight = np.where(able, weight, 0.0) / np.sum(weight[able])
    pruned = problem.shape.pruned_fraction(told.prune_heads, told.prune_ffn)
    log_k = float(np.interp(weight @ pruned, *pruning_curve(measured, 1.0)))
    for share, row in zip(weight, told, strict=True):
        cut = 0.0 if row.cut is None else measured.codec_rounds(row.cut, row.codec)
        log_k += share * (cut if row.cut else measured.rank_rounds(row.rank))
    return float(np.exp(log_k) * np.max(finish_s[able])), int(able.sum())
