"""Flower's client processes, forked from one that has read everything already.

Flower starts a process for every message, which reads Python's packages anew: two seconds of a fast
processor and 125 MB each time, more than a small device has to spare. This program takes the place of
Flower's starter (SuperExec): it reads the packages once, asks the SuperNode beside it for messages, and
forks a client for each. A client still is a process of its own that lives for one message.

    python -m airtune.deploy.messenger HOST:PORT
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import run_clientapp

from airtune.deploy import app

__all__ = ["app", "in_a_fork", "serve"]  # the app is read here so that no client reads it again

_LOOK_S = 0.1


def serve(address: str, *, is_wanted: Callable[[], bool]) -> None:
    """Start a client for every message that a SuperNode has, until nobody wants it.

    Args:
        address: HOST:PORT of the SuperNode's own interface, on this machine.
        is_wanted: asked between messages.
    """
    client = RuntimeHttpClient.from_server_address(
        server_address=address, insecure=True, root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        retry_invoker=make_simple_http_retry_invoker(),
    )  # fmt: skip
    asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while is_wanted():
        token = client.AcquireTask(asked).token
        if token:
            in_a_fork(lambda: run_clientapp(address, token, insecure=True))  # noqa: B023
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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    parent = os.getppid()
    is_asked_to_end = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked_to_end
        is_asked_to_end = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve(sys.argv[1], is_wanted=lambda: not is_asked_to_end and os.getppid() == parent)


if __name__ == "__main__":
    _main()
