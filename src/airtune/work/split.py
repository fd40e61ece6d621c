"""A round of split training: device halves, the server half, and what crosses between them.

Every step: the devices run their blocks, encode the activation and send it with the labels; the
server decodes, runs its blocks for all of them in one pass, updates its adapters and returns each
device the encoded gradient of its activation; the devices update theirs. As in `train`, every round
starts from the global adapters with fresh AdamW moments, gradients are clipped by device, and a
device whose numbers stop being finite is refused alone.

The server is one of three:

    shared      one server model, all devices in one pass (SFT, SplitLoRA)
    copies      one copy a device, averaged with the round (SplitFed V1)
    sequential  one server model that serves the devices one after the other (SplitFed V2); with
                `hand_over` the device part goes from one to the next too (plain split learning)

What comes back is one ordinary `Update` a device: its own adapters on the blocks it holds and the
server's on the rest. Averaging those gives, block by block, the holders' adapters by their weights
and the server's by the weight of the devices it stood in for.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237);
SplitFed (arXiv 2004.12088). What a drop between forward and backward costs is ours: the server has
learnt from the activation, and the device's own update is void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from airtune.errors import MethodError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived
from airtune.model.kept import keep_all
from airtune.model.lora import Adapters, Head
from airtune.model.stages import held_by_device
from airtune.model.state import GlobalState, Update, current_base
from airtune.plan import Floats, Workload, WorkSpec
from airtune.work.half import TrainedHalf
from airtune.work.lanes import Here, Lane, SplitJob, StepLog
from airtune.work.train import Outcome, TrainSettings
from airtune.work.wire import CutMemory

__all__ = ["CutMemory", "SplitJob", "SplitResult", "split_round"]

Gradients: TypeAlias = dict[int, torch.Tensor]
"""By column of the ledger."""


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
        MethodError: if a row has no cut, prunes, or asks for another rank than the state's.
        ModelError: if a cut is outside the model.
        DataError: if a device has no example.
    """
    _check(state, jobs, work)
    here = Here(
        current_base(base, state), state, settings, work, workload,
        CutMemory() if memory is None else memory, seed, round,
    )  # fmt: skip
    cuts = [job.row.cut or 0 for job in jobs]
    trains_from = max(cuts) if work.device_frozen else 0
    ledger = StepLog.empty(max(job.row.local_steps for job in jobs), len(jobs))
    gone = {place: (drops or {}).get(job.device, -1) for place, job in enumerate(jobs)}
    by_place = dict(enumerate(jobs))
    make = _Make(here, ledger, by_place, gone, min(cuts), trains_from)
    if work.server == "shared":
        finished = make.shared()
    elif work.server == "copies":
        finished = make.copies()
    else:
        finished = make.sequential()
    return _result(here, ledger, by_place, finished)


@dataclass(slots=True)
class _Finished:
    """What a round's lanes and servers have become, by column of the ledger."""

    adapters: dict[int, Adapters] = field(default_factory=dict)
    """Of the device's own blocks."""
    heads: dict[int, Head] = field(default_factory=dict)
    servers: dict[int, Adapters] = field(default_factory=dict)
    server_heads: dict[int, Head] = field(default_factory=dict)
    skipped: int = 0
    order: tuple[int, ...] = ()

    def add(self, lanes: Sequence[Lane], server: TrainedHalf, places: Sequence[int]) -> None:
        """Take in what devices and their server hold at the end."""
        for lane in lanes:
            self.adapters |= lane.adapters()
            self.heads |= lane.heads()
        self.servers |= dict.fromkeys(places, server.adapters())
        self.server_heads |= dict.fromkeys(places, server.head())


@dataclass(frozen=True, slots=True)
class _Make:
    """The three ways to serve."""

    here: Here
    ledger: StepLog
    jobs: dict[int, SplitJob]
    gone: dict[int, int]
    first: int
    trains_from: int

    def shared(self) -> _Finished:
        """All devices in one pass, those that cut alike on one stacked half."""
        groups: dict[tuple[int | None, int], dict[int, SplitJob]] = {}
        for place, job in self.jobs.items():
            groups.setdefault((job.row.cut, job.row.local_steps), {})[place] = job
        lanes = [self._lane(group) for group in groups.values()]
        server = self._server(self.first)
        self._run(lanes, server)
        finished = _Finished(skipped=server.skipped)
        finished.add(lanes, server, list(self.jobs))
        return finished

    def copies(self) -> _Finished:
        """Every device with a server of its own."""
        finished = _Finished()
        for place, job in self.jobs.items():
            lane, server = self._lane({place: job}), self._server(job.row.cut or 0)
            self._run([lane], server)
            finished.add([lane], server, [place])
            finished.skipped += server.skipped
        return finished

    def sequential(self) -> _Finished:
        """One server, one device after the other, in an order drawn anew every round."""
        here, finished, server = self.here, _Finished(), self._server(self.first)
        order = generator(here.seed, "split order", here.round).permutation(len(self.jobs))
        start = here.state
        for place in map(int, order):
            lane = Lane(replace(here, state=start), self.ledger, {place: self.jobs[place]})
            self._run([lane], server)
            finished.add([lane], server, [])
            if here.work.hand_over and place not in self.ledger.refused:
                start = replace(
                    start,
                    adapters={**start.adapters, **finished.adapters[place]},
                    head=finished.heads[place] or start.head,
                )
        finished.add([], server, list(self.jobs))
        if here.work.hand_over:
            held = held_by_device(start.adapters, self.first)
            finished.adapters = dict.fromkeys(self.jobs, held)
            finished.heads = dict.fromkeys(self.jobs, start.head)
        finished.skipped, finished.order = server.skipped, tuple(map(int, order))
        return finished

    def _lane(self, jobs: dict[int, SplitJob]) -> Lane:
        return Lane(self.here, self.ledger, jobs)

    def _server(self, first: int) -> TrainedHalf:
        here = self.here
        return TrainedHalf(
            here.base, here.state, settings=here.settings, work=here.work, workload=here.workload,
            seed=here.seed, round=here.round, first=first, trains_from=self.trains_from,
        )  # fmt: skip

    def _run(self, lanes: Sequence[Lane], server: TrainedHalf) -> None:
        """Take all steps of these devices with this server."""
        for step in range(max(lane.steps for lane in lanes)):
            going = [lane for lane in lanes if step < lane.steps and lane.active()]
            arrived = [part for lane in going for part in lane.send(step)]
            if not arrived:
                continue
            lost = {part.device for part in arrived if self.gone[part.device] == step}
            if self.here.labels_stay:
                gradients = _relay(server, arrived, going, step, gone=lost)
            else:
                gradients = self._serve(server, arrived, step)
            for place in lost:
                self.ledger.lost_in[place] = step
                self.ledger.refuse(place, f"lost between forward and backward in step {step}")
            for lane in going:
                lane.learn(step, {p: g for p, g in gradients.items() if p not in lost})

    def _serve(self, server: TrainedHalf, arrived: Sequence[Arrived], step: int) -> Gradients:
        """Have the server learn from what arrived, and put down what it saw."""
        gradients, losses = server.step(arrived)
        for place, loss in losses.items():
            self.ledger.losses[step, place] = loss
            if place not in gradients:
                self.ledger.refuse(place, f"the loss was {loss} in step {step}")
        return gradients


