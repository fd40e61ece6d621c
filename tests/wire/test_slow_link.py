"""A slow link whose buffers hold whatever they are given: little is given to them at once."""

import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc

from airtune.wire.channel import channel_options, server_options
from airtune.wire.message import PART_BYTES

PARTS, RATE_BYTES_S = 6, 4e6


class SlowLink:
    """Takes all that is sent and passes it on at a rate; counts what it holds."""

    def __init__(self, port: int) -> None:
        self.most_held_bytes = self._taken_bytes = self._passed_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._carry, args=(port,), daemon=True).start()

    def _carry(self, port: int) -> None:
        near, far = self._listener.accept()[0], socket.create_connection(("127.0.0.1", port))
        waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._fill, args=(near, waiting), daemon=True).start()
        threading.Thread(target=self._return, args=(far, near), daemon=True).start()
        with suppress(OSError):
            while piece := waiting.get():
                time.sleep(len(piece) / RATE_BYTES_S)
                far.sendall(piece)
                self._passed_bytes += len(piece)

    def _fill(self, near: socket.socket, waiting: "queue.SimpleQueue[bytes]") -> None:
        with suppress(OSError):
            while piece := near.recv(1 << 14):
                self._taken_bytes += len(piece)
                held_bytes = self._taken_bytes - self._passed_bytes
                self.most_held_bytes = max(self.most_held_bytes, held_bytes)
                waiting.put(piece)

    def _return(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while piece := far.recv(1 << 14):
                near.sendall(piece)


def test_a_link_holds_no_more_than_about_a_part():
    def count(parts, context):
        yield str(sum(len(part) for part in parts)).encode()

    server = grpc.server(ThreadPoolExecutor(1), options=server_options())
    handler = grpc.stream_stream_rpc_method_handler(count)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"Send": handler}),))
    link = SlowLink(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{link.port}", options=channel_options()) as channel:
        sent = [bytes(PART_BYTES)] * PARTS
        assert list(channel.stream_stream("/s/Send")(iter(sent))) == [b"%d" % (PARTS * PART_BYTES)]
    server.stop(0)
    assert link.most_held_bytes < 2 * PART_BYTES
