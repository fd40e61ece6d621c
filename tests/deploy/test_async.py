"""Asynchronous rounds over devices elsewhere: on the replayed clock as here, refused on the real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.errors import RecipeError
from airtune.records import read_run
from airtune.run import run_recipe

ASKED = {"train.async_buffer": 1, "train.rounds": 3, "train.local_steps": 1, "data.limit": 40}


def test_devices_elsewhere_arrive_as_those_here(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    asked = recipe(**ASKED)
    run_recipe(asked, folder=tmp_path / "here", reports=False)
    order = Order(asked, tmp_path / "there", devices=3, clock="replay")
    folder = run_federation(order, nodes(["a", "b", "c"]), tell=lambda **event: None)
    pairs = list(zip(read_run(tmp_path / "here").rounds, read_run(folder).rounds, strict=True))
    assert len(pairs) == 3
    for here, there in pairs:
        assert there["end_s"] == pytest.approx(here["end_s"])
        assert there["buffered"] == here["buffered"]
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)


def test_the_real_clock_is_refused(recipe: Callable[..., Any], nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.async_buffer is for the virtual clock"):
        run_federation(Order(recipe(**ASKED), tmp_path), nodes(["a"]), tell=lambda **event: None)
    assert not list(tmp_path.rglob("run.json"))