def _relay(
    server: TrainedHalf, arrived: Sequence[Arrived], lanes: Sequence[Lane], step: int, *,
    gone: set[int],
) -> Gradients:  # fmt: skip
    """Where labels stay: last hidden states out, their gradients back."""
    hidden = {p: state for p, state in server.forward(arrived).items() if p not in gone}
    returned: Gradients = {}
    for lane in lanes:
        returned |= lane.finish(step, hidden)
    return server.backward(returned)


def _check(state: GlobalState, jobs: Sequence[SplitJob], work: WorkSpec) -> None:
    if not jobs:
        raise MethodError("a split round needs at least one device, got none")
    rank = next((item.shape[0] for name, item in state.adapters.items() if name[-1] == "A"), 0)
    for job in jobs:
        row = job.row
        if row.cut is None:
            raise MethodError(f"device {job.device} has no cut; train it with the whole model")
        if row.prune_heads or row.prune_ffn or row.rank != rank:
            raise MethodError(
                f"split training takes nothing off the model and one rank of {rank}; device "
                f"{job.device} is told to prune {row.prune_heads:g} and {row.prune_ffn:g} at "
                f"rank {row.rank}"
            )
    if work.penalty != "none":
        raise MethodError(f"penalty {work.penalty!r} is not available in split training; use none")
    if work.hand_over and (work.server != "sequential" or len({j.row.cut for j in jobs}) > 1):
        raise MethodError(
            "the device part can be handed over with a sequential server and one cut for all; "
            f"got a {work.server} server and cuts {sorted({j.row.cut or 0 for j in jobs})}"
        )


def _result(
    here: Here, ledger: StepLog, jobs: Mapping[int, SplitJob], finished: _Finished
) -> SplitResult:
    updates = {
        place: Update(
            device=job.device, round=here.round, kept=keep_all(here.base.shape), rank=job.row.rank,
            adapters={
                name: finished.adapters[place].get(name, finished.servers[place].get(name, tensor))
                for name, tensor in here.state.adapters.items()
            },
            head=finished.heads[place] if here.labels_stay else finished.server_heads[place],
            samples=here.workload.batch * job.row.local_steps,
        )
        for place, job in jobs.items()
    }  # fmt: skip
    for place, update in updates.items():
        if not all(bool(t.isfinite().all()) for t in (update.adapters | update.head).values()):
            ledger.refuse(place, "a tensor of the update was not finite")
    weights = {place: job.weight for place, job in jobs.items() if place not in ledger.refused}
    return SplitResult(
        outcomes=tuple(_outcome(ledger, place, update) for place, update in updates.items()),
        server=mean_by_weight(finished.servers, weights),
        head=mean_by_weight(finished.server_heads, weights),
        ledger=ledger,
        order=finished.order or tuple(jobs),
        skipped=finished.skipped,
    )


def _outcome(ledger: StepLog, place: int, update: Update) -> Outcome:
    reason = ledger.refused.get(place, "")
    seen = ledger.losses[:, place]
    steps = int((ledger.up_bytes[:, place] > 0).sum())
    return Outcome(
        device=update.device,
        status="refused" if reason else "ok",
        update=None if reason else update,
        loss_first=float(seen[0]),
        loss_last=float(seen[max(steps - 1, 0)]),
        samples=update.samples,
        reason=reason,
    )


def mean_by_weight(servers: Mapping[int, Adapters], weights: Mapping[int, float]) -> Adapters:
    """Return the weighted mean over servers, each tensor over those that hold it.

    Args:
        servers: By column.
        weights: By column, of those that count; {} = all count alike.
    """
    chosen = {place: servers[place] for place in weights} or dict(servers)
    if len({id(tensors) for tensors in chosen.values()}) == 1:
        return next(iter(chosen.values()))
    mean: Adapters = {}
    for name in dict.fromkeys(name for tensors in chosen.values() for name in tensors):
        holders = {place: item[name] for place, item in chosen.items() if name in item}
        total = sum(weights.get(place, 1.0) for place in holders)
        parts = [item * (weights.get(place, 1.0) / total) for place, item in holders.items()]
        mean[name] = torch.stack(parts).sum(0)
    return mean
