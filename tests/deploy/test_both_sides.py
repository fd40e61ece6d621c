"""What does not fit is said in one sentence at the server and on the device."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.message import VERSION
from airtune.records import read_run
from airtune.wire.message import Message

Bend = Callable[[Message], Message]


def test_a_device_that_comes_back_with_other_data_is_told_and_reported(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    told: list[str] = []
    there = nodes(["a", "b"])
    first = Device(DeviceSettings(data="recipe", compute="cpu"))
    back = Device(DeviceSettings(data="recipe", compute="cpu"), say=told.append)

    def handle(message: Message) -> Message:
        said = json.loads(message.header)
        if said["kind"] == "join":
            return first.handle(message)
        said["setup"]["recipe"] = said["setup"]["recipe"].replace('"limit":60', '"limit":50')
        return back.handle(replace(message, header=json.dumps(said).encode()))

    odd = Device(DeviceSettings(data="recipe", compute="cpu"))
    odd.handle = handle  # type: ignore[assignment, method-assign]
    there.mail.devices[1] = odd
    order = Order(recipe(**{"train.rounds": 1, "train.local_steps": 1}), tmp_path, devices=2)
    run = read_run(run_federation(order, there, tell=lambda **event: None))
    assert run.devices["status"].tolist() == ["ok", "failed"]
    assert "other data" in run.devices["reason"][1]
    assert "other data" in told[0]


def _with(old: str, new: str) -> Bend:
    return lambda message: replace(
        message, header=message.header.replace(old.encode(), new.encode())
    )


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
    odd.handle = lambda message: handle(bend(message))  # type: ignore[method-assign]
    there.mail.devices[1] = odd
    order = Order(recipe(**{"train.rounds": 1, "train.local_steps": 1}), tmp_path, devices=2)
    run_federation(order, there, tell=lambda **event: at_server.append(event))
    [refused] = [event["refused"] for event in at_server if "refused" in event]
    assert says in refused
    assert refused in on_device[0]
