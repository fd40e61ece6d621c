"""What every method must keep, as one check that a method's author can run.

    from airtune.methods import build_method, check_method
    check_method(build_method("./mine.py:Mine"))

The check plans a few rounds of a small made-up fleet (shared radio, measured air time, a dedicated
link; a device that comes and goes, one that is silent, one with little memory) with everything
hidden that the method did not ask for, and looks at what comes back. `airtune check ./mine.py:Mine`
does it from the command line.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import ParamSpec, TypeVar

import numpy as np

from airtune.cost import llama_like, peak_memory, predict
from airtune.errors import MethodError
from airtune.keys import generator
from airtune.methods.plugins import as_method
from airtune.plan import (
    Assignments,
    CodecRounds,
    CodecSpec,
    Floats,
    LinkSpec,
    LinkState,
    Measurements,
    Method,
    Observation,
    Problem,
    Profiles,
    PrunedRounds,
    RankRounds,
    RateModel,
    Results,
    RoundPlan,
    State,
    Workload,
    mask_observation,
    mask_problem,
)
from airtune.plan.blame import blamed
from airtune.solve import silent

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

_DEVICES = 9
_ROUNDS = 3
_TIGHT = 5
"""The device whose memory does not hold the whole model."""
_SILENT = 7
"""The device whose link is out in round 1."""


def check_method(method: Method | object, problem: Problem | None = None) -> None:
    """Run a method through a few made-up rounds and check everything a method promises.

    It is pure and repeatable; covers every available device once, with a reason; its shares fit
    every shared link, in the plan and in `divide`; it fits the memory it was told; it cuts, or
    asks devices at random, only if it said so; its state survives being saved and loaded; it works with whatever it did not ask for
    hidden.

    Args:
        method: the method, for instance from `build_method`, or a decider alone.
        problem: another problem to try it on, with nine devices on three links as in
            `sample_problem`; None = that one.

    Raises:
        MethodError: at the first promise that is broken; the message names it, with file and line.
    """
    if not isinstance(method, Method):
        method = as_method(type(method).__name__, method)
    full = replace(sample_problem() if problem is None else problem, work=method.work)
    known = mask_problem(full, method.decider.needs)
    with blamed(method, "init"):
        method.decider.init(replace(known, measurements=None, sensitivity=None))
        state = _same_twice("init", method.decider.init, known)
        saved_and_loaded(state)
    for number in range(_ROUNDS):
        seen = sample_observation(full, number)
        hidden = mask_observation(seen, method.decider.needs)
        with blamed(method, "plan"):
            plan, after = _same_twice("plan", method.decider.plan, known, state, hidden)
            _check_plan(method, full, seen, plan)
        links, _ = _unmasked(seen)
        with blamed(method, "divide"):
            remaining = np.full(len(plan.assignments), 1e5)
            share = _same_twice(
                "divide", method.decider.divide, known, after, plan, links, remaining
            )
            _check_shares("divide", share, plan, links)
            _check_nobody_starves(full, share, plan, links)
        results = sample_results(full, seen, plan)
        with blamed(method, "learn"):
            state = _same_twice("learn", method.decider.learn, known, after, results)
            saved = saved_and_loaded(state)
        upcoming = mask_observation(sample_observation(full, number + 1), method.decider.needs)
        with blamed(method, "plan"):
            _check_equal_next(method, known, (state, saved), upcoming)
        state = saved


def sample_problem(*, devices: int = _DEVICES, seed: int = 0) -> Problem:
    """Return a made-up problem: a small model, unlike devices on three links.

    Args:
        devices: how many; device 5 holds less memory than the whole model needs.
        seed: of everything drawn.
    """
    shape = llama_like(
        "llama", blocks=4, width=64, heads=8, kv_groups=4, head_dim=8, ffn=172, vocab=512, tied=True
    )
    workload = Workload(
        batch=4,
        tokens=64,
        local_steps=5,
        rank=8,
        lora_targets=tuple(linear.name for linear in shape.linears),
    )
    draws = generator(seed, "sample", devices)
    whole = float(peak_memory(shape, workload, _dense(devices, workload)).total[0])
    memory = np.full(devices, 2.0 * whole)
    memory[_TIGHT % devices] = 0.8 * whole
    samples = draws.integers(20, 200, devices)
    profiles = Profiles(
        names=tuple(f"sample-{index}" for index in range(devices)),
        weight=samples / samples.sum(),
        samples=samples,
        link=_links_of(devices),
        flops_per_s=10.0 ** draws.uniform(8.5, 10.0, devices),
        memory_bytes=memory,
        power_w=draws.uniform(2.0, 15.0, devices),
        transmit_power_w=draws.uniform(0.1, 0.3, devices),
        dedicated=_links_of(devices) == 2,
    )
    return Problem(
        shape,
        profiles,
        workload,
        rounds=10,
        seed=seed,
        measurements=sample_measurements(workload.rank),
    )


def sample_measurements(rank: int = 8) -> Measurements:
    """Return made-up costs of every knob, for cuts from 1 to 3."""
    costs = (
        (CodecSpec("fp16"), (0.0, 0.0), (0.0, 0.0)),
        (CodecSpec("deadzone", step=0.75), (0.024, 0.006), (0.016, 0.004)),
        (CodecSpec("deadzone", step=2.0), (0.11, 0.034), (0.08, 0.026)),
        (CodecSpec("topk", keep=0.1, bits=4), (0.32, 0.107), (0.28, 0.093)),
    )
    codecs = [
        (cut, codec, *cost)
        for codec, *both in costs
        for cut, cost in zip((1, 3), both, strict=True)
    ]
    pruning = ((0.0, 0.0, 0.0), (0.15, 0.02, 0.005), (0.3, 0.1, 0.02), (0.5, 0.47, 0.1))
    return Measurements(
        "made up",
        "made up",
        (4.0, 2.0, 1.0),
        pruning=tuple(PrunedRounds(*row) for row in pruning),
        ranks=(RankRounds(rank // 4, 0.3), RankRounds(rank // 2, 0.1), RankRounds(rank, 0.0)),
        codecs=tuple(CodecRounds(*row) for row in codecs),
        cut=-0.1,
    )


def sample_observation(problem: Problem, number: int) -> Observation:
    """Return a made-up observation of a round, with nothing hidden."""
    count = len(problem.devices)
    draws = generator(problem.seed, "sample-round", number)
    link = problem.devices.link
    radio = link == 0
    signal = 10.0 ** draws.uniform(5.0, 8.0, count)
    capacity = 10.0 ** draws.uniform(5.5, 7.0, count)
    if number == 1:
        capacity[_SILENT % count] = 0.0
    available = np.ones(count, np.bool_)
    available[number % count] = number == 0
    specs = (
        LinkSpec("cell", "shared", 2e6, 2e6, RateModel(), None),
        LinkSpec("air", "shared", 0.0, 0.0, RateModel(), None),
        LinkSpec("line", "dedicated", 0.0, 0.0, RateModel(), None),
    )
    links = LinkState(
        specs=specs,
        link=link,
        up_signal_hz=np.where(radio, signal, np.nan),
        down_signal_hz=np.where(radio, signal * 4.0, np.nan),
        up_capacity_bps=np.where(radio, np.nan, capacity),
        down_capacity_bps=np.where(radio, np.nan, capacity * 2.0),
        available=available,
    )
    speed = problem.devices.flops_per_s
    return Observation(
        number,
        10.0 * number,
        links,
        available,
        None if speed is None else speed * draws.uniform(0.7, 1.0, count),
    )


def sample_results(problem: Problem, seen: Observation, plan: RoundPlan) -> Results:
    """Return made-up results of a plan: its predicted times, the first device failing."""
    assert_links, speed = _unmasked(seen)
    assignments = plan.assignments
    cost = predict(problem, assignments, links=assert_links, flops_per_s=speed)
    count = len(assignments)
    status = np.full(count, "ok", dtype="<U8")
    status[:1] = "failed"
    loss = np.linspace(3.0, 2.0, count)
    late = np.where(np.isfinite(cost.finish_s), cost.finish_s, np.nan)
    return Results(
        device=assignments.device,
        status=status,
        download_s=cost.download_s,
        compute_s=cost.compute_s,
        upload_s=cost.upload_s,
        finish_s=late,
        download_bytes=cost.download_bytes,
        upload_bytes=cost.upload_bytes,
        flops=cost.flops,
        loss_first=loss,
        loss_last=0.9 * loss,
        samples=np.full(count, 20, np.int64),
        peak_bytes=cost.peak_bytes,
        energy_j=cost.energy_j,
        importance=np.full(count, np.nan),
    )


def _unmasked(seen: Observation) -> tuple[LinkState, Floats]:
    if seen.links is None or seen.flops_per_s is None:
        raise MethodError("the made-up observation must hide nothing; hide it after, not before")
    return seen.links, seen.flops_per_s


def _links_of(devices: int) -> np.ndarray:
    return np.arange(devices, dtype=np.int64) % 3


def _dense(count: int, workload: Workload) -> Assignments:
    zeros = np.zeros(count)
    return Assignments(
        device=np.arange(count),
        prune_heads=zeros,
        prune_ffn=zeros,
        rank=np.full(count, workload.rank),
        share=np.full(count, 1.0 / count),
        local_steps=np.full(count, workload.local_steps),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )


def _same_twice(
    part: str, call: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs
) -> Answer:
    """Return what a part of a method answers, asked twice; it may change nothing that it is given."""
    before = _bytes(given)
    answer = call(*given, **named)
    first = _bytes(answer)
    if _bytes(given) != before:
        raise MethodError(f"{part} changed the state or the arrays that it was given; copy them")
    if _bytes(call(*given, **named)) != first:
        raise MethodError(
            f"{part} gave two different answers to the same question; draw with "
            "airtune.keys.generator(problem.seed, name, round)"
        )
    return answer


def _check_plan(method: Method, problem: Problem, seen: Observation, plan: RoundPlan) -> None:
    assignments = plan.assignments
    expected = np.flatnonzero(seen.available)
    if plan.round != seen.round:
        raise MethodError(f"the plan is for round {plan.round}, not {seen.round}")
    left = np.array(sorted(plan.not_asked) if method.may_sample else [], np.int64)
    if not np.array_equal(np.sort(np.append(assignments.device, left)), expected):
        raise MethodError(
            f"the plan covers devices {assignments.device.tolist()}, available are {expected.tolist()}"
        )
    if len(plan.reasons) != len(assignments) or not all(plan.reasons):
        raise MethodError(f"every device needs a reason, got {len(plan.reasons)}")
    if not method.may_cut and np.any(assignments.cut):
        raise MethodError(
            "the plan cuts the model; a method that may do so declares may_cut = True"
        )
    links, speed = _unmasked(seen)
    _check_shares("the plan", assignments.share, plan, links)
    peak = predict(problem, assignments, links=links, flops_per_s=speed).peak_bytes
    memory = problem.devices.memory_bytes
    if "capability" in method.decider.needs and memory is not None:
        over = np.flatnonzero(peak > memory[assignments.device])
        if over.size:
            device = problem.devices.names[assignments.device[over[0]]]
            raise MethodError(f"{device} is told more than its memory holds")


def _check_shares(source: str, share: Floats, plan: RoundPlan, links: LinkState) -> None:
    device = plan.assignments.device
    shape = getattr(share, "shape", None)
    if shape != device.shape or not np.all((share >= 0) & (share <= 1)):
        raise MethodError(
            f"shares of {source} must be in [0, 1], one for each of {len(device)} devices, got "
            f"{np.array2string(np.asarray(share), precision=3, threshold=6)} of shape {shape}"
        )
    total = np.bincount(links.link[device], share, minlength=len(links.specs))
    for index, spec in enumerate(links.specs):
        if spec.kind == "shared" and total[index] > 1.0 + 1e-6:
            raise MethodError(
                f"shares of link {spec.name} from {source} sum to {total[index]:.6f}, more than 1"
            )


def _check_nobody_starves(
    problem: Problem, share: Floats, plan: RoundPlan, links: LinkState
) -> None:
    device = plan.assignments.device
    starved = np.flatnonzero((share == 0) & ~silent(links, device))
    if starved.size:
        raise MethodError(
            f"divide gives {problem.devices.names[device[starved[0]]]} no share, though it can "
            "send and has bytes left; only a device in an outage, or one that is done, may get none"
        )


def saved_and_loaded(state: State) -> State:
    """Return the state after a trip through a file of arrays.

    Raises:
        MethodError: if it holds something else than arrays, numbers and text.
    """
    try:
        arrays = {key: np.asarray(value) for key, value in state.items()}
        buffer = io.BytesIO()
        writer: Callable[..., None] = np.savez
        writer(buffer, **arrays)
        buffer.seek(0)
        with np.load(buffer, allow_pickle=False) as file:
            return {
                key: file[key] if isinstance(value, np.ndarray) else file[key].item()
                for key, value in state.items()
            }
    except (ValueError, TypeError, AttributeError) as error:
        raise MethodError(f"the state must hold arrays, numbers and text only: {error}") from error


def _check_equal_next(
    method: Method, problem: Problem, states: tuple[State, State], seen: Observation
) -> None:
    plans = [method.decider.plan(problem, state, seen)[0] for state in states]
    if _bytes(plans[0]) != _bytes(plans[1]):
        raise MethodError("a saved and loaded state plans differently")


def _bytes(value: object) -> bytes:
    """Return what a value of the vocabulary says, so that two can be compared."""
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _bytes(value[key]) for key in sorted(value))
    if isinstance(value, tuple | list):
        return b"".join(map(_bytes, value))
    if is_dataclass(value):
        return b"".join(_bytes(getattr(value, each.name)) for each in fields(value))
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
