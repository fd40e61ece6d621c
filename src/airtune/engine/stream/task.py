"""A split round as the server is given it, and what the server has at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from airtune.engine.stream.sessions import StreamTiming
from airtune.errors import MethodError
from airtune.model.base import BaseModel
from airtune.model.lora import Adapters, Head
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Floats, Workload, WorkSpec
from airtune.split.context import SplitContext, remembers
from airtune.split.log import StepLog
from airtune.split.server import ServerParts
from airtune.work.jobs import TrainSettings


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
    timing: StreamTiming = field(default_factory=StreamTiming)
    samples: tuple[int, ...] = ()
    """Examples of each device; needed where samples are remembered, whose number they bound."""

    @property
    def context(self) -> SplitContext:
        """What both ends know of it."""
        return SplitContext.of(
            self.base,
            self.state,
            settings=self.settings,
            work=self.work,
            workload=self.workload,
            seed=self.seed,
            round=self.round,
        )


@dataclass(frozen=True, slots=True)
class ServerRound:
    """What the server has at the end of a round; columns follow the rows of the task."""

    adapters: Adapters
    """On the blocks from the smallest cut on; the copies' mean by weight."""
    head: Head
    """{} where labels stay or none is trained; the copies' mean by weight."""
    parts: ServerParts
    log: StepLog
    """Of messages without their headers; where labels stay and none came back, losses are NaN."""
    steps: tuple[int, ...]
    """Steps each device has taken with the server."""
    broken: tuple[int, ...]
    """How often each device's stream broke."""
    listed_bytes: Floats
    """(devices,), of the lists of samples with which their streams began; in no other figure."""
    server_s: Floats
    """(devices,), that the server computed for each, waits for devices left out; a pass over several
    is divided by the blocks that each leaves to the server."""
    order: tuple[int, ...]
    """Columns in the order in which a sequential server first served them, those that never came
    last; otherwise as they are."""

    @property
    def batches(self) -> int:
        """Passes the server has run, all copies together."""
        return self.parts.passes


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
            (any(row.cut == 0 for row in task.rows), "a device without a cut"),
            (not task.rows, "no device"),
        )
        if is_wrong
    ]
    if wrong:
        raise MethodError(f"a split round over a network cannot have {'; '.join(wrong)}")
