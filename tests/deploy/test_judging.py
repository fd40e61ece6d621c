"""A model is judged with the tasks that train it: the same figures, and no task of its own."""

import json

import numpy as np
import pytest

from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.records import read_run

NAMES = ["board", "laptop"]


def go(nodes, recipe, folder, clock, **changes):
    there = nodes(NAMES)
    order = Order(recipe(**{"fleet.devices": 2, **changes}), folder, clock=clock, devices=2)
    run = read_run(run_federation(order, there, tell=lambda **event: None))
    kinds = [
        json.loads(message.header)["kind"] for sent in there.mail.sent for message in sent.values()
    ]
    return run, kinds


def test_it_is_the_judgement_of_a_task_of_its_own(nodes, recipe, tmp_path):
    along, kinds = go(nodes, recipe, tmp_path / "along", "real")
    apart, more = go(nodes, recipe, tmp_path / "apart", "replay")
    assert kinds.count("evaluate") == len(NAMES)  # the last model's
    assert more.count("evaluate") == 3 * len(NAMES)
    for mine, theirs in zip(along.rounds, apart.rounds, strict=True):
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-5)
    assert along.results["initial"] == pytest.approx(apart.results["initial"], rel=1e-5)
    assert along.results["validation_best"]["round"] == apart.results["validation_best"]["round"]
    assert (along.devices["judging_s"] > 0).all()


def test_a_round_that_is_not_judged_has_no_judgement(nodes, recipe, tmp_path):
    run, _ = go(nodes, recipe, tmp_path, "real", **{"evaluation.every": 2, "train.rounds": 3})
    judged = [row["validation"] is not None for row in run.rounds]
    assert judged == [False, True, True]
    assert run.rounds[0]["initial"]["loss"] > 0


def test_a_target_is_noticed_with_the_next_tasks(nodes, recipe, tmp_path):
    run, kinds = go(
        nodes,
        recipe,
        tmp_path,
        "real",
        **{"train.rounds": 5, "target.metric": "loss", "target.value": 1e3, "target.stop": True},
    )
    assert run.results["target_reached"]["round"] == 2  # the mean of three
    assert len(run.rounds) == 4
    assert kinds.count("evaluate") == len(NAMES)


def test_a_judgement_that_cannot_be_is_left_out(nodes, recipe, tmp_path):
    there = nodes(NAMES)

    def lie(device, reply):
        said = json.loads(reply.header)
        if device == 1 and "count" in said["figures"]:
            said["figures"]["loss"] = -5.0
        return type(reply)(json.dumps(said).encode(), reply.blobs)

    there.mail.bend = lie
    order = Order(recipe(**{"fleet.devices": 2}), tmp_path, clock="real", devices=2)
    run = read_run(run_federation(order, there, tell=lambda **event: None))
    assert all(row["validation"]["loss"] > 0 for row in run.rounds)


def test_every_second_is_in_a_part(nodes, recipe, tmp_path):
    run, _ = go(nodes, recipe, tmp_path, "real")
    first = run.rounds[0]["measured"]
    assert {"loading_s", "waiting_s", "staging_s", "preparing_s", "plan_s", "tasks_s"} <= set(first)
    assert {"saving_s", "test_s"} <= set(run.results["measured"])
    parts = run.devices["download_s"] + run.devices["judging_s"] + run.devices["compute_s"]
    known = np.isfinite(run.devices["finish_s"])
    assert known.any()
    assert (parts[known] >= 0).all()
