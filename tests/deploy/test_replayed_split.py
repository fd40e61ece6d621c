"""On the replayed clock, devices that are cut do elsewhere what they would in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.errors import MethodError

PLANNED = ("device", "cut", "codec", "rank", "share", "local_steps", "status")
PRICED = ("upload_s", "download_s", "compute_s", "finish_s", "upload_bytes", "download_bytes")


@pytest.mark.parametrize(
    "settings",
    [
        {"method.name": "splitlora"},
        {"method.name": "splitfed-v1"},
        {"method.name": "splitfed-v2"},
        {"method.name": "sft", "method.codec": "quantised"},
        {"method.name": "sft", "method.codec": "quantised", "method.predict": True},
        {"method.name": "sft", "method.codec": "none", "method.device_frozen": True},
        {"method.name": "sft", "method.device_frozen": True, "upload.kind": "deadzone"},
        {"method.name": "sft", "upload.kind": "deadzone"},
    ],
)
def test_plans_bytes_and_losses_are_those_of_one_process(
    recipe: Any, alone: Any, replayed: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    told = recipe(**settings)
    here, there = alone(told, tmp_path / "a"), replayed(told, tmp_path / "b")
    assert (here.devices["cut"] > 0).all()
    for name in PLANNED:
        np.testing.assert_array_equal(here.devices[name], there.devices[name], err_msg=name)
    for name in PRICED:  # one process stacks devices that cut alike: last bits cost bytes
        np.testing.assert_allclose(here.devices[name], there.devices[name], rtol=1e-3, err_msg=name)
    for one, other in zip(here.rounds, there.rounds, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-3)
        for name in ("bound_up_bytes", "bound_down_bytes"):
            assert one["split"][name] == pytest.approx(other["split"][name])
        assert one["split"]["beside_up_bytes"] == other["split"]["beside_up_bytes"]


OWN = """
from dataclasses import dataclass, replace
import numpy as np
from airtune.plan import CodecSpec, RoundPlan, whole_model

@dataclass(frozen=True)
class Own:
    needs = frozenset()
    may_cut = True

    def init(self, problem):
        return {}

    def plan(self, problem, state, observation):
        device = np.flatnonzero(observation.available)
        told = whole_model(device, rank=problem.workload.rank, local_steps=2,
                           share=np.full(device.size, 1 / device.size))
        told = replace(told, cut=np.array([1, 2, 1]), rank=problem.workload.rank // np.array([1, 2, 4]),
                       upload_index=(np.arange(3) + observation.round) % 3,
                       uploads=(CodecSpec(), CodecSpec("fp16"), CodecSpec("topk", keep=0.2, bits=4)))
        return RoundPlan(observation.round, told, ("own",) * device.size), state

    def divide(self, problem, state, plan, links, remaining_bytes):
        return plan.assignments.share

    def learn(self, problem, state, results):
        return state
"""


def test_ranks_and_codecs_of_their_own_are_replayed(
    recipe: Any, alone: Any, replayed: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    told = recipe(**{"method.name": f"{tmp_path}/own.py:Own", "upload.feedback": "true"})
    here, there = alone(told, tmp_path / "a"), replayed(told, tmp_path / "b")
    assert len(set(here.devices["rank"])) == len(set(here.devices["upload_codec"])) == 3
    for name in (*PLANNED, "upload_codec"):
        np.testing.assert_array_equal(here.devices[name], there.devices[name], err_msg=name)
    for name in PRICED:
        np.testing.assert_allclose(here.devices[name], there.devices[name], rtol=1e-3, err_msg=name)
    for one, other in zip(here.rounds, there.rounds, strict=True):
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-3)


def test_without_a_stream_a_cut_is_refused(recipe: Any, replayed: Any, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="serves no split rounds"):
        replayed(recipe(**{"method.name": "splitlora"}), tmp_path, may_serve=False)


def test_devices_that_vanish_cannot_be_replayed(recipe: Any, replayed: Any, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"fleet\.dropout"):
        replayed(recipe(**{"method.name": "splitlora", "fleet.dropout": 0.9}), tmp_path)
