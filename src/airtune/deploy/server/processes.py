"""Processes that this one has started, or knows the number of."""

from __future__ import annotations

import os
import signal
import subprocess


def end_group(process: subprocess.Popen[bytes] | None, *, grace_s: float = 10.0) -> None:
    """End a process that leads a group, and all it started; kindly first."""
    if process is None:
        return
    for kind, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    process.poll()
