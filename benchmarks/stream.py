"""A split step over gRPC on a shaped link against its floor, max(compute, bytes / rate).

One device and a server, each a process in a namespace of a test bed whose link is shaped by tc. The
floor takes the rate as asked: headers, acknowledgements and the server's turn are all overhead.

Once with a batch as it is, and once divided into two micro-batches, of which one computes while the
other crosses.

    python -m benchmarks.stream server PARTS     the other end; prints where it is
    python -m benchmarks.stream device PARTS HOST:PORT TOKEN
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

STEPS = 12
GOALS = {1: 2.2, 2: 1.2}
"""Of a step over its floor, by micro-batches: one after the other takes up to twice the larger."""
TURNS_GOAL = 1.15
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
            for parts in GOALS:
                yield from _measured(name, spec, link, parts)
        finally:
            down(spec)


def _measured(name: str, spec: Spec, link: DeviceSpec, parts: int) -> Iterator[Figure]:
    me = [sys.executable, "-m", "benchmarks.stream"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        inside(spec, None, [*me, "server", str(parts)]), stdout=subprocess.PIPE, text=True, cwd=root
    ) as server:
        told = json.loads(server.stdout.readline())
        done = subprocess.run(
            inside(
                spec,
                0,
                [*me, "device", str(parts), f"{SERVER_ADDRESS}:{told['port']}", told["token"]],
            ),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=root,
        )
        compute_s = json.loads(server.stdout.readline())["server_s"]
    seen = json.loads(done.stdout.splitlines()[-1])
    air_s = 8e-6 * (seen["up_bytes"] / link.up_mbps + seen["down_bytes"] / link.down_mbps)
    compute_s += seen["compute_s"]
    text = (
        f"floor {1e3 * max(compute_s, air_s):.0f} ms: air {1e3 * air_s:.0f}, compute "
        f"{1e3 * compute_s:.0f}; measured {1e3 * seen['step_s']:.0f} ms; {name}"
    )
    step_s = seen["step_s"]
    label = f"{name}, {parts} micro-batches" if parts > 1 else name
    yield at_most(
        f"stream.step_over_floor[{label}]", step_s / max(compute_s, air_s), GOALS[parts], text
    )
    if parts == 1:  # it computes, sends and waits in turn
        yield at_most(
            f"stream.step_over_turns[{label}]",
            step_s / (compute_s + air_s),
            TURNS_GOAL,
            "compute + air",
        )


def _world(parts: int) -> tuple:
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
        batch=16,
        tokens=128,
        local_steps=STEPS,
        rank=8,
        lora_targets=("q_proj", "v_proj"),
        micro_batches=parts,
    )
    row = Assignment(0, 0.0, 0.0, 8, 1, 1.0, STEPS, CodecSpec())
    return (
        base,
        initial_state(base, workload, 0),
        workload,
        SplitJob(0, row, data.devices[0].train, 1.0),
    )


def serve(parts: int) -> None:
    """Serve one round."""
    from airtune.engine.stream import SplitTask, StreamServer
    from airtune.model.cut import ServerHalf
    from airtune.plan import WorkSpec
    from airtune.work.jobs import TrainSettings

    base, state, workload, job = _world(parts)
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
        SplitTask(
            "bench", 0, base, state, (job.row,), (1.0,), TrainSettings(), WorkSpec(), workload, 0
        )
    )
    print(json.dumps({"port": server.port, "token": opened.tokens[0]}), flush=True)
    opened.wait()
    print(json.dumps({"server_s": parts * sorted(took)[len(took) // 2]}), flush=True)
    server.close()


def take_part(parts: int, target: str, token: str) -> None:
    """Be the device, and print the median of a step and of its parts."""
    import numpy as np

    from airtune.engine.stream import Connection, Way, run_device
    from airtune.plan import WorkSpec
    from airtune.split import DeviceEnd, SplitContext, StepMessage
    from airtune.work.jobs import TrainSettings

    base, state, workload, job = _world(parts)
    ends, own = [], []

    class Timed(DeviceEnd):
        def send(self, step: int, **part: int) -> dict[int, StepMessage]:
            start = time.perf_counter()
            made = super().send(step, **part)
            if not part["part"]:
                own.append(0.0)
            own[-1] += time.perf_counter() - start
            return made

        def learn(self, gradients: Mapping[int, bytes], **part: int) -> None:
            start = time.perf_counter()
            super().learn(gradients, **part)
            own[-1] += time.perf_counter() - start
            if part["part"] == parts - 1:
                ends.append(time.perf_counter())

    context = SplitContext.of(
        base, state, settings=TrainSettings(), work=WorkSpec(), workload=workload, seed=0, round=0
    )
    end = Timed(context, {0: job})
    part = run_device(end, Connection(Way(target), token, "bench"))
    # the first step finds a cold connection; bytes differ from batch to batch, so means of all
    print(
        json.dumps(
            {
                "step_s": float(np.diff(ends).mean()),
                "compute_s": float(np.median(own)),
                "up_bytes": float(part.up_bytes[1:].mean()),
                "down_bytes": float(part.down_bytes[1:].mean()),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]))
    else:
        take_part(int(sys.argv[2]), *sys.argv[3:])
