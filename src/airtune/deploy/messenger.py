"""Flower's client processes, forked from one that has read everything already.

Flower starts a process for every message, which reads Python's packages anew: two seconds of a fast
processor and 125 MB each time, more than a small device has to spare. This program takes the place
of Flower's starter (SuperExec): it reads the packages once, asks the SuperNode beside it for
messages, and forks a client for each. A client still is a process of its own that lives for one
message. Where the agent is gone, nobody would answer: the SuperNode is ended too.

    python -m airtune.deploy.messenger HOST:PORT SECRET AGENT NODE

SECRET is a file that both know, without which no other account of the machine takes a message;
AGENT and NODE are numbers of processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import run_clientapp

from airtune.deploy import app

__all__ = ["app", "in_a_fork", "serve"]  # the app is read here so that no client reads it again

_LOOK_S = 0.1
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def serve(address: str, secret: bytes, *, is_wanted: Callable[[], bool]) -> None:
    """Start a client for every message that a SuperNode has, until nobody wants it.

    A SuperNode that does not answer is asked again: it starts and ends at other times.

    Args:
        address: HOST:PORT of the SuperNode's own interface, on this machine.
        secret: that the SuperNode was started with.
        is_wanted: asked between messages.
    """
    client = RuntimeHttpClient.from_server_address(
        server_address=address, insecure=True, root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        ],
    )  # fmt: skip
    asked, own = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]), os.getpid()
    while is_wanted():
        with suppress(httpx.TransportError):
            token = client.AcquireTask(asked).token
            if token:
                in_a_fork(partial(run_clientapp, address, token, insecure=True, parent_pid=own))
        time.sleep(_LOOK_S)
    client.close()


def in_a_fork(work: Callable[[], None]) -> int:
    """Do some work in a child process, and return its number at once.

    The child ends with the work: 0, or 1 where it raised, whose reason is on the standard error.
    Nobody has to wait for it where SIGCHLD is ignored.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # whatever it was, this process must not go on as its parent
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _main() -> None:
    address, secret = sys.argv[1], Path(sys.argv[2])
    agent, node = map(int, sys.argv[3:5])
    is_asked_to_end = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked_to_end
        is_asked_to_end = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve(address, secret.read_bytes(),
          is_wanted=lambda: not is_asked_to_end and os.getppid() == agent)  # fmt: skip
    if not is_asked_to_end:
        with suppress(ProcessLookupError):
            os.killpg(node, signal.SIGTERM)


if __name__ == "__main__":
    _main()
