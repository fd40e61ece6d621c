"""A round of split training in one process: device ends, a server end, and a queue between them.

Every step: the devices run their blocks, encode the activation and send it with the labels; the
server decodes, runs its blocks for all of them in one pass, updates its adapters and returns each
device the encoded gradient of its activation; the devices update theirs. As in `train`, every round
starts from the global adapters with fresh AdamW moments, gradients are clipped by device, and a
device whose numbers stop being finite is refused alone. With `hand_over` a sequential server's
device part goes from one device to the next too (plain split learning).

What comes back is one ordinary `Update` a device: its own adapters on the blocks it holds and the
server's on the rest. Averaging those gives, block by block, the holders' adapters by their weights
and the server's by the weight of the devices it stood in for.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237);
SplitFed (arXiv 2004.12088). What a drop between forward and backward costs is ours: the server has
learnt from the activation, and the device's own update is void.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airtune.errors import MethodError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.lora import Adapters, Head
from airtune.model.stages import held_by_device
from airtune.model.state import GlobalState
from airtune.plan import Floats, Workload, WorkSpec
from airtune.split.context import SplitContext, SplitJob
from airtune.split.device import DeviceEnd
from airtune.split.join import DevicePart, join_round
from airtune.split.log import StepLog
from airtune.split.memory import CutMemory, Samples
from airtune.split.message import Kind, StepMessage
from airtune.split.server import ServerEnd, mean_by_weight
from airtune.work.jobs import Outcome, TrainSettings


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What came of a split round."""

    outcomes: tuple[Outcome, ...]
    """One a job, in the order of the jobs."""
    server: Adapters
    """The server's adapters on the blocks from the smallest cut on; the copies' mean by weight."""
    head: Head
    """The server's trained head; {} where labels stay or none is trained."""
    ledger: StepLog
    """What crossed in every step, (steps, devices); without the adapters' exchange."""
    order: tuple[int, ...]
    """Columns in the order in which a sequential server served them."""
    skipped: int
    """Server steps that were not taken because their gradient was not finite."""

    @property
    def losses(self) -> Floats:
        """(steps, devices), NaN where nothing was scored or the device was out."""
        return self.ledger.losses

    @property
    def up_bytes(self) -> Floats:
        """(steps, devices), as encoded: payloads, labels, lengths."""
        return self.ledger.up_bytes

    @property
    def down_bytes(self) -> Floats:
        """(steps, devices), as encoded."""
        return self.ledger.down_bytes


def split_round(
    base: BaseModel,
    state: GlobalState,
    jobs: Sequence[SplitJob],
    *,
    settings: TrainSettings,
    work: WorkSpec,
    workload: Workload,
    seed: int,
    round: int,
    memory: CutMemory | None = None,
    drops: Mapping[int, int] | None = None,
) -> SplitResult:
    """Train several devices through their cuts.

    Args:
        base: The frozen model.
        state: What all start from.
        jobs: The devices, each with a cut; at least one.
        settings: Learning rate and the like, of devices and server.
        work: `labels`, `device_frozen`, `server`, `gradient`, `reuse_mask` and `hand_over` are read.
        workload: Batch and length; for images `tokens` is `image_tokens`.
        seed: Of the run.
        round: Counted from 0.
        memory: What both ends remember, changed by the round; needed over rounds where a codec
            predicts or the device part is frozen.
        drops: Device -> step in which it is lost between forward and backward.

    Raises:
        MethodError: if a row has no cut, prunes, or has a rank that the local work does not take.
        ModelError: if a cut is outside the model.
        DataError: if a device has no example.
    """
    _check(state, jobs, work)
    whole = replace(workload, micro_batches=1)  # nothing crosses while something computes
    context = SplitContext.of(
        base, state, settings=settings, work=work, workload=whole, seed=seed, round=round
    )
    rows = [job.row for job in jobs]
    held = (CutMemory() if memory is None else memory).opened(context, rows)
    end = ServerEnd(
        context,
        rows,
        [job.weight for job in jobs],
        memory=held,
        examples=[len(job.data) for job in jobs],
    )
    gone = {
        index: drops[job.device]
        for index, job in enumerate(jobs)
        if drops is not None and job.device in drops
    }
    return _Round(context, jobs, end, {p: dict(s) for p, s in held.items()}, gone).run()


class _Queue:
    """The link between ends in one process: what is sent is worked on when an answer is asked for."""

    def __init__(self, log: StepLog, gone: Mapping[int, int]) -> None:
        """Carry for devices of which some vanish; `gone` by column, in which step."""
        self._log, self._gone = log, gone
        self._ends: Sequence[DeviceEnd] = ()
        self._step = -1
        self.waiting: dict[int, bytes] = {}
        """Of each device, what the server has sent it last."""

    def begin(self, step: int, ends: Sequence[DeviceEnd]) -> dict[int, StepMessage]:
        """Have devices begin a step; returns what they send."""
        self._step, self._ends, self.waiting = step, ends, {}
        return {index: sent for end in ends for index, sent in end.send(step).items()}

    def send(self, column: int, kind: Kind, payload: bytes, *, loss: float = float("nan")) -> bool:
        """Put a message where its device finds it; one that vanishes in this step is gone."""
        is_there = column not in self._log.refused and self._gone.get(column) != self._step
        if is_there:
            self.waiting[column] = payload
        return is_there

    def receive(self, places: Iterable[int]) -> dict[int, StepMessage]:
        """Have the devices work on their hidden states; returns what they answer."""
        hidden, self.waiting = self.waiting, {}
        return {index: sent for end in self._ends for index, sent in end.finish(hidden).items()}

    def refuse(self, column: int, reason: str) -> None:
        """Put a device out of the round."""
        self._log.refuse(column, reason)
        self.waiting.pop(column, None)

    def end(self, sent: Iterable[int]) -> None:
        """Have the devices learn what they were sent; who vanished in this step is out."""
        for index in sent:
            if self._gone.get(index) == self._step and index not in self._log.refused:
                self._log.lost_in[index] = self._step
                self._log.refuse(index, f"lost between forward and backward in step {self._step}")
        for end in self._ends:
            end.learn(self.waiting)


