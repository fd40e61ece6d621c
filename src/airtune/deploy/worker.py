"""The long-lived process of an agent: it holds model, data and the device's state, and does tasks.

    python -m airtune.deploy.worker SETTINGS.json

The settings are written by the agent. The process says `ready` on its standard output once it can
take tasks; the agent watches for that, and ends a start that hangs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

READY = "ready"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the agent tells its worker."""

    socket: str
    token_file: str
    data: str
    model: str | None = None
    compute: str = "auto"
    memory_bytes: float | None = None
    """Hard limit of the process, set before it starts; None = none."""
    reserve_bytes: float | None = None
    """Memory of the machine that its owner keeps."""
    probe: dict[str, Any] = field(default_factory=dict)
    host: str = ""
    """Of the server."""
    authority: str | None = None
    """Path of the certificate that its stream is checked against; None = no TLS."""
    cache: str | None = None
    """Folder of base models that the server hands out."""

    def save(self, path: Path) -> None:
        """Write them where the worker will read them."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def main() -> None:
    """Serve tasks until the process is ended."""
    settings = WorkerSettings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    token = Path(settings.token_file).read_bytes()
    # heavy imports last, so that a broken setting is told at once
    from airtune.deploy.device import Device, DeviceSettings
    from airtune.deploy.hatch import serve
    from airtune.deploy.memory import cap_cuda
    from airtune.deploy.pace import Pacer

    if settings.memory_bytes is not None:
        cap_cuda(settings.memory_bytes)
    device = Device(
        DeviceSettings(
            data=settings.data, model=settings.model, compute=settings.compute,
            memory_bytes=_left_bytes(settings),
            probe=settings.probe, host=settings.host,
            authority=None if settings.authority is None else Path(settings.authority),
            cache=None if settings.cache is None else Path(settings.cache),
        ),
        pace=Pacer(), say=_say,
    )  # fmt: skip
    print(READY, flush=True)
    serve(Path(settings.socket), token, device.handle)


def _say(sentence: str) -> None:
    """Write to the agent's own output, which this process shares."""
    print(sentence, file=sys.stderr, flush=True)


def _left_bytes(settings: WorkerSettings) -> float | None:
    """Return what is left for training, where the owner has said anything about it."""
    if settings.memory_bytes is None and settings.reserve_bytes is None:
        return None
    from airtune.deploy.probe import training_memory_bytes

    return training_memory_bytes(settings.memory_bytes, reserve_bytes=settings.reserve_bytes or 0.0)


if __name__ == "__main__":
    main()
