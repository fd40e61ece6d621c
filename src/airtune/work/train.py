"""The local work of a round: slice the model, attach LoRA, train, report.

Written once for every method and engine. Each round a device starts from the global adapters with
fresh AdamW moments (a slice may change from round to round, and moments of another slice mean
nothing); that, the clipping of gradients and the trained task head are the same for every method.

A method that prunes every so many local iterations may prune several times in a round: adapters,
heads and scores are then carried over each slicing, the moments are not.

Devices with equal slice, rank and steps are trained in one batched pass: their adapters are stacked
on one frozen network. Nothing of one device reaches another: losses are separate means, gradients
fall into separate factors, clipping is by device, AdamW is elementwise and dropout has a stream a
device (how far its batch is padded, which shifts a mask, is all that company decides). A device
whose loss, gradient or tensors stop being finite is refused; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airtune.errors import MethodError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.batch import Batch
from airtune.model.images import Examples
from airtune.model.importance import Importance
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import Adapters, Head, LoraNetwork, attach, rescaled, scatter, take
from airtune.model.loss import Teacher, batch_losses, scored
from airtune.model.slicing import slice_network
from airtune.model.state import GlobalState, Update
from airtune.plan import Bools, Floats, Ints, ModelShape, Workload, WorkSpec
from airtune.work.batches import collate_examples, join_examples, lengths_of, round_batches
from airtune.work.gradients import PassWatch, clip_
from airtune.work.jobs import Job, Outcome, TrainSettings
from airtune.work.network import checkpoint_, current_base, mending_of, stages_by


@dataclass(frozen=True, slots=True)
class _TrainingRound:
    """What all jobs of a round share."""

    base: BaseModel
    state: GlobalState
    settings: TrainSettings
    work: WorkSpec
    workload: Workload
    seed: int
    round: int

    @property
    def shape(self) -> ModelShape:
        """The unpruned model."""
        return self.base.shape

    def gain(self, rank: int) -> float:
        """Return how many times the shared scale a device of a rank trains with."""
        return self.workload.rank / rank if self.work.rank_scale == "own" else 1.0

    def teacher(self, kept: Kept) -> Teacher | None:
        """Return whom a slice learns from beside the labels: the dense base, or nobody."""
        if self.work.distill == 0.0 or kept == keep_all(self.shape):
            return None
        return Teacher(self.base.network, self.work.distill)


def train(
    base: BaseModel,
    state: GlobalState,
    jobs: Sequence[Job],
    *,
    settings: TrainSettings,
    work: WorkSpec,
    workload: Workload,
    seed: int,
    round: int,
) -> list[Outcome]:
    """Do the local work of several devices.

    Args:
        base: the frozen dense model.
        state: the server's model, which every device starts from.
        jobs: the devices, with what each is told and its data.
        settings: learning rate and the like.
        work: switches of the method.
        workload: batch, length and memory-saving switches.
        seed: of the run; batches and dropout are drawn by (seed, round, device).
        round: counted from 0.

    Returns:
        One outcome a job, in the order of the jobs; tensors are on the CPU.

    Raises:
        MethodError: if the method asks for local work that does not exist.
        ModelError: if a job prunes and no importance was measured, or its rank is too large.
        DataError: if a device has no example.
    """
    _check_work(work, jobs)
    context = _TrainingRound(
        current_base(base, state), state, settings, work, workload, seed, round
    )
    outcomes: dict[int, Outcome] = {}
    for stages, group in _passes(context, jobs):
        outcomes |= {outcome.device: outcome for outcome in _train_pass(context, stages, group)}
    return [outcomes[job.device] for job in jobs]


def _check_work(work: WorkSpec, jobs: Sequence[Job]) -> None:
    if work.penalty not in ("none", "proximal", "tail"):
        raise MethodError(
            f"penalty {work.penalty!r} is not available in local work; use none, proximal or tail"
        )
    for job in jobs:
        if job.row.cut:
            raise MethodError(
                f"device {job.device} is told to cut at block {job.row.cut}, but split training "
                "is not available in local work; leave the model whole"
            )


def _passes(
    context: _TrainingRound, jobs: Sequence[Job]
) -> Iterator[tuple[tuple[Kept, ...], list[Job]]]:
    """Yield groups that one pass can train, none above the cap on tokens."""
    groups: dict[tuple[bytes, int, int], tuple[tuple[Kept, ...], list[Job]]] = {}
    for job in jobs:
        stages = stages_by(job.row, context.state, context.shape, context.work)
        key = (b"".join(kept.key() for kept in stages), job.row.rank, job.row.local_steps)
        groups.setdefault(key, (stages, []))[1].append(job)
    for stages, group in groups.values():
        limit = context.workload.tokens
        longest = max(int(lengths_of(job.sequences, tokens=limit).max(initial=1)) for job in group)
        tokens = context.workload.batch * longest
        together = max(1, context.settings.pass_tokens // tokens)
        for start in range(0, len(group), together):
            yield stages, group[start : start + together]


@dataclass(frozen=True, slots=True)
class _Carried:
    """What devices take from one pruning of a round to the next: all but the optimiser's moments."""

    adapters: list[Adapters]
    """On the full grid."""
    heads: list[Head]
    importance: list[Importance | None]


