"""The loop with a decider of its own; run as a program it trains into a folder until it is killed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.errors import MethodError, RecipeError, RunInterruptedError, TrainingError
from airtune.fleet import load_fleet
from airtune.keys import generator
from airtune.loop import LoopSettings, Run, Target, begin, run_rounds
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.server import ServerOptimizer
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
from airtune.work.train import TrainSettings

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
            device=device, prune_heads=ratio, prune_ffn=ratio, rank=np.full(len(device), 4),
            share=np.full(len(device), 1 / len(device)), local_steps=np.full(len(device), 2),
            cut=zeros, codec_index=zeros,
        )  # fmt: skip
        reasons = tuple(f"seen {state['losses'][index]:.3f}" for index in device)
        plan = RoundPlan(
            observation.round, told, reasons, predicted_s=1.0, notes={"mean": float(ratio.mean())},
            solution=Solution("heuristic", 1.0, 1, 0.0, float("nan")),
        )  # fmt: skip
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
    folder, *, decider=None, fleet=FLEET, rounds=ROUNDS, resume=None, loop=None, upload=None,
    work=None, **train,
):  # fmt: skip
    """Return a run in a folder, and its initial state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        base = base_of(LlamaForCausalLM(config))
    draw = np.random.default_rng(0)
    # few words, so that there is something to learn
    parts = [tuple(draw.integers(3, 9, 10) for _ in range(5)) for _ in range(2 * DEVICES + 1)]
    parts = [Sequences(part, part) for part in parts]
    devices = tuple(DeviceData(parts[index], parts[DEVICES + index]) for index in range(DEVICES))
    data = FederatedData(devices, parts[-1], (), {}, {})
    fleet = load_fleet(fleet, seed=1)
    workload = Workload(
        batch=2, tokens=12, local_steps=2, rank=4,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
        upload=upload or CodecSpec(), upload_feedback=upload is not None,
    )  # fmt: skip
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
        fleet, problem, base, data, needs=decider.needs,
        settings=EngineSettings(
            train=TrainSettings(**{"learning_rate": 0.01, "dropout": 0.1, **train})
        ),
    )  # fmt: skip
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def test_a_round_is_recorded_as_it_was_planned_and_executed(whole):
    record = read_run(whole)
    first = record.rounds[0]
    assert [line["round"] for line in record.rounds] == [0, 1, 2]
    assert first["solution"]["status"] == "heuristic"
    assert first["initial"]["loss"] > 0
    assert first["counts"]["ok"] == len(record.devices["device"][record.devices["round"] == 0])
    for line, before in zip(record.rounds[1:], record.rounds, strict=False):
        assert line["start_s"] >= before["end_s"]
    rows = record.devices["round"] == 0
    sent = record.devices["upload_bytes"][rows].sum() + first["setup"]["upload_bytes"]
    assert first["upload_bytes"] == pytest.approx(sent)
    assert set(record.devices["reason"][rows]) == set(first["reasons"])
    parts = first["measured"]
    assert set(parts) == {"plan_s", "tasks_s", "aggregation_s", "validation_s", "wall_s"}
    assert sum(parts.values()) == pytest.approx(2 * parts["wall_s"])


def test_training_lowers_the_loss_and_the_result_says_so(whole):
    results = read_run(whole).results
    assert results["validation_best"]["loss"] < results["initial"]["loss"]
    assert results["test"]["loss"] > 0
    assert results["rounds"] == ROUNDS


class Killed(BaseException):
    """Stands for kill -9: no handler of the package catches it."""


@pytest.mark.parametrize("moment", [1, *range(7, 15)])
def test_killed_between_any_two_writes_a_run_resumes_to_the_same_bits(
    whole, tmp_path, monkeypatch, moment
):
    calls, force = [], os.fsync

    def stop(descriptor):
        calls.append(descriptor)
        if len(calls) == 1 + moment:  # the first is the header's
            raise Killed
        force(descriptor)

    folder = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(Killed):
        train(folder)
    monkeypatch.undo()
    resume(folder)
    assert_equal_runs(folder, whole)


def test_a_process_killed_for_real_resumes_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(read_run(folder).rounds) == 2
    assert load_checkpoint(folder / "checkpoint", identity="me").rounds == 1
    resume(folder)
    assert_equal_runs(folder, whole)


