"""No method, codec or cut ever takes more of a device's month than the cap allows."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.codec import encode
from airtune.cost.most import most_payload_bytes
from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.errors import CheckpointError, RecipeError, TrainingError
from airtune.fleet import load_fleet
from airtune.loop import LoopSettings, Run, begin, run_rounds
from airtune.methods import build_method, list_methods
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.state import initial_state
from airtune.plan import CodecSpec, Problem, Workload
from airtune.recipe import load_recipe
from airtune.records import RunWriter, read_run
from airtune.wire import traffic_budget as month
from airtune.wire.traffic_budget import TrafficBudget
from airtune.work.jobs import TrainSettings

DEVICES, ROUNDS = 4, 5
QUICK = "fedavg-lora"
"""Those of the gate; the others are for `make check-all`."""
METHODS = sorted(name for name, row in list_methods().items() if row.settings is not None)
FLEET = {
    "name": "test",
    "links": {"cell": {"kind": "shared", "slot_s": 0.1, "radio": {"up_bandwidth_mhz": 0.2}}},
    "devices": [{"name": "dev", "count": DEVICES, "gflops_per_s": [0.01, 0.05], "memory_gib": 1,
                 "power_w": 5, "availability": 0.9}],
}  # fmt: skip
CODECS = (
    CodecSpec(),
    CodecSpec("fp16"),
    CodecSpec("topk", keep=0.1, bits=4),
    CodecSpec("deadzone", step=0.75),
)


@pytest.fixture(scope="module")
def base():
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return base_of(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    parts = [tuple(draw.integers(3, 9, 10) for _ in range(5)) for _ in range(2 * DEVICES + 1)]
    parts = [Sequences(part, part) for part in parts]
    devices = tuple(DeviceData(parts[index], parts[DEVICES + index]) for index in range(DEVICES))
    return FederatedData(devices, parts[-1], (), {}, {})


def make_run(folder, base, data, name, cap, *, upload=CODECS[0], participation=1.0, resume=None):
    fleet = load_fleet(FLEET, seed=1)
    workload = Workload(
        batch=2,
        tokens=12,
        local_steps=1,
        rank=4,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
        upload=upload,
    )
    method = build_method(name)
    problem = Problem(
        base.shape,
        fleet.profiles(np.full(DEVICES, 5)),
        workload,
        ROUNDS,
        seed=3,
        work=method.work,
        device_bytes_per_month=cap,
        server_flops_per_s=fleet.server.flops_per_s,
    )
    engine = local_engine(
        fleet,
        problem,
        base,
        data,
        needs=method.decider.needs,
        work=method.work,
        settings=EngineSettings(train=TrainSettings(), participation=participation),
    )
    if resume is None:
        writer = RunWriter.create(folder, {"name": "test"})
    else:
        writer = RunWriter.resume(folder, resume)
    loop = LoopSettings(evaluate_every=0, patience=ROUNDS + 1)
    return Run(method, problem, engine, writer, "me", loop), initial_state(base, workload, 3)


def train(folder, *made, **choices):
    run, state = make_run(folder, *made, **choices)
    try:
        run_rounds(run, begin(run, state))
    finally:
        run.engine.close()
    return read_run(folder)


def used(record, month_s, *, edge):
    """Return each device's most bytes of a month, a round being of the month of one of its edges."""
    months = {}
    for row in record.rounds:
        rows = record.devices["round"] == row["round"]
        setup = row.get("setup", {}).get("each_bytes", 0.0)
        for device, down, up, steps in zip(
            *(
                record.devices[name][rows]
                for name in ("device", "download_bytes", "upload_bytes", "local_steps")
            ),
            strict=True,
        ):
            key = int(row[edge] // month_s), int(device)
            months[key] = months.get(key, 0.0) + down + up + (setup if steps else 0.0)
    return max(months.values(), default=0.0)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in METHODS],
)
def test_no_method_exceeds_the_cap(name, base, data, tmp_path_factory, monkeypatch) -> None:
    @settings(
        max_examples=3,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        cap=st.floats(1e4, 2e5),
        month_s=st.floats(0.2, 30.0),
        upload=st.sampled_from(CODECS),
        participation=st.sampled_from((0.5, 1.0)),
    )
    def check(cap, month_s, upload, participation):
        monkeypatch.setattr(month, "MONTH_S", month_s)
        folder = tmp_path_factory.mktemp("run") / "run"
        record = train(folder, base, data, name, cap, upload=upload, participation=participation)
        for edge in ("start_s", "end_s"):
            assert used(record, month_s, edge=edge) <= cap
        out = record.devices["local_steps"] == 0
        assert (record.devices["status"][out] == "absent").all()
        assert all("bytes of this month" in text for text in record.devices["reason"][out])

    check()


