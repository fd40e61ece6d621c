"""A split round as the server is given it, and what the server has at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airtune.engine.stream.seats import Timing
from airtune.errors import MethodError
from airtune.model.base import BaseModel
from airtune.model.lora import Adapters, Head
from airtune.model.state import GlobalState
from airtune.plan import Assignment, CodecSpec, Floats, Workload, WorkSpec
from airtune.work.train import TrainSettings


@dataclass(frozen=True, slots=True)
class SplitTask:
    """A split round as the server is given it."""

    run: str
    round: int
    base: BaseModel
    state: GlobalState
    rows: tuple[Assignment, ...]
    """One a device, each with a cut."""
    weights: tuple[float, ...]
    settings: TrainSettings
    work: WorkSpec
    workload: Workload
    seed: int
    timing: Timing = field(default_factory=Timing)
    samples: tuple[int, ...] = ()
    """Examples of each device; needed where samples are remembered, whose number they bound."""


@dataclass(frozen=True, slots=True)
class ServerRound:
    """What the server has at the end of a round; columns follow the rows of the task."""

    adapters: Adapters
    """On the blocks from the smallest cut on; the copies' mean by weight."""
    head: Head
    """{} where labels stay or none is trained; the copies' mean by weight."""
    servers: tuple[Adapters, ...]
    """One a row: of the half that served it, on the blocks that half holds."""
    server_heads: tuple[Head, ...]
    losses: Floats
    """(steps, devices), NaN where a device took no step; of the server, so all NaN where labels
    stay and none came back."""
    up_bytes: Floats
    """(steps, devices), of messages without their headers."""
    down_bytes: Floats
    beside_bytes: Floats
    """Of `up_bytes`: labels, lengths, numbers of samples."""
    up_bound_bytes: Floats
    """What the payloads would take at least, were their entries independent and normal."""
    down_bound_bytes: Floats
    steps: tuple[int, ...]
    """Steps each device has taken with the server."""
    refused: Mapping[int, str]
    """Device -> why the server put it out of the round."""
    broken: tuple[int, ...]
    """How often each device's stream broke."""
    batches: int
    """Passes the server has run, all copies together."""
    skipped: int
    """Of these, those whose gradient was not finite and was not used."""
    computed: Floats
    """(steps, devices), fraction of the samples of which something was sent; 0 where none came."""
    listed_bytes: Floats
    """(devices,), of the lists of samples with which their streams began; in no other figure."""
    order: tuple[int, ...]
    """Columns in the order in which a sequential server first served them, those that never came
    last; otherwise as they are."""


def remembers(work: WorkSpec, codec: CodecSpec) -> bool:
    """Return whether both ends of a cut remember the samples that cross it."""
    return work.device_frozen or codec.predict


def check_task(task: SplitTask) -> None:
    """Refuse what the stream does not carry.

    Raises:
        MethodError: if the local work needs a device part that is handed over, or the task is not
            whole.
    """
    work = task.work
    wrong = [
        text
        for is_wrong, text in (
            (
                work.hand_over,
                "hand_over, as streams carry no adapters from one device to the next in a round",
            ),
            (
                len(task.samples) != len(task.rows)
                and any(remembers(work, row.codec) for row in task.rows),
                "samples that are remembered, where it is not said how many each device has",
            ),
            (any(row.cut is None for row in task.rows), "a device without a cut"),
            (not task.rows, "no device"),
        )
        if is_wrong
    ]
    if wrong:
        raise MethodError(f"a split round over a network cannot have {'; '.join(wrong)}")
