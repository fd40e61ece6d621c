"""The same seed, with the devices in this process or behind messages: the same run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airtune.calibrate import store
from airtune.plan import CodecSpec, Measurements
from airtune.plan.rounds_tables import (
    CodecRounds,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
)
from airtune.recipe import Recipe
from airtune.records import RunRecord
from airtune.run import build_pieces, choose_method
from airtune.run.measurement import table_path, tables_of

ALTERNATING = """
from dataclasses import replace
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import CodecSpec

class Alternating(WholeEqual):
    def plan(self, problem, state, observation):
        plan, state = super().plan(problem, state, observation)
        menu = (CodecSpec("topk", keep=0.1, bits=4), CodecSpec(), CodecSpec("fp16"))
        specs = [menu[(place + plan.round) % 3] for place in range(len(plan.assignments))]
        told = plan.assignments.coded_as(specs, CodecSpec())
        return replace(plan, assignments=told), state
"""


@pytest.fixture
def same(alone: Any, replayed: Any, weights: Any, tmp_path: Path) -> Callable[[Recipe], RunRecord]:
    """Runs a recipe both ways and compares all that both record; returns the replayed run."""

    def compare(recipe: Recipe) -> RunRecord:
        here, there = alone(recipe, tmp_path / "here"), replayed(recipe, tmp_path / "there")
        for name, column in here.devices.items():
            np.testing.assert_array_equal(column, there.devices[name], err_msg=name)
        for one, other in zip(here.rounds, there.rounds, strict=True):
            for figure in ("train_loss", "upload_bytes", "download_bytes", "round_s"):
                assert one[figure] == other[figure], figure
            assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], abs=1e-6)
        mine, its = weights(here), weights(there)
        assert mine.keys() == its.keys()
        assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())
        return there

    return compare


def test_codecs_that_change_hands_are_replayed_with_what_they_owe(
    recipe: Any, same: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(ALTERNATING)
    told = recipe(**{"method.name": f"{tmp_path}/own.py:Alternating", "upload.feedback": "true"})
    assert len(set(same(told).devices["upload_codec"])) == 3


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"method.name": "jcpba", "method.budget": 0.25, "download.kind": "topk",
                      "download.keep": 1.0, "download.bits": 8}, marks=pytest.mark.slow),
        pytest.param({"method.name": "fedspine"}, marks=pytest.mark.slow),
        {"method.name": "fedavg-lora", "upload.kind": "topk", "upload.keep": 0.1,
         "upload.bits": 8, "upload.feedback": "true", "download.kind": "fp16",
         "train.decay": 0.5, "train.server_average": 0.9, "train.server_momentum": 0.5},
    ],
    ids=["jcpba", "fedspine", "coded"],
)  # fmt: skip
def test_same_plans_payloads_and_losses(changes: dict[str, Any], recipe: Any, same: Any) -> None:
    same(recipe(**changes))


def _link(up_mbps: float) -> dict[str, Any]:
    return {"kind": "dedicated", "capacity": {"up_mbps": up_mbps, "down_mbps": 50}}


MIXED = {
    "name": "mixed",
    "server": {"gflops_per_s": 20, "memory_gib": 0.008},
    "links": {"fast": _link(50), "slow": _link(1), "fair": _link(4)},
    "devices": [
        {"name": "strong", "link": "fast", "gflops_per_s": 20, "memory_gib": 1, "power_w": 5},
        {"name": "far", "link": "slow", "gflops_per_s": 20, "memory_gib": 1, "power_w": 5},
        {"name": "small", "link": "fair", "gflops_per_s": 5, "memory_gib": 0.004, "power_w": 5},
    ],
}
"""The small one's memory holds the first block and no slice that it may be told, the server's the rest
of the model for one device: where another could be cut too, that would be worth it."""


def _priced(recipe: Recipe) -> Recipe:
    """Store what the knobs are taken to cost, so that each is worth having on some device."""
    chosen, base = choose_method(recipe), build_pieces(recipe).assets.base
    coded, cuts = CodecSpec("topk", keep=0.1, bits=4), range(1, base.shape.blocks)
    costs = Measurements(
        base.fingerprint, "assumed", cut=-1.5,
        pruning=(PrunedRounds(0.0, 0.0), PrunedRounds(0.15, 0.02), PrunedRounds(0.3, 0.5)),
        ranks=(RankRounds(2, 0.6), RankRounds(4, 0.05), RankRounds(8, 0.0)),
        codecs=tuple(CodecRounds(cut, CodecSpec("deadzone"), 0.02) for cut in cuts),
        uploads=(UploadRounds(CodecSpec(), 0.0), UploadRounds(coded, 0.4)),
        steps=(StepRounds(1, 0.3), StepRounds(2, 0.0), StepRounds(4, -0.5)),
    )  # fmt: skip
    for table in tables_of(chosen):
        store(table_path(recipe, chosen, table), costs)
    return recipe


def test_whole_and_cut_devices_side_by_side_are_replayed(
    recipe: Any, same: Any, tmp_path: Path
) -> None:
    told = recipe(**{
        "method.name": "auto", "method.knobs": "[prune, rank, upload, cut, codec, share, steps]",
        "method.max_prune": 0.3, "fleet.source": json.dumps(MIXED), "output": str(tmp_path),
        "upload.feedback": "true",
    })  # fmt: skip
    devices = same(_priced(told)).devices
    assert devices["status"].tolist() == ["ok"] * 6
    assert devices["cut"].tolist() == [0, 0, 1] * 2
    assert (devices["pruned"].reshape(2, 3)[:, :2] > 0).any()
    for name in ("rank", "upload_codec", "codec", "local_steps"):
        assert len(set(devices[name])) > 1, name
    assert (devices["server_s"].reshape(2, 3)[:, 2] > 0).all()
