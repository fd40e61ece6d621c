"""Faults against expectations, over the whole server and its devices: the run ends right or says why.

What a device may do to a split round is in `tests/engine/test_stream_hostile.py`; what happens to real
processes, in `tests/chaos`.
"""

import datetime
import json
import os
import subprocess
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest

from airtune.codec import frame, plain
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import ConnectionFailedError, StorageError
from airtune.records import read_run
from airtune.wire.message import Message, Response

NAMES = ["board", "laptop", "phone"]
CULPRIT, ROUND = 1, 1


def forged(reply, *, header=None, blobs=None):
    """Return a reply with other contents and a header that fits them."""
    said = json.loads(reply.header) | (header or {})
    named = dict(zip([row[0] for row in said["blobs"]], reply.blobs, strict=True)) | (blobs or {})
    said["blobs"] = [(name, len(body), zlib.crc32(body)) for name, body in named.items()]
    return Message(json.dumps(said).encode(), tuple(named.values()))


def each_number(reply, value):
    """Return a reply whose payloads hold one value throughout; no honest codec would make some."""
    said, blobs = json.loads(reply.header), {}
    for (name, *_), body in zip(said["blobs"], reply.blobs, strict=True):
        shape = frame.unpack(body, max_elements=1 << 24).frame.shape
        tensor = np.full(shape, value, np.float32)
        blobs[name] = frame.pack(plain.to_frame(tensor, np.float32, kind=0))
    return forged(reply, blobs=blobs)


class Replays:
    """Keeps the first training reply and gives it again in the next round."""

    def __init__(self):
        self.kept = None

    def __call__(self, reply):
        self.kept, old = self.kept or reply, self.kept
        return old or reply


