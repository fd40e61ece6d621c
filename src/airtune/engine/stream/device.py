"""A device's stream through a split round: connect, go on where the server says, come back if cut.

The server is called, never the other way. A broken connection is tried again with growing pauses
until the deadline; what the server refuses is not.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import grpc
import numpy as np

from airtune.cost.most import LISTED_BYTES
from airtune.engine.stream.message import HEADER_BYTES, Expected, parts_of, read_message, run_number
from airtune.errors import ConnectionFailedError, TrainingError
from airtune.model.lora import Adapters, Head
from airtune.plan import Floats
from airtune.split.body import largest_body_bytes
from airtune.split.device import DeviceEnd
from airtune.split.message import Kind, StepMessage
from airtune.units import BITS_PER_BYTE
from airtune.wire.channel import SERVICE, TOKEN_KEY, Way
from airtune.wire.message import PACED_PART_BYTES, PART_BYTES
from airtune.wire.traffic_budget import does_not_hold

Pace = Callable[[int], None]
"""Waits until so many bytes may be sent."""

_AGAIN = frozenset({
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
})  # fmt: skip
"""Ends of a stream after which it is tried again."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_RECENT_STEPS = 3
"""The longest of so many is what the next one is taken to last."""
_SLACK, _SLACK_S = 1.1, 0.5
"""What an answer may take longer than its bytes at the link's rate."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a device's round is served, and how it gets in."""

    way: Way
    token: str
    run: str
    deadline_s: float = 3600.0
    pace: Pace | None = None
    """Asked before every piece of an upload."""
    most_bytes: float | None = None
    """The most that all steps may take, repeats and two to spare; None = there is no cap."""
    upload_bps: float | None = None
    """At which the answer will go; None = as what the steps sent went."""


@dataclass(slots=True)
class DeviceRound:
    """What a device has at the end of its round."""

    adapters: Adapters
    """Of its own blocks."""
    head: Head
    """Trained head where labels stay."""
    losses: Floats
    """(steps,), NaN where it took no step."""
    up_bytes: Floats
    """(steps,), of messages without their headers."""
    down_bytes: Floats
    steps: int
    """Steps after which it has learnt."""
    compute_s: float
    wait_s: float
    """For its uploads, the server and its answers."""
    connections: int
    listed_bytes: int
    """Of the lists of samples with which its streams began; in no other figure."""


class _RoundOverError(Exception):
    """The server has ended the round in order; what was learnt until then stands."""


class _Going:
    """What a round has come to, over as many connections as it takes."""

    def __init__(self, end: DeviceEnd, connection: Connection) -> None:
        self.end, self.connection = end, connection
        [(self.column, job)] = end.jobs.items()
        self.device, context = job.device, end.context
        body_bytes = largest_body_bytes(context.shape, context.workload)
        self._max = max(body_bytes, LISTED_BYTES * len(job.data))
        self.losses = np.full(end.steps, np.nan)
        self.up, self.down = np.zeros(end.steps), np.zeros(end.steps)
        self.learnt, self.compute_s, self.connections = 0, 0.0, 0
        self.crossed_bytes = self.listed_bytes = 0
        self._run, self._round = run_number(connection.run), context.round
        self._until_s = math.inf
        self._steps_s: list[float] = []
        self.has_given_up = False

    def go(self, answers: Iterator[bytes], outgoing: queue.SimpleQueue[StepMessage | None]) -> None:
        """Take all steps that are left over one connection."""
        welcome = self._read(answers, Kind.WELCOME, None)
        if welcome.step < self.end.steps:  # who is done is told nothing
            self.end.agree(welcome.beside)
        self.listed_bytes += len(welcome.beside)
        self._until_s = time.monotonic() + welcome.left_s
        for step in range(welcome.step, self.end.steps):
            if self.learnt and self.left_s() < max(self._steps_s[-_RECENT_STEPS:]):
                outgoing.put(StepMessage(Kind.STOP, self._run, self._round, step, self.device))
                break
            began = time.monotonic()
            self._step(step, answers, outgoing)
            self._steps_s.append(time.monotonic() - began)
        outgoing.put(None)
        for _ in answers:
            pass  # the server closes when it has seen the end

    def left_s(self) -> float:
        """Return the seconds left for steps, so that the answer is back by the deadline."""
        rate_bps = self.connection.upload_bps
        waited_s = sum(self._steps_s) - self.compute_s
        if rate_bps is None and self._steps_s and waited_s > 0:
            rate_bps = BITS_PER_BYTE * float(self.up.sum()) / waited_s
        answer_s = BITS_PER_BYTE * self.end.answer_bytes / rate_bps if rate_bps else 0.0
        return self._until_s - time.monotonic() - _SLACK * answer_s - _SLACK_S

    def _step(
        self, step: int, answers: Iterator[bytes], outgoing: queue.SimpleQueue[StepMessage | None]
    ) -> None:
        self._check_cap()
        with self._patience(answers):
            self._take(step, answers, outgoing)

    def _take(
        self, step: int, answers: Iterator[bytes], outgoing: queue.SimpleQueue[StepMessage | None]
    ) -> None:
        end, parts = self.end, self.end.parts
        for part in range(parts):
            start = time.perf_counter()
            made = end.send(step, part=part, parts=parts)
            self._spent(start)
            self._put(made, outgoing, is_first=part == 0)
        if end.context.labels_stay:
            hidden = self._read(answers, Kind.HIDDEN, step)
            start = time.perf_counter()
            made = end.finish({self.column: hidden.payload})
            self._spent(start)
            self.down[step] += len(hidden.payload)
            self._put(made, outgoing, is_first=False)
        loss = 0.0
        for part in range(parts):
            answer = self._read(answers, Kind.GRADIENT, step)
            start = time.perf_counter()
            end.learn({self.column: answer.payload}, part=part, parts=parts)
            self._spent(start)
            self._check_out()
            loss += answer.loss
            self.down[step] += len(answer.payload)
        self.losses[step] = loss
        self.learnt += 1

    @contextmanager
    def _patience(self, answers: Iterator[bytes]) -> Iterator[None]:
        """Give a step up when nothing but the answer has time left, if one was done before."""

        def give_up() -> None:
            self.has_given_up = True
            answers.cancel()  # type: ignore[attr-defined]  # a gRPC call

        left_s = self.left_s() if self.learnt else math.inf
        timer = threading.Timer(max(left_s, 0.0), give_up) if math.isfinite(left_s) else None
        if timer is not None:
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _put(
        self,
        made: Mapping[int, StepMessage],
        outgoing: queue.SimpleQueue[StepMessage | None],
        *,
        is_first: bool,
    ) -> None:
        """Send what the end has made, unless it broke over it."""
        self._check_out()
        message = replace(made[self.column], run=self._run)
        self.crossed_bytes += message.body_bytes + HEADER_BYTES
        if is_first:
            self.up[message.step] = 0.0  # a step that is repeated counts once
        self.up[message.step] += message.body_bytes
        outgoing.put(message)

    def _check_out(self) -> None:
        """Stop where the device's numbers are not finite, or what came is damaged.

        Raises:
            TrainingError: saying which.
        """
        if self.end.refused:
            raise TrainingError(f"device {self.device}: {self.end.refused[self.column]}")

    def _check_cap(self) -> None:
        """Refuse a step for which nothing is left of what was set aside for the steps."""
        most = self.connection.most_bytes
        if most is not None and self.crossed_bytes + most / (self.end.steps + 2) > most:
            raise TrainingError(
                f"device {self.device} has repeated so many steps that {does_not_hold('the rest')}"
            )

    def _spent(self, start: float) -> None:
        self.compute_s += time.perf_counter() - start

    def _read(self, answers: Iterator[bytes], kind: Kind, step: int | None) -> StepMessage:
        wanted = Expected(frozenset({kind}), self._run, self._round, self.device, step, self._max)
        message = read_message(answers, lambda: wanted)
        if message is None:
            raise _RoundOverError
        self.crossed_bytes += message.body_bytes + HEADER_BYTES
        return message