@dataclass(slots=True)
class _Round:
    """A round under way."""

    context: SplitContext
    jobs: Sequence[SplitJob]
    server: ServerEnd
    memory: Mapping[int, Samples]
    """Of the devices, by column."""
    gone: Mapping[int, int]
    parts: dict[int, DevicePart] = field(default_factory=dict)
    """What each device returns, by column."""

    def run(self) -> SplitResult:
        """Take all steps."""
        order = tuple(range(len(self.jobs)))
        kind = self.context.work.server
        if kind == "sequential":
            order = self._in_turn()
        else:
            for places in [[index] for index in order] if kind == "copies" else [order]:
                self._steps([self._end(self.context, group) for group in self._alike(places)])
                if kind == "copies":
                    self.server.parts(places[0])
        return self._result(order)

    def _in_turn(self) -> tuple[int, ...]:
        """Serve one device after the other, in an order drawn anew every round; returns it."""
        context = self.context
        order = generator(context.seed, "split order", context.round).permutation(len(self.jobs))
        start, first = context.state, min(job.row.cut for job in self.jobs)
        for index in map(int, order):
            self._steps([self._end(replace(context, state=start), [index])])
            if context.work.hand_over and index not in self.server.log.refused:
                part = self.parts[index]
                start = replace(
                    start,
                    adapters={**start.adapters, **part.adapters},
                    head=part.head or start.head,
                )
        if context.work.hand_over:
            held = held_by_device(start.adapters, first)
            self.parts = {
                index: replace(part, adapters=held, head=start.head)
                for index, part in self.parts.items()
            }
        return tuple(map(int, order))

    def _alike(self, places: Sequence[int]) -> Iterator[list[int]]:
        """Yield the devices that cut alike, at one rank, and take equally many steps."""
        groups: dict[tuple[int | None, int, int], list[int]] = {}
        for index in places:
            row = self.jobs[index].row
            groups.setdefault((row.cut, row.local_steps, row.rank), []).append(index)
        yield from groups.values()

    def _end(self, context: SplitContext, places: Sequence[int]) -> DeviceEnd:
        return DeviceEnd(
            context,
            {index: self.jobs[index] for index in places},
            memory=self.memory,
            refused=self.server.log.refused,
        )

    def _steps(self, ends: Sequence[DeviceEnd]) -> None:
        """Take all steps of these devices, and keep what they return."""
        queue = _Queue(self.server.log, self.gone)
        for step in range(max(end.steps for end in ends)):
            going = [end for end in ends if step < end.steps and end.active()]
            sent = queue.begin(step, going)
            if sent:
                self.server.serve(sent, queue)
                queue.end(sent)
        for end in ends:
            adapters, heads = end.adapters(), end.heads()
            for index in end.jobs:
                self.parts[index] = DevicePart(adapters[index], heads[index], end.steps)

    def _result(self, order: tuple[int, ...]) -> SplitResult:
        log, held = self.server.log, self.server.parts()
        rows = [job.row for job in self.jobs]
        outcomes = join_round(self.context, rows, held, log, self.parts)
        weights = {
            index: job.weight for index, job in enumerate(self.jobs) if index not in log.refused
        }
        return SplitResult(
            outcomes=outcomes,
            server=mean_by_weight(dict(enumerate(held.servers)), weights),
            head=mean_by_weight(dict(enumerate(held.heads)), weights),
            ledger=log,
            order=order,
            skipped=held.skipped,
        )


def _check(state: GlobalState, jobs: Sequence[SplitJob], work: WorkSpec) -> None:
    if not jobs:
        raise MethodError("a split round needs at least one device, got none")
    rank = next((item.shape[0] for name, item in state.adapters.items() if name[-1] == "A"), 0)
    for job in jobs:
        row = job.row
        if row.cut == 0:
            raise MethodError(f"device {job.device} has no cut; train it with the whole model")
        if row.prune_heads or row.prune_ffn or not 1 <= row.rank <= rank:
            raise MethodError(
                f"split training takes nothing off the model and ranks from 1 to {rank}; device "
                f"{job.device} is told to prune {row.prune_heads:g} and {row.prune_ffn:g} at "
                f"rank {row.rank}"
            )
        if row.rank < rank and (work.hand_over or work.rank_scale == "own"):
            raise MethodError(
                f"device {job.device} is told rank {row.rank} of {rank}, but a device part that is "
                "handed over, or scaled by its own rank, has the full one; give it that"
            )
    if work.penalty != "none":
        raise MethodError(f"penalty {work.penalty!r} is not available in split training; use none")
    if work.hand_over and (work.server != "sequential" or len({j.row.cut for j in jobs}) > 1):
        raise MethodError(
            "the device part can be handed over with a sequential server and one cut for all; "
            f"got a {work.server} server and cuts {sorted({j.row.cut for j in jobs})}"
        )
