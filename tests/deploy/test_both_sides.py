"""What does not fit is said in one sentence at the server and on the device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.device import Device, DeviceSettings
from airtune.deploy.federation import Order, run_federation
from airtune.engine.message import VERSION
from airtune.wire.envelope import Envelope

Bend = Callable[[Envelope], Envelope]


def _with(old: str, new: str) -> Bend:
    return lambda letter: replace(letter, header=letter.header.replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (_with(f'"version":"{VERSION}"', '"version":"99.0"'), "written by airtune 99.0"),
        (_with('\\"local_steps\\":', '\\"stochastic_steps\\":'), "recipe cannot be read here"),
    ],
    ids=["version", "recipe"],
)
def test_a_mismatch_is_named_on_both_sides(
    bend: Bend, says: str, recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    on_device: list[str] = []
    at_server: list[dict[str, Any]] = []
    there = nodes(["a", "b"])
    odd = Device(DeviceSettings(data="recipe", compute="cpu"), say=on_device.append)
    handle = odd.handle
    odd.handle = lambda letter: handle(bend(letter))  # type: ignore[method-assign]
    there.mail.devices[1] = odd
    order = Order(recipe(**{"train.rounds": 1, "train.local_steps": 1}), tmp_path, devices=2)
    run_federation(order, there, tell=lambda **event: at_server.append(event))
    [refused] = [event["refused"] for event in at_server if "refused" in event]
    assert says in refused
    assert refused in on_device[0]
