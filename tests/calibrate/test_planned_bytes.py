"""What a plan expects to cross is what crosses, once it was measured."""

import dataclasses

import numpy as np
import pytest

from airtune.calibrate.measured import from_header
from airtune.cost.payload import upload_bytes
from airtune.cost.split import split_cost
from airtune.plan import CodecSpec, whole_model
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import build_pieces, run_recipe

TINY = [
    "data.limit=80",
    "data.test_limit=10",
    "data.max_length=64",
    "fleet.devices=3",
    "data.partition=iid",
    "train.rounds=3",
    "train.local_steps=3",
    "train.per_device_train_batch_size=4",
    "threads=1",
    "upload.kind=deadzone",
]


def planned(recipe):
    """Return problem and plan of a run's every device and round, and its records."""
    record = read_run(run_recipe(recipe, reports=False).folder)
    problem = build_pieces(recipe).problem
    return problem.with_measurements(from_header(record.header)), record


def test_a_split_round_sends_within_a_tenth_of_what_was_planned(tmp_path):
    recipe = load_recipe(
        None,
        overrides=[
            *TINY,
            f"output={tmp_path}",
            "method.name=sft",
            "split.rounds=2",
            "split.devices=2",
            "method.quality_budget=0.9",
            "split.codecs=[{kind: deadzone, step: 0.75}]",
        ],
    )
    problem, record = planned(recipe)
    columns = record.devices
    told = dataclasses.replace(
        whole_model(np.arange(3), rank=problem.workload.rank, local_steps=3, share=np.ones(3)),
        cut=columns["cut"][:3].astype(int),
        codecs=(CodecSpec("deadzone", step=0.75),),
    )
    cost = split_cost(problem, told)
    real = {
        name: [row["split"][name] for row in record.rounds] for name in record.rounds[0]["split"]
    }
    up, down = 3 * cost.activation_bytes.sum(), 3 * cost.gradient_bytes.sum()
    assert up == pytest.approx(np.mean(real["activation_up_bytes"]), rel=0.1)
    assert down == pytest.approx(np.mean(real["gradient_down_bytes"]), rel=0.1)
    assert 3 * cost.beside_bytes.sum() == pytest.approx(np.mean(real["beside_up_bytes"]), rel=0.1)
    assert cost.adapter_up_bytes.sum() == pytest.approx(np.mean(real["adapter_up_bytes"]), rel=0.1)


def test_a_pruned_round_sends_within_a_tenth_of_what_was_planned(tmp_path):
    recipe = load_recipe(
        None,
        overrides=[
            *TINY,
            f"output={tmp_path}",
            "method.name=jcpba",
            "calibration.rounds=2",
            "calibration.devices=2",
            "calibration.budgets=[0.1]",
        ],
    )
    problem, record = planned(recipe)
    columns = record.devices
    told = dataclasses.replace(
        whole_model(np.arange(3), rank=problem.workload.rank, local_steps=3, share=np.ones(3)),
        prune_heads=columns["prune_heads"][:3],
        prune_ffn=columns["prune_ffn"][:3],
    )
    sent = upload_bytes(problem.shape, problem.workload, told).sum()
    assert sent == pytest.approx(columns["upload_bytes"].reshape(3, 3).sum(1).mean(), rel=0.1)
