"""What a run serves its devices over gRPC: tasks and their answers, split rounds, the base model.

    /airtune.Split/Round    one bidirectional stream a device and round
    /airtune.Split/Measure  bytes up and down, for `airtune probe`
    /airtune.Split/Base     a file of the base model, for devices that lack it
    /airtune.Split/Fetch    a task that waits for its device
    /airtune.Split/Answer   the answer to it

Handlers are generic and serialisers the identity, so nothing is generated. A stream says who it is
by a token in its metadata before anything it sends is read; a part larger than `PART_BYTES` is
refused by gRPC itself, a message larger than a step can need by its header.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc

from airtune.engine.stream.memory import ServerMemory
from airtune.engine.stream.message import parts_of, read_message
from airtune.engine.stream.rounds import SplitRound
from airtune.engine.stream.sessions import Ending, Outbox, SessionTable, SplitSession
from airtune.engine.stream.task import ServerRound, SplitTask
from airtune.errors import CodecError, TrainingError
from airtune.split.message import Kind
from airtune.wire.base import Shelf, base_handler
from airtune.wire.channel import SERVICE, TOKEN_KEY, channel_options, value_of
from airtune.wire.post import Post

_CODES: dict[Ending, grpc.StatusCode] = {
    "refused": grpc.StatusCode.INVALID_ARGUMENT,
    "lapsed": grpc.StatusCode.DEADLINE_EXCEEDED,
    "taken": grpc.StatusCode.ALREADY_EXISTS,
}


FETCHES = 64
"""Devices that fetch a base model at a time; one more is told to come again."""
TASKS = 256
"""Tasks and answers that are on their way at a time; whoever comes beside them comes again."""


@dataclass(slots=True)
class OpenRound:
    """A round that is being served."""

    tokens: dict[int, str]
    """Device -> what lets it in."""
    _thread: threading.Thread
    _result: list[ServerRound]
    _table: SessionTable

    def wait(self, timeout_s: float | None = None) -> ServerRound:
        """Return what the server has at the end; waits for it.

        Raises:
            TrainingError: if the server's half failed, or the time was too short.
        """
        self._thread.join(timeout_s)
        if not self._result:
            what = "is still going on" if self._thread.is_alive() else "failed in the server's half"
            raise TrainingError(f"the split round {what}; its log says why")
        return self._result[0]

    def close(self) -> None:
        """End the round for every device; `wait` then returns what there is."""
        self._table.began_at = float("-inf")
        with self._table.changed:
            self._table.changed.notify_all()


class StreamServer:
    """Serves split rounds, and base models to devices that lack them, on one port."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        credentials: grpc.ServerCredentials | None = None,
        streams: int = 64,
        fetches: int = FETCHES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Bind the port and begin to serve.

        Args:
            address: HOST:PORT; port 0 = any that is free.
            credentials: TLS; None = in the clear.
            streams: Devices in rounds at a time; one more is told to come again.
            fetches: Devices that fetch a base model at a time, beside these.
            clock: Seconds, by which the server's computing is measured.

        Raises:
            TrainingError: if the port cannot be had.
        """
        self.shelf = Shelf()
        """Base models that are handed out."""
        self.post = Post()
        """Tasks that are out."""
        self._memory, self._clock = ServerMemory(), clock
        self._tables: list[SessionTable] = []
        self._lock = threading.Lock()
        calls = streams + fetches + TASKS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(calls + 2, thread_name_prefix="stream"),
            options=channel_options(),
            maximum_concurrent_rpcs=calls,
        )
        handlers = {
            "Round": grpc.stream_stream_rpc_method_handler(self._serve),
            "Fetch": grpc.unary_stream_rpc_method_handler(self.post.fetch),
            "Answer": grpc.stream_unary_rpc_method_handler(self.post.answer),
            "Base": grpc.unary_stream_rpc_method_handler(base_handler(self.shelf, fetches=fetches)),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self.port = self._bind(address, credentials)
        self._server.start()

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise TrainingError(
                f"the stream cannot listen on {address}: {error}; is the port taken?"
            ) from error

    def open(self, task: SplitTask) -> OpenRound:
        """Begin a round; devices with its tokens may connect at once.

        Raises:
            MethodError: if a stream does not carry this work.
        """
        made = SplitRound(task, self._memory, clock=self._clock)
        result: list[ServerRound] = []

        def serve() -> None:
            try:
                result.append(made.run())
            finally:
                with self._lock:
                    self._tables.remove(made.table)

        with self._lock:
            self._tables.append(made.table)
        thread = threading.Thread(target=serve, name=f"split round {task.round}", daemon=True)
        thread.start()
        return OpenRound(made.tokens, thread, result, made.table)

    def close(self, grace_s: float = 1.0) -> None:
        """End all rounds and give the port back."""
        with self._lock:
            tables = list(self._tables)
        for table in tables:
            table.close("the server is shutting down")
        self._server.stop(grace_s).wait()

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer one device's stream; runs in a thread of its own, another reads."""
        token = value_of(context.invocation_metadata(), TOKEN_KEY)
        table, session = self._admitted(token, context)
        outbox = Outbox()
        reason = table.join(session, outbox)
        if reason:
            taken = session.outbox is not None
            context.abort(_CODES["taken" if taken else "refused"], reason)
        context.add_callback(lambda: table.leave(session, outbox, in_order=False))
        reader = threading.Thread(
            target=_read, args=(requests, table, session, outbox), name="stream reader", daemon=True
        )
        reader.start()
        while not isinstance(item := outbox.take(), tuple):
            yield from parts_of(item)
        ending, reason = item
        if ending != "done":
            context.abort(_CODES[ending], reason)

    def _admitted(
        self, token: str, context: grpc.ServicerContext
    ) -> tuple[SessionTable, SplitSession]:
        with self._lock:
            found = [(table, table.seat_of(token)) for table in self._tables]
        for table, session in found:
            if session is not None:
                return table, session
        context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "the token is of no round that is being served; it is over, or it was never yours",
        )
        raise TrainingError("the stream was refused")  # abort never returns


def _read(
    requests: Iterator[bytes], table: SessionTable, session: SplitSession, outbox: Outbox
) -> None:
    """Read a device's messages until its stream ends; the outbox is told in every case."""
    in_order = False
    try:
        going = True
        while going:
            message = read_message(requests, lambda: table.expected(session))
            in_order = message is None
            if message is not None and message.kind is Kind.STOP:
                table.stop(session, outbox)
                continue
            going = message is not None and table.put(session, outbox, message)
    except CodecError as error:
        table.end(session, "refused", str(error), held_by=outbox)
    except grpc.RpcError:
        pass  # the connection broke; the device may come back
    finally:
        table.leave(session, outbox, in_order=in_order)
        outbox.end("done")
