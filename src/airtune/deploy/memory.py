"""A memory cap that is kept: what a worker may take, the least that makes sense, and its start.

On the CPU the cap is RLIMIT_DATA: a job over it dies with an allocator's error that can be caught
and told. RLIMIT_AS counts reserved addresses and fails at import; a control group kills without a
word. Under what the imports take, a process was seen to die or to hang, so such a cap is refused
beforehand, and a start that does not report in time is ended.

On CUDA the same cap is torch's fraction of the device's memory.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from airtune.errors import DeploymentError
from airtune.units import MIB, format_bytes

READY = b"ready"
"""The line by which a worker says, on its standard output, that it has started."""
START_TIMEOUT_S = 120.0
MARGIN_BYTES = 48 * MIB
"""Above the imports: threads' stacks and the allocator's pools."""

_IMPORTS = (
    "import torch, transformers, peft, airtune.work.train, airtune.data, airtune.engine.message"
)
_MEASURE = f"""{_IMPORTS}
torch.ones(64, 64) @ torch.ones(64, 64)
for line in open("/proc/self/status"):
    if line.startswith("VmData"):
        print(int(line.split()[1]) * 1024)
"""


@cache
def floor_bytes() -> int:
    """Return the least cap under which a worker can start here: imports, one product, a margin.

    Measured once, in a process of its own; takes a few seconds.

    Raises:
        DeploymentError: if that process cannot run.
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT_S,
        env=lean_environment(),
    )
    if done.returncode or not done.stdout.strip().isdecimal():
        raise DeploymentError(
            "the memory that the imports take could not be measured: "
            f"{done.stderr.strip()[-300:] or 'no figure'}; caps need Linux and /proc"
        )
    return int(done.stdout) + MARGIN_BYTES


def available_bytes() -> float:
    """Return the memory of the machine that nobody uses.

    Raises:
        DeploymentError: where the system does not say.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    raise DeploymentError("/proc/meminfo has no MemAvailable; name the memory with --memory")


def check_cap(cap_bytes: float) -> None:
    """Refuse a cap under which no worker can start.

    Raises:
        DeploymentError: with the floor.
    """
    floor = floor_bytes()
    if cap_bytes < floor:
        raise DeploymentError(
            f"a memory cap of {format_bytes(cap_bytes)} is under the {format_bytes(floor)} that a "
            "worker takes before it trains anything; raise it, or leave the device out"
        )


def lean_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which memory is given back and arenas are few.

    Every thread may reserve an arena of 64 MB of data that is never used, and a cap counts it.
    """
    return {
        **(os.environ if base is None else base),
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }


def capped(command: Sequence[str], cap_bytes: float) -> list[str]:
    """Return the command under a cap; the shell sets it and becomes the command.

    >>> capped(["worker"], 2**20)
    ['/bin/sh', '-c', 'ulimit -d "$0" && exec "$@"', '1024', 'worker']
    """
    return ["/bin/sh", "-c", 'ulimit -d "$0" && exec "$@"', str(int(cap_bytes) // 1024), *command]


def start_capped(
    command: Sequence[str], *, cap_bytes: float | None = None, timeout_s: float = START_TIMEOUT_S
) -> subprocess.Popen[bytes]:
    """Start a worker under its cap and wait until it says `ready` on its standard output.

    Args:
        command: The worker's.
        cap_bytes: What it may take; None = no cap.
        timeout_s: After which a start that hangs is ended.

    Returns:
        The running worker with pipes to its input and output.

    Raises:
        DeploymentError: if the cap is under the floor, or the worker dies or hangs at its start, or
            says why it cannot.
    """
    if cap_bytes is not None:
        check_cap(cap_bytes)
        command = capped(command, cap_bytes)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=lean_environment()
    )
    started = _await_line(process, timeout_s)
    if started != READY:
        process.kill()
        code = process.wait()
        close_pipes(process)
        if started:
            raise DeploymentError(started.decode("utf-8", "replace"))
        what = (
            "died with code"
            if started is not None
            else f"said nothing for {timeout_s:g} s and was ended, code"
        )
        limit = "no cap" if cap_bytes is None else f"a cap of {format_bytes(cap_bytes)}"
        raise DeploymentError(
            f"the worker {what} {code} under {limit}; raise the cap or see its errors above"
        )
    return process


def _await_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
    """Return the worker's first line, b"" if it closed its output, None if none came in time."""
    output, line, until = process.stdout, b"", time.monotonic() + timeout_s
    if output is None:
        return None
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not selector.select(left):
                break
            # one byte at a time: what follows the line belongs to the caller
            byte = os.read(output.fileno(), 1)
            if byte in {b"", b"\n"}:
                return line
            line += byte
    return None


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close a process's standard input and output, where they are pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it was last told, it did not read
                pipe.close()


def cap_cuda(cap_bytes: float) -> None:
    """Keep this process's CUDA tensors to a cap, where there is a CUDA device.

    Raises:
        DeploymentError: if the cap is above the device's memory.
    """
    import torch

    if not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    if cap_bytes > total:
        raise DeploymentError(
            f"a cap of {format_bytes(cap_bytes)} is above the device's {format_bytes(total)}"
        )
    torch.cuda.set_per_process_memory_fraction(cap_bytes / total)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a job failed because memory could not be had.

    Torch raises its own error on CUDA and a plain RuntimeError with the allocator's words on the
    CPU; a thread that cannot be started is the same want.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    wants = (
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "can't start new thread",
        "unable to mmap",
        "std::bad_alloc",
    )
    return isinstance(error, (RuntimeError, OSError)) and any(want in text for want in wants)
