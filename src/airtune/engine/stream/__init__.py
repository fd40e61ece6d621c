"""The split data plane: one gRPC stream a device and round, and a server that batches them.

server = StreamServer("0.0.0.0:9443", credentials=server_credentials(pem, key))
opened = server.open(SplitTask(run, round, base, state, rows, weights, settings, work, ...))
# hand opened.tokens[device] to each device over a channel that is trusted already
result = opened.wait()

end = DeviceEnd(SplitContext.of(base, state, settings=..., ...), {0: job})
part = run_device(end, Connection(Way("server:9443", channel_credentials(ca)), token, run))

outcomes = join_round(task.context, task.rows, result.parts, result.log, {column: DevicePart(...)})
"""

from airtune.engine.stream.device import Connection, DeviceRound, run_device
from airtune.engine.stream.server import FETCHES, OpenRound, StreamServer
from airtune.engine.stream.sessions import StreamTiming
from airtune.engine.stream.task import ServerRound, SplitTask
from airtune.wire.base import Shelf, fetcher
from airtune.wire.channel import Way, channel_credentials, server_credentials

__all__ = [
    "FETCHES",
    "Connection",
    "DeviceRound",
    "OpenRound",
    "ServerRound",
    "Shelf",
    "SplitTask",
    "StreamServer",
    "StreamTiming",
    "Way",
    "channel_credentials",
    "fetcher",
    "run_device",
    "server_credentials",
]
