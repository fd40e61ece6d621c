"""A split step over gRPC on a shaped link against its floor, max(compute, bytes / rate).

One device and a server, each a process in a namespace of a test bed whose link is shaped by tc. The
floor takes the rate as asked: headers, acknowledgements and the server's turn are all overhead.

    python -m benchmarks.stream server           the other end; prints where it is
    python -m benchmarks.stream device HOST:PORT TOKEN
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from testbed.network import SERVER_ADDRESS, down, inside, up, why_not
from testbed.spec import DeviceSpec, Spec

from benchmarks.figure import Figure, at_most

STEPS, GOAL = 12, 1.15
LINKS = {
    "20 Mbit/s": DeviceSpec("device", 20, 20),
    "8/20 Mbit/s, 20 ms": DeviceSpec("device", 8, 20, delay_ms=20),
}


def run() -> Iterator[Figure]:
    """Measure both links; say why not where no test bed can be made."""
    reason = why_not()
    if reason:
        print(f"stream: skipped, {reason}", file=sys.stderr)
        return
    for name, link in LINKS.items():
        spec = Spec("bench", (link,))
        down(spec)
        up(spec)
        try:
            yield from _measured(name, spec, link)
        finally:
            down(spec)


def _measured(name: str, spec: Spec, link: DeviceSpec) -> Iterator[Figure]:
    me = [sys.executable, "-m", "benchmarks.stream"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        inside(spec, None, [*me, "server"]), stdout=subprocess.PIPE, text=True, cwd=root
    ) as server:
        told = json.loads(server.stdout.readline())
        done = subprocess.run(
            inside(spec, 0, [*me, "device", f"{SERVER_ADDRESS}:{told['port']}", told["token"]]),
            stdout=subprocess.PIPE, text=True, check=True, cwd=root,
        )  # fmt: skip
        compute_s = json.loads(server.stdout.readline())["server_s"]
    seen = json.loads(done.stdout.splitlines()[-1])
    air_s = 8e-6 * (seen["up_bytes"] / link.up_mbps + seen["down_bytes"] / link.down_mbps)
    compute_s += seen["compute_s"]
    text = (
        f"floor {1e3 * max(compute_s, air_s):.0f} ms: air {1e3 * air_s:.0f}, compute "
        f"{1e3 * compute_s:.0f}; measured {1e3 * seen['step_s']:.0f} ms; {name}"
    )
    step_s = seen["step_s"]
    yield at_most(f"stream.step_over_floor[{name}]", step_s / max(compute_s, air_s), GOAL, text)
    # one device computes, sends and waits in turn; only several devices fill each other's gaps
    yield at_most(f"stream.step_over_turns[{name}]", step_s / (compute_s + air_s), GOAL, "compute + air")  # fmt: skip


def _world() -> tuple:
    import torch

    from airtune.data import DataSpec, load_federated
    from airtune.data.embedded import EMBEDDED_MODEL
    from airtune.model.base import load_base
    from airtune.model.state import initial_state
    from airtune.plan import Assignment, CodecSpec, Workload
    from airtune.split import SplitJob

    torch.set_num_threads(1)
    base = load_base(EMBEDDED_MODEL, device="cpu")
    data = load_federated(DataSpec(limit=200), tokenizer=base.tokenizer, devices=1, seed=0)
    workload = Workload(
        batch=16, tokens=128, local_steps=STEPS, rank=8, lora_targets=("q_proj", "v_proj")
    )
    row = Assignment(0, 0.0, 0.0, 8, 1, 1.0, STEPS, CodecSpec())
    return base, initial_state(base, workload, 0), workload, SplitJob(0, row, data.devices[0].train, 1.0)  # fmt: skip


def serve() -> None:
    """Serve one round."""
    from airtune.engine.stream import SplitTask, StreamServer
    from airtune.model.cut import ServerHalf
    from airtune.plan import WorkSpec
    from airtune.work.train import TrainSettings

    base, state, workload, job = _world()
    took, step = [], ServerHalf.step

    def timed(half: ServerHalf, *args: object, **more: object) -> object:
        start = time.perf_counter()
        try:
            return step(half, *args, **more)
        finally:
            took.append(time.perf_counter() - start)

    ServerHalf.step = timed
    server = StreamServer("0.0.0.0:0")
    opened = server.open(
        SplitTask("bench", 0, base, state, (job.row,), (1.0,), TrainSettings(), WorkSpec(), workload, 0)
    )  # fmt: skip
    print(json.dumps({"port": server.port, "token": opened.tokens[0]}), flush=True)
    opened.wait()
    print(json.dumps({"server_s": sorted(took)[len(took) // 2]}), flush=True)
    server.close()


def take_part(target: str, token: str) -> None:
    """Be the device, and print the median of a step and of its parts."""
    import numpy as np

    from airtune.engine.stream import Connection, Way, run_device
    from airtune.plan import WorkSpec
    from airtune.split import DeviceEnd, Message, SplitContext
    from airtune.work.train import TrainSettings

    base, state, workload, job = _world()
    ends, own = [], []

    class Timed(DeviceEnd):
        def send(self, step: int) -> dict[int, Message]:
            start = time.perf_counter()
            made = super().send(step)
            own.append(time.perf_counter() - start)
            return made

        def learn(self, gradients: Mapping[int, bytes]) -> None:
            start = time.perf_counter()
            super().learn(gradients)
            ends.append(time.perf_counter())
            own[-1] += ends[-1] - start

    context = SplitContext.of(base, state, settings=TrainSettings(), work=WorkSpec(),
                              workload=workload, seed=0, round=0)  # fmt: skip
    end = Timed(context, {0: job})
    part = run_device(end, Connection(Way(target), token, "bench"))
    # the first step finds a cold connection; bytes differ from batch to batch, so means of all
    print(json.dumps({
        "step_s": float(np.diff(ends).mean()), "compute_s": float(np.median(own)),
        "up_bytes": float(part.up_bytes[1:].mean()), "down_bytes": float(part.down_bytes[1:].mean()),
    }))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve()
    else:
        take_part(*sys.argv[2:])
