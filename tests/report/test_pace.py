"""What the page says of a deadline, from records written by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from airtune.report.pace import pace_figures, waiting

NOTES = {
    "deadline_s": 4.0,
    "signal_per_s": 3.0,
    "fixed_signal_per_s": 2.0,
    "worth_steps": 0.9,
    "worth_rank": 0.5,
    "worth_width": 0.2,
    "worth_sd": ((0.1, 0.2, 0.3),),
}


def run(**changes):
    row = {"round": 0, "round_s": 4.0, "notes": NOTES, "validation": {"loss": 1.0}} | changes
    devices = {
        "round": np.zeros(3, int),
        "status": np.array(["ok", "ok", "late"]),
        "finish_s": np.array([4.0, 2.0, np.nan]),
    }
    return SimpleNamespace(record=SimpleNamespace(rounds=[row], devices=devices))


def test_waiting_is_what_is_left_of_a_round_for_those_who_answered():
    assert waiting(run()) == pytest.approx([0.25])


def test_the_captions_say_what_was_gained_and_how_sure_it_is():
    found = pace_figures(run(validation_raw={"loss": 1.2}))
    assert list(found) == [
        "Waiting",
        "Progress per second",
        "Learnt value of an update",
        "Averaged and latest weights",
    ]
    assert "25 % of a round" in found["Waiting"][1]
    assert "was 1.50 times" in found["Progress per second"][1]
    assert "steps^0.90 (± 0.20), rank^0.50 (± 0.40)" in found["Learnt value of an update"][1]
    assert [trace["y"] for trace in found["Averaged and latest weights"][0]["data"]] == [
        [1.0],
        [1.2],
    ]


def test_a_run_without_a_deadline_has_none_of_it():
    assert pace_figures(run(notes={})) == {}
