"""Split rounds over gRPC whose devices are processes of their own."""

import signal
import subprocess
import sys
import textwrap

import pytest
from safetensors.torch import load_file

from airtune.plan import WorkSpec
from airtune.split import DevicePart
from airtune.work.jobs import TrainSettings

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")

from airtune.engine.stream import SplitTask, StreamTiming

DEVICE = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from airtune.data import DataSpec, load_federated
from airtune.data.embedded import EMBEDDED_MODEL
from airtune.engine.stream import Connection, Way, run_device
from airtune.model.base import load_base
from airtune.model.state import initial_state
from airtune.plan import Assignment, CodecSpec, Workload, WorkSpec
from airtune.split import DeviceEnd, SplitContext, SplitJob
from airtune.work.jobs import TrainSettings

def world(devices=2):
    base = load_base(EMBEDDED_MODEL, device="cpu")
    data = load_federated(DataSpec(limit=60), tokenizer=base.tokenizer, devices=devices, seed=0)
    workload = Workload(batch=4, tokens=64, local_steps=6, rank=4, lora_targets=("q_proj", "v_proj"))
    jobs = [
        SplitJob(i, Assignment(i, 0.0, 0.0, 4, 1 + i, 1.0, 6, CodecSpec()), data.devices[i].train, 1.0)
        for i in range(devices)
    ]
    return base, initial_state(base, workload, 0), workload, jobs

if __name__ == "__main__":
    target, device, token, out = sys.argv[1:5]
    base, state, workload, jobs = world(int(sys.argv[5]))
    context = SplitContext.of(base, state, settings=TrainSettings(), work=WorkSpec(),
                              workload=workload, seed=0, round=0)
    end = DeviceEnd(context, {0: jobs[int(device)]})
    class Reports(type(end)):
        def learn(self, payload, **part):
            print("gradient", flush=True)
            sys.stdin.readline()
            super().learn(payload, **part)
    end.__class__ = Reports
    part = run_device(end, Connection(Way(target), token, "a run"))
    save_file(part.adapters, out)
"""


@pytest.fixture(scope="module")
def world():
    space = {"__name__": "device"}
    exec(DEVICE, space)  # the devices' processes run this very text
    return space["world"]


@pytest.fixture
def begin(streams, tmp_path):
    """Starts the processes of devices, and ends those that a failed test leaves."""
    started = []

    def start(opened, device, count):
        script = tmp_path / "device.py"
        script.write_text(textwrap.dedent(DEVICE))
        started.append(
            subprocess.Popen(
                [
                    sys.executable,
                    script,
                    f"127.0.0.1:{streams.server.port}",
                    str(device),
                    opened.tokens[device],
                    tmp_path / f"{device}.safetensors",
                    str(count),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def await_gradient(device):
    assert device.stdout.readline() == "gradient\n", f"it ended with {device.wait(60)}"


def let_go(devices):
    for device in devices:
        device.stdin.write("\n" * 6)
        device.stdin.flush()
    for device in devices:
        device.communicate(timeout=900)


def opened_world(streams, world, count):
    base, state, workload, jobs = world(count)
    task = SplitTask(
        "a run",
        0,
        base,
        state,
        tuple(j.row for j in jobs),
        (1.0,) * count,
        TrainSettings(),
        WorkSpec(),
        workload,
        0,
        StreamTiming(window_s=float("inf"), rejoin_s=5.0, join_s=900.0, deadline_s=1800.0),
    )
    return task, jobs, streams.server.open(task)


def parts_in(folder, devices):
    return {
        device: DevicePart(load_file(folder / f"{device}.safetensors"), {}, 6) for device in devices
    }


def test_two_processes_and_a_server_are_one_process(streams, world, begin, tmp_path):
    task, jobs, opened = opened_world(streams, world, 2)
    devices = [begin(opened, device, 2) for device in range(2)]
    let_go(devices)
    outcomes = streams.joined(task, opened.wait(60), parts_in(tmp_path, (0, 1)))
    streams.assert_same_updates(outcomes, streams.alone(task, jobs).outcomes)


def test_a_process_killed_mid_round_leaves_the_rest_right(streams, world, begin, tmp_path):
    task, jobs, opened = opened_world(streams, world, 3)
    devices = [begin(opened, device, 3) for device in range(3)]
    for _ in range(2):  # two steps together, then the third gradient finds device 1 dead
        for device in devices:
            await_gradient(device)
            device.stdin.write("\n")
            device.stdin.flush()
    await_gradient(devices[1])
    devices[1].send_signal(signal.SIGKILL)
    devices[1].wait(10)
    del devices[1]
    let_go(devices)
    result = opened.wait(60)
    outcomes = streams.joined(task, result, parts_in(tmp_path, (0, 2)))
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    alone = streams.alone(task, jobs, drops={1: 2})
    streams.assert_same_updates([outcomes[0], outcomes[2]], [alone.outcomes[0], alone.outcomes[2]])
