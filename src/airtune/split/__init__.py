"""Split training: a device half, a server half, and what crosses between them, in one place.

Both ends speak in messages, and whoever carries these is a `Link`: in this process (`split_round`),
or a stream (`airtune.engine.stream`). Nothing that is learnt depends on which.
"""

from airtune.split.context import SplitContext, SplitJob
from airtune.split.device import DeviceEnd
from airtune.split.join import DevicePart, join_round
from airtune.split.log import StepLog
from airtune.split.memory import CutMemory, Samples
from airtune.split.message import Kind, StepMessage
from airtune.split.rounds import SplitResult, split_round
from airtune.split.server import Link, ServerEnd, ServerParts

__all__ = [
    "CutMemory",
    "DeviceEnd",
    "DevicePart",
    "Kind",
    "Link",
    "Samples",
    "ServerEnd",
    "ServerParts",
    "SplitContext",
    "SplitJob",
    "SplitResult",
    "StepLog",
    "StepMessage",
    "join_round",
    "split_round",
]
