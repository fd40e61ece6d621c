"""Real devices keep to their bytes of a month: messages, judgements, steps of splits, the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.data import EMBEDDED_MODEL
from airtune.deploy.agent import fetch
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.base_download import BLOCK_BYTES, Block
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import CheckpointError, InfeasibleError, MismatchError
from airtune.records import read_run
from airtune.wire import traffic_budget
from airtune.wire.message import Message
from airtune.wire.traffic_budget import MONTH_S, TRAFFIC_FILE, TrafficBudget


class Weighed:
    """What each device was really sent, and sent itself."""

    def __init__(self, nodes: Any) -> None:
        self.mail = nodes.mail
        self.back: dict[int, int] = {}
        nodes.mail.bend = self.weigh

    def weigh(self, device: int, reply: Message) -> Message:
        self.back[device] = self.back.get(device, 0) + reply.size_bytes
        return reply

    def of(self, device: int) -> int:
        sent = sum(messages[device].size_bytes for messages in self.mail.sent if device in messages)
        return sent + self.back.get(device, 0)


@pytest.fixture
def server() -> Any:
    serving = StreamServer()
    yield serving
    serving.close()


def _run(recipe: Any, nodes: Any, root: Path, server: Any = None, **order: Any) -> Path:
    serve = None if server is None else lambda: (server, f":{server.port}")
    settings = DeviceSettings(data="recipe", compute="cpu", host="127.0.0.1", cache=root / "cache")
    for number in range(len(nodes.names)):
        nodes.mail.devices.setdefault(number, Device(settings))
    return run_federation(
        Order(recipe, root / "runs", devices=len(nodes.names), serve=serve, **order),
        nodes,
        tell=lambda **event: None,
    )


def _used(folder: Path) -> list[float]:
    return list(json.loads((folder / TRAFFIC_FILE).read_text())["used"])


QUICK = {"train.local_steps": 1, "data.limit": 30, "train.rounds": 6}
CAP = 3_200_000


def test_a_run_ends_before_any_device_exceeds_its_month(
    recipe: Any, nodes: Any, tmp_path: Path
) -> None:
    fleet = nodes(["a", "b"])
    weighed = Weighed(fleet)
    limited = recipe(**QUICK | {"limits.device_bytes_per_month": CAP})
    with pytest.raises(InfeasibleError, match="the next month begins in 30 days"):
        _run(limited, fleet, tmp_path)
    [folder] = (tmp_path / "runs").iterdir()
    record = read_run(folder)
    assert 1 <= len(record.rounds) < 6
    for device, used in enumerate(_used(folder)):
        assert weighed.of(device) == used <= CAP
    before = _used(folder)
    with pytest.raises(InfeasibleError):
        _run(limited, fleet, tmp_path, resume=folder)
    # going on forgets nothing, and costs what the attempt did
    assert all(now >= then for now, then in zip(_used(folder), before, strict=True))
    assert all(weighed.of(device) == used <= CAP for device, used in enumerate(_used(folder)))


def test_without_a_cap_nothing_is_written(recipe: Any, nodes: Any, tmp_path: Path) -> None:
    folder = _run(recipe(**QUICK | {"train.rounds": 1}), nodes(["a"]), tmp_path)
    assert not (folder / TRAFFIC_FILE).exists()


def test_the_next_month_goes_on(recipe: Any, nodes: Any, tmp_path: Path) -> None:
    limited = recipe(**QUICK | {"limits.device_bytes_per_month": CAP})
    fleet = nodes(["a"])
    with pytest.raises(InfeasibleError):
        _run(limited, fleet, tmp_path)
    [folder] = (tmp_path / "runs").iterdir()
    done = len(read_run(folder).rounds)
    document = json.loads((folder / TRAFFIC_FILE).read_text())
    document["began_s"] -= MONTH_S
    (folder / TRAFFIC_FILE).write_text(json.dumps(document))
    _run(limited, fleet, tmp_path, resume=folder)
    assert done < len(read_run(folder).rounds) == 6


def test_a_device_that_would_send_too_much_does_not(
    recipe: Any, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import airtune.engine.remote.real as engines

    monkeypatch.setattr(engines, "most_upload_bytes", lambda problem, told: np.zeros(len(told)))
    monkeypatch.setattr("airtune.engine.remote.devices.scores_bytes", lambda shape: 1 << 20)
    limited = recipe(**QUICK | {"limits.device_bytes_per_month": 1e9, "train.rounds": 1})
    record = read_run(_run(limited, nodes(["a"]), tmp_path))
    assert list(record.devices["status"]) == ["failed"]
    assert "were set aside for it" in record.devices["reason"][0]


@pytest.mark.parametrize(
    "method",
    [
        {"method.name": "splitlora", "train.rounds": 1},
        {
            "method.name": "sft",
            "method.codec": "none",
            "method.device_frozen": True,
            "train.rounds": 2,
        },
    ],
)
def test_steps_of_a_split_round_count(
    recipe: Any, nodes: Any, server: Any, tmp_path: Path, method: dict[str, Any]
) -> None:
    split = recipe(**QUICK | method | {"limits.device_bytes_per_month": 1e9})
    fleet = nodes(["a", "b"])
    weighed = Weighed(fleet)
    folder = _run(split, fleet, tmp_path, server)
    record = read_run(folder)
    assert set(record.devices["status"]) == {"ok"}
    rounds = [row["split"] for row in record.rounds]
    both = ("activation_up_bytes", "gradient_down_bytes", "listed_down_bytes")
    crossed = sum(steps[name] for steps in rounds for name in both)
    assert all(steps["listed_down_bytes"] > 0 for steps in rounds[1:])
    if "method.device_frozen" in method:  # its device parts need not come back
        assert all(steps["adapter_up_bytes"] < 10_000 for steps in rounds)
    over = sum(_used(folder)) - sum(weighed.of(device) for device in (0, 1))
    assert crossed <= over <= crossed + 2 * 64 * 5 * len(rounds)
    tight = split.model_copy(
        update={
            "limits": split.limits.model_copy(
                update={"device_bytes_per_month": max(_used(folder)) * 0.9}
            )
        }
    )
    with pytest.raises(InfeasibleError):
        _run(tight, fleet, tmp_path / "tight", server)


def test_the_base_counts_and_is_not_served_beyond_the_cap(
    recipe: Any, nodes: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "is_here", lambda recipe: False)
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, base)
    staged = {**QUICK, "train.rounds": 1, "model.source": str(base), "model.stage": "server"}
    fleet = nodes(["a"])
    weighed = Weighed(fleet)
    folder = _run(
        recipe(**staged, **{"limits.device_bytes_per_month": 1e8}), fleet, tmp_path / "1", server
    )
    size = sum(path.stat().st_size for path in (tmp_path / "1" / "cache").rglob("*.*"))
    assert _used(folder)[0] - weighed.of(0) == pytest.approx(size, rel=0.01)
    with pytest.raises(MismatchError, match="do not hold the base model"):
        _run(
            recipe(**staged, **{"limits.device_bytes_per_month": "1MB"}),
            nodes(["a"]),
            tmp_path / "2",
            server,
        )
    [tight] = (tmp_path / "2" / "runs").rglob(TRAFFIC_FILE)
    assert json.loads(tight.read_text())["used"][0] <= 1e6


def test_a_fetch_is_written_down_in_blocks_and_to_the_byte_in_the_end(tmp_path: Path) -> None:
    ours = TrafficBudget(2.5 * BLOCK_BYTES, 1, file=tmp_path / TRAFFIC_FILE)
    block, sent, files = Block(ours, 0), 0, set()
    while block.take(1 << 19):
        sent += 1 << 19
        files.add((tmp_path / TRAFFIC_FILE).read_bytes())
        assert sent <= 2.5 * BLOCK_BYTES - ours.left_bytes[0] <= 2.5 * BLOCK_BYTES
    assert sent == 2.5 * BLOCK_BYTES
    assert len(files) == 2 + 8  # what is less than a block goes chunk by chunk
    block = Block(TrafficBudget(9 * BLOCK_BYTES, 1, file=tmp_path / TRAFFIC_FILE), 0)
    assert block.take(100)
    block.give_back()
    assert _used(tmp_path) == [sent + 100]


def test_messages_to_all_are_written_down_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, written = TrafficBudget(100.0, 3, file=tmp_path / TRAFFIC_FILE), []
    monkeypatch.setattr(traffic_budget, "write_atomically", lambda path, text: written.append(text))
    with ours.together():
        assert [ours.take(device, 60.0) for device in (0, 1, 2, 0)] == [True, True, True, False]
        assert not written
    with ours.together():
        assert not ours.take(0, 60.0)
    [text] = written
    assert json.loads(text)["used"] == [60.0, 60.0, 60.0]


def test_a_traffic_budget_survives_its_process_and_a_clock_that_is_set_back(tmp_path: Path) -> None:
    now, path = [1000.0], tmp_path / TRAFFIC_FILE
    ours = TrafficBudget(100.0, 2, file=path, clock=lambda: now[0])
    ours.begin_round(0.0)
    assert ours.take(0, 60.0)
    assert not ours.take(0, 60.0)
    now[0] = 1.0
    again = TrafficBudget(100.0, 2, file=path, clock=lambda: now[0])
    again.begin_round(0.0)
    assert again.left_bytes.tolist() == [40.0, 100.0]
    now[0] = 1000.0 + 2 * MONTH_S
    again.begin_round(0.0)
    again.begin_round(0.0)
    assert again.left_bytes.tolist() == [100.0, 100.0]
    path.write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        TrafficBudget(100.0, 2, file=path)
