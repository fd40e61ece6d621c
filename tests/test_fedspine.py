"""FedSpine and its baselines on the ordinary loop: pruned exactly, saved, resumed, replayed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.errors import MethodError
from airtune.fleet import load_fleet
from airtune.loop import LoopSettings, Run, begin, run_rounds
from airtune.methods import build_method
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.state import initial_state
from airtune.plan import Observation, Problem, Results, Workload
from airtune.records import RunWriter, read_run
from airtune.work.jobs import TrainSettings

DEVICES, ROUNDS = 5, 4
FLEET = {
    "name": "test",
    "links": {"wifi": {"kind": "dedicated", "capacity": {"up_mbps": 1, "down_mbps": 2}}},
    "devices": [{"name": "dev", "count": DEVICES, "gflops_per_s": {"low": 0.01, "high": 0.1},
                 "memory_gib": 1, "power_w": 5,
                 "modes": {"factors": [1.0, 0.5], "every_rounds": 2}}],
}  # fmt: skip
QUICK = {"cooldown": 0.25, "prune_every": 2}
PRUNED = {
    "fedspine": {**QUICK, "min_rank": 1, "form": "published"},
    "loraprune": {"cooldown": 0.25},
    "apt": {"min_rank": 1},
    "llm-pruner": {},
    "fluctuation-prune": {},
    "magnitude-prune": {},
    "random-prune": {},
}
DENSE = ("hetlora", "flexlora", "flora")


def base_model(family):
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "bert":
            return base_of(BertForSequenceClassification(BertConfig(**sizes, num_labels=3)))
        return base_of(LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)))


def examples(draw, base):
    tokens = tuple(draw.integers(3, 9, 10) for _ in range(5))
    return Sequences(tokens, draw.integers(0, 3, 5) if base.shape.labels else tokens)


def make_run(folder, name, settings, *, family="llama", rounds=ROUNDS, resume=None):
    base = base_model(family)
    draw = np.random.default_rng(0)
    devices = tuple(DeviceData(examples(draw, base), examples(draw, base)) for _ in range(DEVICES))
    data = FederatedData(
        devices, examples(draw, base), ("a", "b", "c")[: base.shape.labels], {}, {}
    )
    fleet = load_fleet(FLEET, seed=1)
    workload = Workload(
        batch=2,
        tokens=10,
        local_steps=2,
        rank=4,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
        trains_head=base.shape.labels > 0,
    )
    problem = Problem(base.shape, fleet.profiles(np.full(DEVICES, 5)), workload, rounds, seed=3)
    method = build_method(name, settings)
    engine = local_engine(
        fleet,
        problem,
        base,
        data,
        needs=method.decider.needs,
        work=method.work,
        settings=EngineSettings(train=TrainSettings(learning_rate=0.01), participation=0.8),
    )
    writer = (
        RunWriter.create(folder, {"name": "test"})
        if resume is None
        else RunWriter.resume(folder, resume)
    )
    run = Run(method, problem, engine, writer, "me", LoopSettings())
    return run, initial_state(base, workload, 3)


def train(folder, name, settings, **choices):
    run, state = make_run(folder, name, settings, **choices)
    return run, run_rounds(run, begin(run, state))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder, "fedspine", PRUNED["fedspine"])


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("name", PRUNED)
def test_every_pruning_method_ends_exactly_at_the_same_sparsity(tmp_path, name, family):
    run, result = train(tmp_path, name, PRUNED[name], family=family)
    shape, kept = run.problem.shape, result.state.kept
    sizes = {(len(group), len(channel)) for group, channel in zip(*zip_kept(kept), strict=True)}
    assert len(sizes) == 1, "every block keeps the same number, so that plain tools can load it"
    groups, channels = sizes.pop()
    pruned = float(shape.pruned_fraction(1 - groups / shape.kv_groups, 1 - channels / shape.ffn))
    assert pruned == pytest.approx(0.5, abs=1.0 / shape.ffn)
    if family == "bert":
        assert groups == shape.kv_groups
    elif name in ("loraprune", "llm-pruner"):
        assert groups < shape.kv_groups, "these prune in proportion, as published"
    last = read_run(tmp_path).devices
    final = last["pruned"][last["round"] == ROUNDS - 1]
    np.testing.assert_allclose(final, pruned)
    assert np.isfinite(result.results["test"]["loss"])


def zip_kept(kept):
    return kept.groups, kept.channels


@pytest.mark.parametrize("name", DENSE)
def test_methods_of_unlike_ranks_run_dense_and_differ_in_rank(tmp_path, name):
    _, result = train(tmp_path, name, {"min_rank": 1})
    assert result.state.kept is None
    ranks = read_run(tmp_path).devices["rank"]
    assert len(set(ranks[DEVICES:])) > 1
    assert np.isfinite(result.results["test"]["loss"])


def test_no_device_ever_gets_back_what_it_pruned(whole):
    record = read_run(whole[0])
    for device in range(DEVICES):
        pruned = record.devices["pruned"][record.devices["device"] == device]
        assert np.all(np.diff(pruned) >= 0)
    assert whole[2].state.devices


def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, tmp_path):
    run, state = make_run(tmp_path, "fedspine", PRUNED["fedspine"])

    def stop(record):
        if record["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(Exception, match="interrupted after"):
        run_rounds(run, begin(run, state), on_round=stop)
    saved = load_checkpoint(tmp_path / "checkpoint", identity="me")
    assert saved.rounds == 2
    assert saved.state.devices
    run, _ = make_run(tmp_path, "fedspine", PRUNED["fedspine"], resume=saved.rounds)
    run_rounds(run, saved)
    for name in ("tensors.safetensors", "arrays.npz"):
        place = Path("checkpoint") / f"round-{ROUNDS:06d}" / name
        assert (tmp_path / place).read_bytes() == (whole[0] / place).read_bytes()
    ours, theirs = read_run(tmp_path), read_run(whole[0])
    assert {**ours.results, "measured": None} == {**theirs.results, "measured": None}
    assert [row["reasons"] for row in ours.rounds] == [row["reasons"] for row in theirs.rounds]


def results_of(record, round):
    """Return what the method saw of a round, from the records alone."""
    rows = record.devices["round"] == round
    column = {name: values[rows] for name, values in record.devices.items()}
    names = (
        "device",
        "download_s",
        "compute_s",
        "upload_s",
        "finish_s",
        "download_bytes",
        "upload_bytes",
        "flops",
        "loss_first",
        "loss_last",
        "samples",
        "peak_bytes",
        "energy_j",
    )
    return Results(
        **{name: column[name] for name in names},
        status=column["status"].astype(str),
        importance=np.asarray(column["importance"], np.float64),
    )


def test_the_bandit_replays_from_the_records(whole):
    folder, run, _ = whole
    record = read_run(folder)
    decider, state = run.method.decider, run.method.decider.init(run.known)
    for row in record.rounds:
        results = results_of(record, row["round"])
        there = np.zeros(DEVICES, bool)
        there[results.device] = True
        seen = Observation(row["round"], row["start_s"], None, there, None)
        plan, state = decider.plan(run.known, state, seen)
        rows = record.devices["round"] == row["round"]
        assert list(plan.reasons) == record.devices["reason"][rows].tolist()
        np.testing.assert_array_equal(plan.assignments.rank, record.devices["rank"][rows])
        np.testing.assert_array_equal(plan.assignments.prune_ffn, record.devices["prune_ffn"][rows])
        state = decider.learn(run.known, state, results)
    saved = load_checkpoint(folder / "checkpoint", identity="me").method
    for name, value in state.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(saved[name]))


def test_a_bandit_of_another_fleet_is_refused(whole):
    _, run, _ = whole
    state = run.method.decider.init(run.known)
    state = {**state, "level": np.zeros(3, np.int64)}
    seen = Observation(0, 0.0, None, np.ones(DEVICES, bool), None)
    with pytest.raises(MethodError, match="a fleet of 3 devices, this one has 5"):
        run.method.decider.plan(run.known, state, seen)


def test_a_malformed_update_is_refused_and_the_run_goes_on(tmp_path):
    run, state = make_run(tmp_path, "fedspine", PRUNED["fedspine"])
    inner = run.engine

    class Liar:
        """One device's indices are out of range in every round."""

        def __getattr__(self, name):
            return getattr(inner, name)

        def execute(self, *arguments, **named):
            done = inner.execute(*arguments, **named)
            first, *rest = done.updates
            kept = replace(first.kept, channels=(np.array([0, 999]),) * 2)
            return replace(done, updates=(replace(first, kept=kept), *rest))

    run_rounds(replace(run, engine=Liar()), begin(run, state))
    record = read_run(tmp_path)
    for row in record.rounds:
        assert row["counts"]["refused"] == 1
    refused = record.devices["status"] == "refused"
    assert all("below 128" in reason for reason in record.devices["reason"][refused])