FAULTS = {
    "a NaN": (lambda reply: each_number(reply, np.nan), "refused"),
    "an infinity": (lambda reply: each_number(reply, np.inf), "refused"),
    "another device's identity": (lambda reply: forged(reply, header={"device": 0}), "refused"),
    "another round": (lambda reply: forged(reply, header={"round": 0}), "refused"),
    "another ticket": (lambda reply: forged(reply, header={"ticket": "guess"}), "refused"),
    "a truncated blob": (
        lambda reply: replace(reply, blobs=(reply.blobs[0][:-9], *reply.blobs[1:])), "refused"),
    "a truncated header": (
        lambda reply: replace(reply, header=reply.header[: len(reply.header) // 2]), "refused"),
    "a blob too few": (lambda reply: replace(reply, blobs=reply.blobs[:-1]), "refused"),
    "a blob that is no payload": (
        lambda reply: forged(
            reply, blobs={json.loads(reply.header)["blobs"][0][0]: bytes(100)}
        ), "refused"),
}  # fmt: skip


def go(nodes, recipe, folder, *, resume=None, clock="replay", **changes):
    order = Order(recipe(**changes), folder, resume=resume, clock=clock, devices=len(NAMES))
    return run_federation(order, nodes, tell=lambda **event: None)


def is_training(reply, round):
    said = json.loads(reply.header)
    return said["kind"] == "train" and said["round"] == round


def statuses(run):
    table = run.devices
    return {
        (r, d): s for r, d, s in zip(table["round"], table["device"], table["status"], strict=True)
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_device_that_lies_is_refused_alone(nodes, recipe, tmp_path, fault):
    bend, expected = FAULTS[fault]
    there = nodes(NAMES)

    def lie(device, reply):
        return bend(reply) if device == CULPRIT and is_training(reply, ROUND) else reply

    there.mail.bend = lie
    run = read_run(go(there, recipe, tmp_path))
    found = statuses(run)
    assert found.pop((ROUND, CULPRIT)) == expected
    assert set(found.values()) == {"ok"}
    assert len(run.rounds) == 2
    assert np.isfinite(run.results["test"]["loss"])


def test_a_reply_of_an_earlier_round_is_refused(nodes, recipe, tmp_path):
    there, replays = nodes(NAMES), Replays()

    def again(device, reply):
        said = json.loads(reply.header)
        return replays(reply) if device == CULPRIT and said["kind"] == "train" else reply

    there.mail.bend = again
    assert statuses(read_run(go(there, recipe, tmp_path)))[ROUND, CULPRIT] == "refused"


def test_a_huge_update_is_bounded_where_that_is_asked(nodes, recipe, tmp_path):
    def huge(device, reply):
        lies = device == CULPRIT and is_training(reply, 0)
        return each_number(reply, 1e6) if lies else reply

    losses = {}
    for clip in (0.0, 1.0):
        there = nodes(NAMES)
        there.mail.bend = huge
        run = read_run(go(there, recipe, tmp_path / f"{clip}", **{"protection.clip_norm": clip}))
        losses[clip] = run.results["test"]["loss"]
    honest = read_run(go(nodes(NAMES), recipe, tmp_path / "honest")).results["test"]["loss"]
    assert losses[1.0] == pytest.approx(honest, rel=0.25)
    assert losses[0.0] is None or losses[0.0] > 1.4 * honest


def test_a_device_that_is_gone_for_a_round_comes_back(nodes, recipe, tmp_path):
    there = nodes(NAMES)
    send = there.mail.send

    def without(messages, *, deadline_s, more=None):
        is_round = any(
            json.loads(message.header)["round"] == 0
            and json.loads(message.header)["kind"] == "train"
            for message in messages.values()
        )
        there.mail.absent = {CULPRIT} if is_round else set()
        return send(messages, deadline_s=deadline_s, more=more)

    there.mail.send = without
    found = statuses(read_run(go(there, recipe, tmp_path)))
    assert found[0, CULPRIT] != "ok"
    assert found[1, CULPRIT] == "ok"


def test_an_update_lost_on_its_way_costs_that_device_its_round_alone(nodes, recipe, tmp_path):
    def lose(device, reply):
        if device == CULPRIT and is_training(reply, ROUND):
            raise ConnectionFailedError("this device left while it worked")
        return reply

    there = nodes(NAMES)
    there.mail.bend = lose
    run = read_run(go(there, recipe, tmp_path, clock="real"))
    found = statuses(run)
    assert found.pop((ROUND, CULPRIT)) == "absent"
    assert set(found.values()) == {"ok"}
    lost = [
        device
        for device, status in zip(run.devices["reason"], run.devices["status"], strict=True)
        if status == "absent"
    ]
    assert lost == ["this device left while it worked"]
    assert run.results["test"]["loss"] > 0


def fleet_of(*gflops_per_s):
    return {
        "name": "uneven",
        "links": {"line": {"kind": "dedicated", "capacity": {"up_mbps": 50, "down_mbps": 50}}},
        "devices": [
            {
                "name": f"d{place}",
                "link": "line",
                "gflops_per_s": speed,
                "memory_gib": 4,
                "power_w": 5,
            }
            for place, speed in enumerate(gflops_per_s)
        ],
    }


def test_a_device_20_times_slower_misses_the_deadline_and_the_run_goes_on(nodes, recipe, tmp_path):
    found = {}
    for slowdown in (1, 20):
        uneven = fleet_of(0.2, 0.2 / slowdown, 0.2)
        run = read_run(
            go(
                nodes(NAMES),
                recipe,
                tmp_path / f"{slowdown}",
                deadline_s=15.0,
                **{"fleet.source": json.dumps(uneven)},
            )
        )
        found[slowdown] = statuses(run)
        assert len(run.rounds) == 2
        assert run.results["test"]["loss"] > 0
    assert set(found[1].values()) == {"ok"}
    late = {key for key, status in found[20].items() if status == "late"}
    assert late == {(0, CULPRIT), (1, CULPRIT)}


def test_nobody_waits_for_a_late_device_beyond_the_deadline(nodes, recipe, tmp_path):
    there, waits_s = nodes(NAMES), []
    send = there.mail.send

    def slow(messages, *, deadline_s, more=None):
        kinds = {json.loads(message.header)["kind"] for message in messages.values()}
        if kinds <= {"join"}:
            return send(messages, deadline_s=deadline_s, more=more)
        waits_s.append(deadline_s)
        back = dict(
            send({d: x for d, x in messages.items() if d != CULPRIT}, deadline_s=deadline_s)
        )
        return back | {CULPRIT: Response(None, deadline_s, "not back in time", is_late=True)}

    there.mail.send = slow
    run = read_run(go(there, recipe, tmp_path, clock="real", deadline_s=77.0))
    assert set(waits_s) == {77.0}
    found = statuses(run)
    assert {found.pop((round, CULPRIT)) for round in range(2)} == {"late"}
    assert set(found.values()) == {"ok"}


def test_a_clock_that_is_wrong_by_days_changes_nothing(nodes, recipe, tmp_path, monkeypatch):
    """A device's replies are the same whatever its clock says, and so is the run."""
    right = read_run(go(nodes(NAMES), recipe, tmp_path / "right"))
    there, clock, asked = nodes(NAMES), time.time, []

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(clock() - 5 * 86400, tz)

    make = there.transport

    def transport(locate):
        mail = make(locate)
        handle = mail.devices[CULPRIT].handle

        def skewed(message):
            asked.append(message)
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda: clock() - 5 * 86400)
                patch.setattr(datetime, "datetime", Wrong)
                return handle(message)

        mail.devices[CULPRIT].handle = skewed
        return mail

    there.transport = transport
    wrong = read_run(go(there, recipe, tmp_path / "wrong"))
    assert asked
    for name, column in right.devices.items():
        np.testing.assert_array_equal(column, wrong.devices[name], err_msg=name)
    assert [row["train_loss"] for row in wrong.rounds] == [
        row["train_loss"] for row in right.rounds
    ]
    assert wrong.results["test"] == right.results["test"]


class KilledError(BaseException):
    """The server's process ends here."""


def test_a_server_that_is_killed_resumes_to_the_same_end(nodes, recipe, tmp_path):
    whole = read_run(go(nodes(NAMES), recipe, tmp_path / "whole"))
    there = nodes(NAMES)

    def kill(device, reply):
        if is_training(reply, ROUND):
            raise KilledError
        return reply

    there.mail.bend = kill
    with pytest.raises(KilledError):
        go(there, recipe, tmp_path / "cut")
    [folder] = (tmp_path / "cut").iterdir()
    there.mail.bend = lambda device, reply: reply
    run = read_run(go(there, recipe, tmp_path / "cut", resume=folder))
    assert [row["train_loss"] for row in run.rounds] == [row["train_loss"] for row in whole.rounds]
    assert run.results["test"]["loss"] == whole.results["test"]["loss"]


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("a full disk is made with a small tmpfs, as root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_refusal_and_the_run_goes_on_once_there_is_room(
    nodes, recipe, disk, tmp_path
):
    whole = read_run(go(nodes(NAMES), recipe, tmp_path / "whole"))
    there, filler = nodes(NAMES), disk / "filler"

    def fill(device, reply):
        if is_training(reply, ROUND):
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        return reply

    there.mail.bend = fill
    with pytest.raises(StorageError, match=r"disk|space"):
        go(there, recipe, disk)
    filler.unlink()
    there.mail.bend = lambda device, reply: reply
    [folder] = disk.iterdir()
    run = read_run(go(there, recipe, disk, resume=folder))
    assert [row["train_loss"] for row in run.rounds] == [row["train_loss"] for row in whole.rounds]
    assert run.results["test"]["loss"] == whole.results["test"]["loss"]


def test_false_seconds_are_believed_as_far_as_the_server_waited(nodes, mixed, tmp_path):
    """In mixed rounds: one that is cut claims a year, another one that it needs no time at all."""
    there, server = nodes(["far", "small", "strong"]), StreamServer()
    claims_s = {0: 1e-300, 1: 3e7}

    def lie(device, reply):
        said = json.loads(reply.header)
        if said["kind"] != "train" or device not in claims_s:
            return reply
        claimed_s = claims_s[device]
        return forged(
            reply,
            header={
                "spent": said["spent"] | {"compute_s": claimed_s},
                "figures": said["figures"] | {"stepping_s": claimed_s}
                if device == 1
                else said["figures"],
            },
        )

    there.mail.bend = lie
    told = mixed(tmp_path / "costs", cut=9.0, **{"train.rounds": 4})
    order = Order(told, tmp_path, devices=3, serve=lambda: (server, f"127.0.0.1:{server.port}"))
    run = read_run(run_federation(order, there, tell=lambda **event: None))
    server.close()
    assert set(statuses(run).values()) == {"ok"}
    devices = run.devices
    assert (devices["compute_s"] <= devices["finish_s"]).all()
    assert set(devices["name"][devices["cut"] > 0]) == {"small"}
    assert np.isfinite([row["predicted_s"] for row in run.rounds]).all()
