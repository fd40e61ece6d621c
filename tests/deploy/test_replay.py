"""The same seed, with the devices in this process or behind messages: the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airtune.recipe import Recipe
from airtune.records import RunRecord

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
        {
            "method.name": "jcpba",
            "method.budget": 0.25,
            "download.kind": "topk",
            "download.keep": 1.0,
            "download.bits": 8,
        },
        {"method.name": "fedspine"},
        {"method.name": "jcpba", "method.budget": 0.25, "train.mend": "least-squares"},
        {"method.name": "fedspine", "train.mend": "least-squares", "method.sparsity": 0.3},
        {
            "method.name": "fedavg-lora",
            "upload.kind": "topk",
            "upload.keep": 0.1,
            "upload.bits": 8,
            "upload.feedback": "true",
            "download.kind": "fp16",
            "train.decay": 0.5,
            "train.server_average": 0.9,
            "train.server_momentum": 0.5,
        },
    ],
    ids=["jcpba", "fedspine", "jcpba-mended", "fedspine-mended", "coded"],
)
def test_same_plans_payloads_and_losses(changes: dict[str, Any], recipe: Any, same: Any) -> None:
    same(recipe(**changes))


def test_whole_and_cut_devices_side_by_side_are_replayed(
    mixed: Any, same: Any, tmp_path: Path
) -> None:
    """Another device would be cut too, if the fleet's server had the memory."""
    devices = same(mixed(tmp_path, cut=-1.5, **{"upload.feedback": "true"})).devices
    assert devices["status"].tolist() == ["ok"] * 6
    assert devices["cut"].tolist() == [0, 1, 0] * 2
    assert (devices["pruned"].reshape(2, 3)[:, [0, 2]] > 0).any()
    for name in ("rank", "upload_codec", "codec", "local_steps"):
        assert len(set(devices[name])) > 1, name
    assert (devices["server_s"].reshape(2, 3)[:, 1] > 0).all()


def test_who_is_asked_at_random_is_the_same_elsewhere(
    mixed: Any, same: Any, tmp_path: Path
) -> None:
    told = mixed(tmp_path, cut=-1.5, **{"method.sampling_rate": 0.4, "train.rounds": 5})
    devices = same(told).devices
    is_left = devices["status"] == "absent"
    assert is_left.any()
    assert all("sampled in" in reason for reason in devices["reason"][is_left])
    assert (devices["upload_bytes"][is_left] == 0).all()
    assert len(devices["device"]) == 15