def test_what_coding_has_lost_goes_on_after_a_kill(whole, tmp_path):
    lossy, folder = tmp_path / "whole", tmp_path / "run"
    train(lossy, upload=TOPK)

    def die(record):
        if record["round"] == 1:
            raise Killed

    run, state = make_run(folder, upload=TOPK)
    with pytest.raises(Killed):
        run_rounds(run, begin(run, state), on_round=die)
    saved = load_checkpoint(folder / "checkpoint", identity="me")
    assert any(name.startswith("uplink/") for name in saved.engine)
    resume(folder, upload=TOPK)
    assert_equal_runs(folder, lossy)
    sent, plain = (read_run(place).rounds[-1] for place in (lossy, whole))
    assert sent["upload_bytes"] < 0.2 * plain["upload_bytes"]
    assert sent["round_s"] < plain["round_s"]


SWITCHES = LoopSettings(decay=0.2, server=ServerOptimizer(average=0.9, momentum=0.5))


def test_a_learning_loop_with_all_its_switches_resumes_to_the_same_bits(whole, tmp_path):
    full, folder = tmp_path / "whole", tmp_path / "run"
    train(full, loop=SWITCHES)

    def die(record):
        if record["round"] == 1:
            raise Killed

    run, state = make_run(folder, loop=SWITCHES)
    with pytest.raises(Killed):
        run_rounds(run, begin(run, state), on_round=die)
    resume(folder, loop=SWITCHES)
    assert_equal_runs(folder, full)
    last, result = read_run(full).rounds[-1], read_run(full).results
    assert last["validation_raw"]["loss"] != last["validation"]["loss"]
    assert result["test_raw"]["loss"] != result["test"]["loss"]
    assert "validation_raw" not in read_run(whole).rounds[-1]


def test_the_learning_rate_falls_linearly_over_the_budget(tmp_path):
    run, state = make_run(tmp_path / "run", loop=LoopSettings(decay=0.25))
    seen = []
    execute = run.engine.execute
    run.engine.execute = lambda plan, *rest, **more: (
        seen.append(plan.learning_rate) or execute(plan, *rest, **more)
    )
    run_rounds(run, begin(run, state))
    assert seen == pytest.approx([1.0 - 0.75 * round / ROUNDS for round in range(ROUNDS)])


def test_no_round_begins_after_the_seconds_of_the_run(whole, tmp_path):
    rounds = read_run(whole).rounds
    budget_s = 0.5 * (rounds[0]["end_s"] + rounds[1]["end_s"])
    run, state = make_run(tmp_path / "run", loop=LoopSettings(evaluate_every=9))
    run = replace(run, problem=replace(run.problem, seconds=budget_s))
    run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert [row["end_s"] for row in record.rounds] == [row["end_s"] for row in rounds[:2]]
    assert record.rounds[-1]["validation"] is not None


class Cutter(Wanderer):
    """Cuts every device, and remembers what crosses."""

    def plan(self, problem, state, observation):
        plan, state = super().plan(problem, state, observation)
        told, zeros = plan.assignments, np.zeros(len(plan.assignments))
        spec = CodecSpec("topk", keep=0.3, bits=4, predict=not problem.work.device_frozen)
        told = replace(
            told, cut=np.ones(len(told), np.int64), prune_heads=zeros, prune_ffn=zeros,
            codecs=(spec,),
        )  # fmt: skip
        return replace(plan, assignments=told), state


@pytest.mark.parametrize("frozen", [False, True])
def test_a_killed_split_run_resumes_to_the_same_bits(tmp_path, frozen):
    choices = {"decider": Cutter(), "upload": TOPK, "work": WorkSpec(device_frozen=frozen)}
    one, other = tmp_path / "whole", tmp_path / "run"
    train(one, **choices)

    def die(record):
        if record["round"] == 1:
            raise Killed

    run, state = make_run(other, **choices)
    with pytest.raises(Killed):
        run_rounds(run, begin(run, state), on_round=die)
    saved = load_checkpoint(other / "checkpoint", identity="me")
    assert any(name.startswith("cut/") for name in saved.engine)
    resume(other, **choices)
    assert_equal_runs(other, one)
    split = read_run(one).rounds[-1]["split"]
    assert (split["gradient_down_bytes"] == 0) == frozen
    assert split["steps"] == 2


