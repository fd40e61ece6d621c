"""The process of an agent that works: it holds model, data and the device's state, and does tasks.

    python -m airtune.deploy.agent.worker SETTINGS.json

The settings are written by the agent. The process says `ready` on its standard output once it can
take tasks; then the agent writes tickets to its standard input, a line each, and is answered by an
empty line, or why a task was not done. It ends with the agent. Tasks and answers go over the worker's
own connection to the server.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airtune.deploy.agent.device import Device
    from airtune.deploy.agent.pace import Pacer
    from airtune.wire.channel import Way

READY = "ready"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the agent tells its worker."""

    server: str
    """HOST:PORT."""
    data: str
    name: str = ""
    """What the device calls itself, at a server without keys."""
    key: str | None = None
    """Path of the device's key; None = no TLS."""
    certificate: str | None = None
    authority: str | None = None
    model: str | None = None
    compute: str = "auto"
    memory_bytes: float | None = None
    """Hard limit of the process, set before it starts; None = none."""
    reserve_bytes: float | None = None
    """Memory of the machine that its owner keeps."""
    probe: dict[str, Any] = field(default_factory=dict)
    cache: str | None = None
    """Folder of base models that the server hands out."""

    def save(self, path: Path) -> None:
        """Write them where the worker will read them."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def main() -> None:
    """Do tasks until the agent ends."""
    settings = WorkerSettings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    serve(lambda: _tasks_of(settings))


def serve(prepared: Callable[[], Callable[[str], str]]) -> None:
    """Say `ready`, do what the agent writes, and end with the agent, whatever is being done then.

    Where it cannot, it says why in place of `ready`, and ends.

    Args:
        prepared: returns what does a line's task and returns its answer; may take long.
    """
    # a terminal sends Ctrl-C to both; the agent ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from airtune.errors import AirtuneError

    try:
        do = prepared()
    except AirtuneError as error:
        print(" ".join(str(error).split()), flush=True)  # in place of `ready`
        return
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # whatever prints goes to the agent's own output
        print(READY, file=out, flush=True)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_hear_agent, args=(lines,), name="agent", daemon=True).start()
        while True:
            print(" ".join(do(lines.get()).split()), file=out, flush=True)


def _hear_agent(lines: queue.SimpleQueue[str]) -> None:
    """Put down what the agent writes; where it is gone, nobody else could end this process."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _tasks_of(settings: WorkerSettings) -> Callable[[str], str]:
    """Return what does the tasks of tickets."""
    # heavy imports last, so that a broken setting is told at once
    from airtune.deploy.agent.device import Device, DeviceSettings
    from airtune.deploy.agent.pace import Pacer
    from airtune.deploy.memory import cap_cuda

    if settings.memory_bytes is not None:
        cap_cuda(settings.memory_bytes)
    pacer = Pacer()
    device = Device(
        DeviceSettings(
            data=settings.data,
            model=settings.model,
            compute=settings.compute,
            memory_bytes=_left_bytes(settings),
            probe=settings.probe,
            host=settings.server.rpartition(":")[0],
            cache=None if settings.cache is None else Path(settings.cache),
        ),
        pace=pacer,
        say=_say,
    )
    return lambda line: do_task(device, _way(settings), line, pacer)


def do_task(device: Device, way: Way, line: str, pacer: Pacer) -> str:
    """Fetch the task that a ticket names, do it, and send the answer; return why not, or ""."""
    from dataclasses import replace

    from airtune.deploy.memory import is_out_of_memory
    from airtune.errors import AirtuneError
    from airtune.wire.channel import RUN_KEY, ReusedChannels
    from airtune.wire.post import Ticket
    from airtune.wire.tasks import fetch_task, send_answer

    kept = ReusedChannels()
    try:
        ticket = Ticket.from_json(line)
        way = replace(way, metadata=(*way.metadata, (RUN_KEY, ticket.run)), kept=kept)
        reply = device.handle(fetch_task(way, ticket), way)
        pace = None if reply.rate_bps is None else pacer.at(reply.rate_bps)
        send_answer(way, ticket, reply, pace=pace)
        return ""
    except AirtuneError as error:
        why = str(error)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        why = (
            "out of memory while a task came or its answer went; the device needs a larger --memory"
        )
    finally:
        kept.close()
    _say(why)
    return why


def _way(settings: WorkerSettings) -> Way:
    """Return the way to the server, by the key and certificate of now: they may be renewed."""
    from airtune.deploy.caller import Proof
    from airtune.wire.channel import DEVICE_KEY, Way

    if settings.key is None or settings.certificate is None or settings.authority is None:
        return Way(settings.server, None, ((DEVICE_KEY, settings.name),))
    proof = Proof(Path(settings.authority), Path(settings.key), Path(settings.certificate))
    return Way(settings.server, proof.credentials())


def _say(sentence: str) -> None:
    """Write to the agent's own output, which this process shares."""
    print(sentence, file=sys.stderr, flush=True)


def _left_bytes(settings: WorkerSettings) -> float | None:
    """Return what is left for training, where the owner has said anything about it."""
    if settings.memory_bytes is None and settings.reserve_bytes is None:
        return None
    from airtune.deploy.agent.probe import training_memory_bytes

    return training_memory_bytes(settings.memory_bytes, reserve_bytes=settings.reserve_bytes or 0.0)


if __name__ == "__main__":
    main()