def run_device(end: DeviceEnd, connection: Connection) -> DeviceRound:
    """Take a device through its round.

    Raises:
        ConnectionFailedError: if the server cannot be reached before the deadline, or its
            certificate is not trusted.
        TrainingError: if the server refuses the device, a gradient is not finite, or one is damaged.
        CodecError: if a message of the server is not the one awaited, or damaged.
    """
    going = _Going(end, connection)
    began = time.perf_counter()
    until, pause = time.monotonic() + connection.deadline_s, _FIRST_PAUSE_S
    while True:
        done = going.learnt
        error = _connect(going, until)
        if error is None or going.has_given_up or _is_over(error, going):
            break
        _raise_if_final(error, connection.way.target, until - time.monotonic() - pause)
        time.sleep(pause)
        # a connection that got somewhere starts the pauses anew
        pause = _FIRST_PAUSE_S if going.learnt > done else min(2 * pause, _LONGEST_PAUSE_S)
    whole = time.perf_counter() - began
    return DeviceRound(
        end.adapters()[going.column],
        end.heads()[going.column],
        going.losses,
        going.up,
        going.down,
        going.learnt,
        going.compute_s,
        whole - going.compute_s,
        going.connections,
        going.listed_bytes,
    )


def _connect(going: _Going, until: float) -> grpc.RpcError | None:
    """Run one connection to its end; return why it broke, None where all steps are done."""
    connection = going.connection
    outgoing: queue.SimpleQueue[StepMessage | None] = queue.SimpleQueue()
    going.connections += 1
    with connection.way.open() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Round")
        answers = call(
            _pieces(outgoing, connection.pace),
            timeout=max(until - time.monotonic(), 0.01),
            metadata=(*connection.way.metadata, (TOKEN_KEY, connection.token)),
        )
        try:
            going.go(answers, outgoing)
        except _RoundOverError:
            if not going.learnt:
                raise TrainingError(
                    f"the round ended before device {going.device} had done a step; "
                    "give it less work, or the round more time"
                ) from None
        except grpc.RpcError as error:
            return error
        finally:
            outgoing.put(None)
            answers.cancel()
    return None


def _pieces(outgoing: queue.SimpleQueue[StepMessage | None], pace: Pace | None) -> Iterator[bytes]:
    while (message := outgoing.get()) is not None:
        for piece in parts_of(message, part_bytes=PACED_PART_BYTES if pace else PART_BYTES):
            if pace is not None:
                pace(len(piece))
            yield piece


def _is_over(error: grpc.RpcError, going: _Going) -> bool:
    """Return whether the round ended meanwhile: a token that was good is not; what was learnt stands."""
    return going.learnt > 0 and error.code() is grpc.StatusCode.UNAUTHENTICATED


def _raise_if_final(error: grpc.RpcError, target: str, left_s: float) -> None:
    code, details = error.code(), error.details() or ""
    is_certificate = "certificate" in details.lower() or "handshake" in details.lower()
    if code in _AGAIN and not is_certificate and left_s > 0:
        return
    where = f"the split server at {target}"
    if is_certificate:
        raise ConnectionFailedError(
            f"{where} proves itself with a certificate that this device does not trust: {details}"
        ) from error
    if code in _AGAIN:
        raise ConnectionFailedError(f"{where} cannot be reached: {details}") from error
    raise TrainingError(f"{where} refused this device: {details}") from error