def test_ctrl_c_leaves_the_last_finished_round_and_says_how_to_go_on(whole, tmp_path):
    folder = tmp_path / "run"
    run, state = make_run(folder)

    def press(record):
        if record["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError, match=f"after 1 of {ROUNDS} rounds.*--resume {folder}"):
        run_rounds(run, begin(run, state), on_round=press)
    resume(folder)
    assert_equal_runs(folder, whole)


def test_a_finished_run_resumes_to_its_own_end(whole, tmp_path):
    folder = tmp_path / "run"
    train(folder)
    assert resume(folder).rounds == ROUNDS
    assert_equal_runs(folder, whole)


def test_a_run_stops_at_its_target(tmp_path):
    settings = LoopSettings(target=Target("loss", 100.0), stop_at_target=True)
    result = train(tmp_path / "run", loop=settings)
    assert result.rounds == 1
    assert result.results["target_reached"]["round"] == 0


def test_a_target_is_noted_where_the_run_goes_on(tmp_path):
    settings = LoopSettings(target=Target("loss", 100.0, window=2))
    result = train(tmp_path / "run", loop=settings)
    assert (result.rounds, result.results["target_reached"]["round"]) == (ROUNDS, 1)


def test_a_target_that_is_not_measured_is_an_error_of_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match="'accuracy' is not measured on this task"):
        train(tmp_path / "run", loop=LoopSettings(target=Target("accuracy", 0.5)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"metric": "bleu", "value": 1.0}, "got 'bleu'"),
        ({"metric": "loss", "value": float("nan")}, "got nan"),
    ],
)
def test_a_target_out_of_range_is_refused(target, message):
    with pytest.raises(RecipeError, match=message):
        Target(**target)


def test_evaluation_every_other_round_includes_the_last(tmp_path):
    train(tmp_path / "run", loop=LoopSettings(evaluate_every=2))
    seen = [line["validation"] is not None for line in read_run(tmp_path / "run").rounds]
    assert seen == [False, True, True]


def test_a_state_that_was_judged_is_not_judged_again_where_no_bytes_are_left(tmp_path, monkeypatch):
    run, state = make_run(tmp_path / "run", loop=LoopSettings(evaluate_every=2))
    monkeypatch.setattr(
        run.engine, "over_cap",
        lambda plan, state: ("used up" if plan.round else "",) * len(plan.assignments),
    )  # fmt: skip
    run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert [line["counts"]["ok"] > 0 for line in record.rounds] == [True, False, False]
    assert [line["validation"] is not None for line in record.rounds] == [False, True, False]


def test_rounds_that_give_nothing_keep_the_state_until_patience_ends(tmp_path):
    run, state = make_run(tmp_path / "run", rounds=9, learning_rate=1e30, max_grad_norm=0.0,
                          loop=LoopSettings(patience=3))  # fmt: skip
    with pytest.raises(TrainingError, match="no device returned a usable update in 3 rounds"):
        run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert len(record.rounds) == 3
    assert set(record.devices["status"]) == {"refused"}
    kept = load_checkpoint(tmp_path / "run" / "checkpoint", identity="me").state
    assert kept.round == 3
    assert all(torch.equal(kept.adapters[name], state.adapters[name]) for name in state.adapters)


def test_a_round_without_a_device_passes_and_is_recorded(tmp_path):
    nobody = {**FLEET, "devices": [{**FLEET["devices"][0], "availability": 0.0}]}
    result = train(tmp_path / "run", fleet=nobody)
    record = read_run(tmp_path / "run")
    assert result.time_s == 60.0 * ROUNDS
    assert record.rounds[1]["reasons"] == ["no device was available"]
    assert len(record.devices["device"]) == 0


class Blind(Wanderer):
    """Knows nothing, and so never divides."""

    needs = frozenset()

    def init(self, problem):
        assert problem.devices.flops_per_s is None
        assert problem.devices.transmit_power_w is None
        return super().init(problem)

    def plan(self, problem, state, observation):
        assert observation.links is None
        assert problem.devices.memory_bytes is None
        return super().plan(problem, state, observation)

    def divide(self, *_):
        raise AssertionError("a method blind to the channel was shown it")


def test_a_method_sees_only_what_it_asked_for(tmp_path):
    assert train(tmp_path / "run", decider=Blind()).rounds == ROUNDS


class Careless(Wanderer):
    """Plans for devices that are not there."""

    def plan(self, problem, state, observation):
        everyone = replace(observation, available=np.ones(DEVICES, bool))
        return super().plan(problem, state, everyone)


def test_a_plan_for_an_absent_device_is_an_error_of_the_method(tmp_path):
    with pytest.raises(MethodError, match="not available in round"):
        train(tmp_path / "run", decider=Careless())


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
