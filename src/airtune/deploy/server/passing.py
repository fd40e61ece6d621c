"""Devices' calls to a run, passed on unread to the process of that run, which listens here alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from airtune.deploy.server.gate import Caller, Requests
from airtune.deploy.server.runs import Runs
from airtune.wire.channel import DEVICE_KEY, RUN_KEY, SERVICE, TOKEN_KEY, open_channel, value_of

PASSED_ON = ("Fetch", "Answer", "Round", "Base")
"""What of a run's service a device may call."""
_DIGITS = 10


class Passing:
    """The calls that are passed on at this moment, and the ways to the processes of runs."""

    def __init__(self, runs: Runs, answered: Callable[[str, str], None]) -> None:
        """Pass nothing on yet.

        Args:
            runs: knows where each listens.
            answered: told the name of a device and the token of the task that it has answered.
        """
        self._runs, self._answered = runs, answered
        self._calls: dict[str, set[grpc.Call]] = {}
        self._channels: dict[int, grpc.Channel] = {}
        self._lock = threading.Lock()

    def names(self) -> set[str]:
        """Return the devices that have made such calls."""
        with self._lock:
            return set(self._calls)

    def cut(self, name: str) -> None:
        """End the calls of a device."""
        with self._lock:
            calls = list(self._calls.pop(name, ()))
        for call in calls:
            call.cancel()

    def call(
        self, name: str, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Pass a device's call on, and what the process of the run answers back."""
        metadata = context.invocation_metadata()
        channel = self._channel_to(value_of(metadata, RUN_KEY))
        if channel is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such run goes on here")
            return
        token = value_of(metadata, TOKEN_KEY)
        call = channel.stream_stream(f"/{SERVICE}/{name}")(
            requests, metadata=((TOKEN_KEY, token), (DEVICE_KEY, who.name))
        )
        with self._lock:
            mine = self._calls.setdefault(who.name, set())
            mine.add(call)
        context.add_callback(call.cancel)
        try:
            yield from call
            if name == "Answer":
                self._answered(who.name, token)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        finally:
            mine.discard(call)
            call.cancel()

    def _channel_to(self, run: str) -> grpc.Channel | None:
        """Return the way to the process of a run, None where it does not go on."""
        number = int(run) if run.isdecimal() and len(run) < _DIGITS else -1
        port = self._runs.port(number)
        if port is None:
            return None
        if number not in self._channels:
            self._channels[number] = open_channel(f"127.0.0.1:{port}", None)
        return self._channels[number]