def _train_pass(
    context: _TrainingRound, stages: Sequence[Kept], jobs: Sequence[Job]
) -> list[Outcome]:
    """Train devices of one slice, rank and number of steps together."""
    steps, rank = jobs[0].row.local_steps, jobs[0].row.rank
    drawn = [_draw(context, job, steps) for job in jobs]
    known = [context.state.devices.get(job.device) for job in jobs]
    carried = _Carried(
        [context.state.adapters] * len(jobs),
        [context.state.head] * len(jobs),
        [None if one is None else one.importance for one in known],
    )
    tables, finite, totals = [], np.ones(len(jobs), np.bool_), []
    every = context.work.prune_every if len(stages) > 1 else steps
    for index, kept in enumerate(stages):
        lora = _network(context, kept, jobs, carried)
        watch = PassWatch(lora, context.work, context.shape, kept, carried.importance)
        span = range(index * every, min((index + 1) * every, steps))
        table, good = _steps(
            context, watch, jobs, [rows[span.start : span.stop] for rows in drawn], first=span.start
        )
        tables.append(table)
        finite &= good
        readings = watch.readings()
        totals.append([np.nan if reading is None else reading.total for reading in readings])
        if index + 1 < len(stages):
            carried = _Carried(
                [scatter(one, context.shape, kept) for one in _adapters(context, watch, rank)],
                lora.heads(),
                [None if reading is None else reading.importance for reading in readings],
            )
    total = np.mean(np.array(totals), axis=0)
    return _outcomes(context, jobs, watch, losses=np.vstack(tables), finite=finite, total=total)


def _steps(
    context: _TrainingRound,
    watch: PassWatch,
    jobs: Sequence[Job],
    drawn: Sequence[Ints],
    *,
    first: int,
) -> tuple[Floats, Bools]:
    """Take local steps on one network; return losses (steps, devices) and who stayed finite."""
    lora = watch.lora
    finite = torch.ones(len(jobs), dtype=torch.bool, device=context.base.device)
    losses = []
    optimiser = torch.optim.AdamW(
        lora.parameters(),
        lr=context.settings.learning_rate,
        weight_decay=context.settings.weight_decay,
    )
    for step in range(len(drawn[0])):
        lora.set_step(first + step)
        batch = _batch(
            context, [(job.sequences, rows[step]) for job, rows in zip(jobs, drawn, strict=True)]
        )
        optimiser.zero_grad(set_to_none=True)
        watch.before(batch)
        loss = _losses(context, watch, batch)
        torch.autograd.backward(loss.sum())
        watch.after(loss.detach())
        norms = clip_(lora.parameters(), limit=context.settings.max_grad_norm)
        finite &= torch.isfinite(loss.detach()) & torch.isfinite(norms)
        losses.append(torch.where(_any_scored(batch, len(jobs)), loss.detach(), torch.nan))
        optimiser.step()
    return torch.stack(losses).double().cpu().numpy(), finite.cpu().numpy()


def _network(
    context: _TrainingRound, kept: Kept, jobs: Sequence[Job], carried: _Carried
) -> LoraNetwork:
    rank = jobs[0].row.rank
    mending = mending_of(context.base, context.state, context.work)
    sliced = slice_network(context.base, kept, mending=mending)
    lora = attach(
        sliced,
        context.base.family,
        _slices(context, kept, rank, carried.adapters),
        scale=context.gain(rank) * context.settings.scale,
        dropout=context.settings.dropout,
        heads=carried.heads if context.state.head else (),
        seeds=[derive_seed(context.seed, "train", context.round, job.device) for job in jobs],
    )
    if context.workload.checkpointing:
        checkpoint_(lora.network)
    return lora.train()


