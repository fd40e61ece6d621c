"""A run of four small devices; as a program it trains into a folder until it is killed."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.fleet import load_fleet
from airtune.keys import generator
from airtune.loop import LoopSettings, Run, begin, run_rounds
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.state import initial_state
from airtune.plan import (
    Assignments,
    CodecSpec,
    Method,
    Problem,
    RoundPlan,
    Solution,
    Workload,
    WorkSpec,
)
from airtune.records import RunWriter, read_run
from airtune.work.jobs import TrainSettings

DEVICES, ROUNDS = 4, 3
FLEET = {
    "name": "test",
    "links": {
        "cell": {
            "kind": "shared", "slot_s": 0.1,
            "radio": {"up_bandwidth_mhz": 0.02, "fading": {"model": "rayleigh", "every": "slot"}},
        }
    },
    "devices": [{"name": "dev", "count": DEVICES, "gflops_per_s": [0.01, 0.05], "memory_gib": 1,
                 "power_w": 5, "availability": 0.8}],
}  # fmt: skip


class Wanderer:
    """Prunes at random, by key; remembers what it saw."""

    needs = frozenset({"channel", "capability"})

    def init(self, problem):
        return {"losses": np.zeros(len(problem.devices)), "rounds": 0, "who": "wanderer"}

    def plan(self, problem, state, observation):
        device = np.flatnonzero(observation.available)
        draw = generator(problem.seed, "wanderer", observation.round)
        ratio = draw.choice([0.0, 0.5], len(device))
        zeros = np.zeros(len(device), np.int64)
        told = Assignments(
            device=device,
            prune_heads=ratio,
            prune_ffn=ratio,
            rank=np.full(len(device), 4),
            share=np.full(len(device), 1 / len(device)),
            local_steps=np.full(len(device), 2),
            cut=zeros,
            codec_index=zeros,
        )
        reasons = tuple(f"seen {state['losses'][index]:.3f}" for index in device)
        plan = RoundPlan(
            observation.round,
            told,
            reasons,
            predicted_s=1.0,
            notes={"mean": float(ratio.mean())},
            solution=Solution("heuristic", 1.0, 1, 0.0, float("nan")),
        )
        return plan, state

    def divide(self, problem, state, plan, links, remaining_bytes):
        left = (remaining_bytes > 0).astype(np.float64)
        return left / max(left.sum(), 1.0)

    def learn(self, problem, state, results):
        losses = state["losses"].copy()
        losses[results.device] = results.loss_last
        return {**state, "losses": losses, "rounds": state["rounds"] + 1}


TOPK = CodecSpec("topk", keep=0.1, bits=3)


def make_run(
    folder,
    *,
    decider=None,
    fleet=FLEET,
    rounds=ROUNDS,
    resume=None,
    loop=None,
    upload=None,
    work=None,
    **train,
):
    """Return a run in a folder, and its initial state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        base = base_of(LlamaForCausalLM(config))
    draw = np.random.default_rng(0)
    # few words, so that there is something to learn
    parts = [tuple(draw.integers(3, 9, 10) for _ in range(5)) for _ in range(2 * DEVICES + 1)]
    parts = [Sequences(part, part) for part in parts]
    devices = tuple(DeviceData(parts[index], parts[DEVICES + index]) for index in range(DEVICES))
    data = FederatedData(devices, parts[-1], (), {}, {})
    fleet = load_fleet(fleet, seed=1)
    workload = Workload(
        batch=2,
        tokens=12,
        local_steps=2,
        rank=4,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
        upload=upload or CodecSpec(),
        upload_feedback=upload is not None,
    )
    problem = Problem(
        base.shape,
        fleet.profiles(np.full(DEVICES, 5)),
        workload,
        rounds,
        seed=3,
        work=work or WorkSpec(),
    )
    decider = decider or Wanderer()
    engine = local_engine(
        fleet,
        problem,
        base,
        data,
        needs=decider.needs,
        settings=EngineSettings(
            train=TrainSettings(**{"learning_rate": 0.01, "dropout": 0.1, **train})
        ),
    )
    if resume is None:
        writer = RunWriter.create(folder, {"name": "test"})
    else:
        writer = RunWriter.resume(folder, resume)
    run = Run(
        Method("test", decider, may_cut=True), problem, engine, writer, "me", loop or LoopSettings()
    )
    return run, initial_state(base, workload, 3)


def train(folder, **choices):
    run, state = make_run(folder, **choices)
    return run_rounds(run, begin(run, state))


def resume(folder, **choices):
    saved = load_checkpoint(folder / "checkpoint", identity="me")
    run, state = make_run(folder, resume=0 if saved is None else saved.rounds, **choices)
    return run_rounds(run, begin(run, state) if saved is None else saved)


def assert_equal_runs(one, other):
    """Records, weights and the method's state are the same bits, wall time aside."""
    ours, theirs = read_run(one), read_run(other)
    for mine, yours in zip(ours.rounds, theirs.rounds, strict=True):
        assert {**mine, "measured": None} == {**yours, "measured": None}
    for name, column in ours.devices.items():
        assert np.array_equal(column, theirs.devices[name], equal_nan=column.dtype == float), name
    assert {**ours.results, "measured": None} == {**theirs.results, "measured": None}
    for name in ("tensors.safetensors", "arrays.npz"):
        place = Path("checkpoint") / f"round-{ROUNDS:06d}" / name
        assert (one / place).read_bytes() == (other / place).read_bytes()


def kill_after_second_record(folder):
    """Train, and die as by kill -9 once the second round is recorded but not yet saved."""
    append = RunWriter.append

    def fatal(self, record, devices):
        append(self, record, devices)
        if record["round"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    RunWriter.append = fatal
    train(folder)


if __name__ == "__main__":
    kill_after_second_record(Path(sys.argv[1]))