def test_a_cap_that_holds_everything_changes_nothing(base, data, tmp_path) -> None:
    free = train(tmp_path / "free", base, data, "jcpba", None)
    wide = train(tmp_path / "wide", base, data, "jcpba", 1e12)
    for name, column in free.devices.items():
        same = np.array_equal(column, wide.devices[name], equal_nan=column.dtype == float)
        assert same, name


def test_a_month_that_is_used_up_is_waited_for(base, data, tmp_path) -> None:
    record = train(tmp_path / "run", base, data, "fedavg-lora", 60e3)
    ended = [row for row in record.rounds if row["counts"]["ok"] == 0]
    assert ended
    assert ended[0]["end_s"] % month.MONTH_S == 0.0
    later = record.rounds[ended[0]["round"] + 1]
    assert later["counts"]["ok"] > 0


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_resumed_run_knows_what_was_used(base, data, tmp_path, rounds) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    made = (base, data, "jcpba", 150e3)
    train(whole, *made)
    run, state = make_run(cut, *made)
    steps = []

    def stop(record):
        steps.append(record)
        if len(steps) == rounds:
            raise MemoryError  # dies after its checkpoint

    with pytest.raises(MemoryError):
        run_rounds(run, begin(run, state), on_round=stop)
    saved = load_checkpoint(cut / "checkpoint", identity="me")
    assert {name for name in saved.engine if name.startswith("month/")}
    again, _ = make_run(cut, *made, resume=saved.rounds)
    run_rounds(again, saved)
    ours, theirs = read_run(whole), read_run(cut)
    for name, column in ours.devices.items():
        same = np.array_equal(column, theirs.devices[name], equal_nan=column.dtype == float)
        assert same, name
    last = f"round-{ROUNDS:06d}/arrays.npz"
    assert (whole / "checkpoint" / last).read_bytes() == (cut / "checkpoint" / last).read_bytes()


def test_a_cap_below_one_round_ends_the_run_with_a_sentence(base, data, tmp_path) -> None:
    run, state = make_run(tmp_path / "run", base, data, "fedavg-lora", 1.0)
    run = replace(run, settings=replace(run.settings, patience=2))
    with pytest.raises(TrainingError, match="device_bytes_per_month"):
        run_rounds(run, begin(run, state))


def test_who_was_told_too_much_is_asked_again_and_takes_no_place(base, data, tmp_path) -> None:
    run, _ = make_run(tmp_path / "run", base, data, "fedavg-lora", 1e5, participation=0.5)
    run.engine._limits.traffic_budget.faults(np.array([0, 1]), np.array([1e9, 1e9]))
    asked = np.stack([run.engine.observe(number, 0.0).available for number in range(40)])
    assert asked.any(0).all()
    assert asked[:, :2].sum(1).max() == 1
    assert asked[:, 2:].sum(1).max() == 1
    run.engine.close()


@given(
    elements=st.integers(1, 5000),
    seed=st.integers(0, 99),
    scale=st.floats(1e-3, 1e3),
    spec=st.sampled_from(
        (
            *CODECS,
            CodecSpec("topk", keep=0.01, bits=8),
            CodecSpec("topk", keep=1.0, bits=2),
            CodecSpec("deadzone", step=0.01),
        )
    ),
)
@settings(max_examples=150, deadline=None)
def test_no_payload_exceeds_what_was_promised(elements, seed, scale, spec) -> None:
    draw = np.random.default_rng(seed)
    values = (scale * draw.standard_cauchy((elements, 1))).clip(-6e4, 6e4).astype(np.float32)
    assert len(encode(values, spec, draw)) <= most_payload_bytes(elements, spec)


def test_what_spans_two_months_counts_in_both() -> None:
    ours = TrafficBudget(100.0, 2)
    ours.begin_round(month.MONTH_S - 1.0)
    ours.spend(np.array([0]), np.array([80.0]))
    ours.begin_round(month.MONTH_S + 1.0)
    assert ours.left_bytes.tolist() == [20.0, 100.0]
    ours.begin_round(2 * month.MONTH_S)
    assert ours.left_bytes.tolist() == [100.0, 100.0]


def test_a_snapshot_of_other_devices_is_refused() -> None:
    with pytest.raises(CheckpointError, match="are there"):
        TrafficBudget(1.0, 3).restore(TrafficBudget(1.0, 2).snapshot())


@pytest.mark.parametrize("value", ["much", "-3MB", "0", "true", "[1]", ".inf"])
def test_a_cap_that_is_none_is_refused(value) -> None:
    with pytest.raises(RecipeError, match=r"limits\.device_bytes_per_month"):
        load_recipe(None, overrides=[f"limits.device_bytes_per_month={value}"])


def test_a_cap_reads_as_people_write_it() -> None:
    recipe = load_recipe(None, overrides=["limits.device_bytes_per_month=1.5 MiB"])
    assert recipe.limits.device_bytes_per_month == 1.5 * 2**20
    assert load_recipe(recipe.plain()).digest() == recipe.digest() != load_recipe(None).digest()