def _adapters(context: _TrainingRound, watch: PassWatch, rank: int) -> list[Adapters]:
    """Return what every device has trained, in the scale that all share."""
    return [rescaled(one, context.gain(rank)) for one in watch.lora.adapters()]


def _slices(
    context: _TrainingRound, kept: Kept, rank: int, full: Sequence[Adapters]
) -> list[Adapters]:
    """Cut every device's slice out of its adapters, in its scale; once where all start alike."""
    is_shared = all(one is full[0] for one in full)
    slices = [
        rescaled(take(one, context.shape, kept, rank), 1.0 / context.gain(rank))
        for one in (full[:1] if is_shared else full)
    ]
    return slices * len(full) if is_shared else slices


def _draw(context: _TrainingRound, job: Job, steps: int) -> Ints:
    return round_batches(
        len(job.sequences),
        steps=steps,
        batch=context.workload.batch,
        seed=context.seed,
        round=context.round,
        device=job.device,
    )


def _batch(context: _TrainingRound, parts: Sequence[tuple[Examples, Ints]]) -> Batch:
    """Return one padded batch of all devices, one after the other."""
    joined = join_examples(parts)
    return collate_examples(
        joined, range(len(joined)), tokens=context.workload.tokens, device=context.base.device
    )


def _any_scored(batch: Batch, devices: int) -> torch.Tensor:
    """Return which devices have something to learn from in this batch, (devices,)."""
    if batch.labels.dim() == 1:
        return torch.ones(devices, dtype=torch.bool, device=batch.labels.device)
    return scored(batch).reshape(devices, -1).any(1)


def _losses(context: _TrainingRound, watch: PassWatch, batch: Batch) -> torch.Tensor:
    """Return the mean loss of each device, (devices,); zero where nothing is scored.

    A batch may hold only prompts that fill the whole length; there is nothing to learn from it,
    which is no reason to refuse the device.
    """
    lora = watch.lora
    losses = batch_losses(
        lora.network,
        batch,
        devices=lora.devices,
        chunk=context.workload.loss_chunk,
        teacher=context.teacher(watch.kept),
    )
    return torch.where(_any_scored(batch, lora.devices), losses, 0.0)


def _outcomes(
    context: _TrainingRound,
    jobs: Sequence[Job],
    watch: PassWatch,
    *,
    losses: Floats,
    finite: Bools,
    total: Floats,
) -> list[Outcome]:
    rows = zip(
        jobs,
        _adapters(context, watch, jobs[0].row.rank),
        watch.lora.heads(),
        watch.readings(),
        watch.ranks_left(jobs[0].row.rank),
        strict=True,
    )
    outcomes = []
    for index, (job, adapters, heads, reading, rank_left) in enumerate(rows):
        tensors = {name: tensor.cpu() for name, tensor in adapters.items()}
        head = {name: tensor.cpu() for name, tensor in heads.items()}
        whole = all(bool(tensor.isfinite().all()) for tensor in (*tensors.values(), *head.values()))
        samples = context.workload.batch * len(losses)
        update = Update(
            device=job.device,
            round=context.round,
            kept=watch.kept,
            rank=job.row.rank,
            adapters=tensors,
            head=head,
            samples=samples,
            importance=None if reading is None else reading.importance,
        )
        good = bool(finite[index]) and whole
        outcomes.append(
            Outcome(
                device=job.device,
                status="ok" if good else "refused",
                update=update if good else None,
                loss_first=float(losses[0, index]),
                loss_last=float(losses[-1, index]),
                samples=samples,
                importance=float(total[index]) if good else float("nan"),
                rank_left=rank_left if good else 0,
                reason="" if good else _refusal(losses[:, index]),
            )
        )
    return outcomes


def _refusal(losses: Floats) -> str:
    wrong = np.flatnonzero(~np.isfinite(losses))
    what = (
        f"the loss was {losses[wrong[0]]} in step {wrong[0]}"
        if len(wrong)
        else ("a gradient or a tensor was not finite")
    )
    return f"update refused: {what}; lower train.learning_rate"
