"""What the knobs cost, from the command line."""

import json

import pytest

from airtune.cli.calibrate import _lines
from airtune.methods.contract import sample_measurements


def test_what_is_measured_is_stored_and_shown_again(place, airtune):
    words = ["calibrate", "tiny.yaml", "split.rounds=1", "split.devices=2", "--tables", "cut"]
    code, out, _ = airtune(*words, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["cut"] is not None
    assert not found["pruning"]
    assert not list(place.glob("runs/cache/*.partial"))
    code, out, err = airtune(*words)
    assert code == 0
    assert "splitting the model needs" in out
    assert "calibrating" not in err, "it was stored"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--tables", "cut,prune"],
            "--tables takes pruning, ranks, codecs, cut, uploads, steps, or all, got 'prune'",
        ),
        ([], "fedavg-lora uses no measured costs; name tables"),
    ],
)
def test_what_cannot_be_measured_is_refused(place, airtune, words, said):
    code, _, err = airtune("calibrate", "tiny.yaml", *words)
    assert code == 3
    assert said in err


def test_costs_are_told_in_times_the_rounds():
    lines = list(_lines(sample_measurements(8)))
    assert "pruning 30% of the weights on average needs 1.11 times the rounds" in lines
    assert "rank 4 instead of 8 needs 1.11 times the rounds" in lines
    assert "splitting the model needs 0.90 times the rounds" in lines
    assert any(line.startswith("coding with deadzone 2 needs 1.12") for line in lines)
