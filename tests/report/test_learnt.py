"""What the page shows of speeds and rates learnt, from records written by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from airtune.report.learnt import learnt_figures


def run(*rounds):
    devices = {"device": np.array([0, 1]), "name": np.array(["a", "b"], object)}
    return SimpleNamespace(record=SimpleNamespace(rounds=list(rounds), devices=devices))


def learnt(*devices, speed):
    ends = {"low": [0.5 * speed], "middle": [speed], "high": [2.0 * speed]}
    return {"learnt": {"device": list(devices), "speed": ends, "up": ends, "down": ends}}


def test_each_device_stands_with_its_last_value_and_interval():
    found = learnt_figures(run(learnt(0, speed=1.0), {}, learnt(0, speed=0.8)), np.array([0, 1]))
    trace = found["Speeds and rates learnt"][0]["data"][0]
    assert (trace["x"], trace["y"]) == (["a"], [0.8])
    assert trace["error_y"]["array"] == pytest.approx([0.8])
    assert trace["error_y"]["arrayminus"] == pytest.approx([0.4])


def test_a_run_that_learns_nothing_has_no_figure():
    assert learnt_figures(run({}), np.array([0, 1])) == {}
