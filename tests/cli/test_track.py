"""Trackers are told each round's figures by their own packages, or said to be missing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airtune.cli.track import tracked
from airtune.errors import MissingExtraError, RecipeError
from airtune.run import Watch

ROUND = {"round": 2, "round_s": 1.5, "train_loss": None, "validation": {"loss": 0.5}}
FIGURES = {"round/round_s": 1.5, "validation/loss": 0.5}


class Told(list):
    """Notes what it was called with."""

    def __call__(self, *values, **named):
        self.append((*values, *named.values()))
        return SimpleNamespace(log=self)


def one_round(name, folder):
    plain = Told()
    watch = tracked(Watch(on_round=plain), name)
    watch.on_folder(folder)
    watch.on_round(ROUND)
    assert plain == [(ROUND,)], "who watched before is still told"


def test_mlflow_gets_a_run_named_after_the_folder(monkeypatch):
    told, named = Told(), Told()
    stub = SimpleNamespace(set_experiment=Told(), start_run=named, log_metrics=told)
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    one_round("mlflow", Path("runs/läufe 1"))
    assert named == [("läufe 1",)]
    assert told == [(FIGURES, 2)]


def test_wandb_goes_on_with_a_resumed_run(monkeypatch):
    init = Told()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    one_round("wandb", Path("runs/a"))
    (begun, logged) = init
    assert set(begun) == {"airtune", "a", "allow", "runs/a"}
    assert logged == (FIGURES, 2)


def test_tensorboard_writes_beside_the_records(tmp_path):
    pytest.importorskip("tensorboard")
    one_round("tensorboard", tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_names_what_to_install(name, monkeypatch):
    module = {"tensorboard": "torch.utils.tensorboard"}.get(name, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'airtune\[{name}\]'"):
        tracked(Watch(), name)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(RecipeError, match="tensorboard, mlflow, wandb, got 'neptun'"):
        tracked(Watch(), "mlflow,neptun")
