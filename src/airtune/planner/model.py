"""What it takes to train a model on one kind of device: precision, recomputation, pruning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from airtune.cost import ladder, peak_memory, predict
from airtune.errors import InfeasibleError
from airtune.fleet import Fleet, load_fleet
from airtune.plan import Assignments, ModelShape, Problem, Workload
from airtune.planner.cuts import PLANNED_CODEC, CutChoice, cut_choices
from airtune.planner.shape import find_shape

_PRUNED = (0.0, 0.25, 0.5)
"""Pruned fractions that are shown, each at the nearest level of the ladder."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """One way to train a model on a device."""

    precision: str
    checkpointing: bool
    pruned: float
    weights_bytes: float
    activations_bytes: float
    logits_bytes: float
    peak_bytes: float
    fits: bool
    step_s: float
    round_s: float
    upload_bytes: float
    energy_j: float
    """A round."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The ways to train a model on one kind of device, cheapest in memory last."""

    model: str
    parameters: int
    device: str
    memory_bytes: float
    flops_per_s: float
    workload: Workload
    choices: tuple[ModelChoice, ...]
    cuts: tuple[CutChoice, ...]
    """The model cut between device and server, in the plainest precision of which a cut fits."""
    assumptions: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def plan_model(
    model: str,
    device: str,
    *,
    batch: int = 1,
    tokens: int = 512,
    rank: int = 8,
    local_steps: int = 10,
) -> ModelPlan:
    """Return the ways to train a model on a kind of device, which fit and what they take.

    Args:
        model: a published name such as Qwen/Qwen2.5-0.5B, a folder, or a hub id (its config only).
        device: a kind of device of the catalogue.
        batch: sequences in a step.
        tokens: length of a sequence.
        rank: of the adapters.
        local_steps: in a round.

    Raises:
        FleetError: if there is no such device.
        ModelError: if the model's config cannot be found.
        InfeasibleError: if nothing fits; the message says what is nearest.
    """
    shape = find_shape(model)
    fleet = load_fleet(device)
    kind_bytes = float(fleet.memory_bytes[0])
    base = Workload(
        batch=batch,
        tokens=tokens,
        local_steps=local_steps,
        rank=rank,
        lora_targets=tuple(linear.name for linear in shape.linears),
        loss_chunk=256,
        trains_head=shape.labels > 0,
    )
    choices = tuple(
        _choice(shape, replace(base, **form), name, pruned, fleet)
        for name, form in _forms()
        for pruned in _PRUNED
    )
    cuts = _cuts(shape, base, fleet)
    if not any([*(choice.fits for choice in choices), *(choice.fits for choice in cuts)]):
        least = min(choices, key=lambda choice: choice.peak_bytes)
        raise InfeasibleError(
            f"nothing fits {model} on {device}: {least.precision} with {least.pruned:.0%} pruned "
            f"still needs {least.peak_bytes / 2**30:.1f} GiB of {kind_bytes / 2**30:.1f} GiB, and "
            "no cut does; take a shorter --tokens, a smaller --batch or a smaller model"
        )
    return ModelPlan(
        model=model,
        parameters=shape.parameters,
        device=device,
        memory_bytes=kind_bytes,
        flops_per_s=float(fleet.flops_per_s[0]),
        workload=base,
        choices=choices,
        cuts=cuts,
        assumptions=(
            *fleet.assumptions,
            "the loss is computed in chunks of 256 positions, so the full logits are never in memory",
            f"split model: {PLANNED_CODEC.label} codec both ways; the server serves no other device",
            "the memory shown excludes framework and kernels, about 0.3-0.5 GiB on a CPU",
        ),
    )


def _cuts(shape: ModelShape, base: Workload, fleet: Fleet) -> tuple[CutChoice, ...]:
    """Return the cuts in the plainest precision in which one fits, or in the most frugal."""
    found: tuple[CutChoice, ...] = ()
    for name, form in _forms():
        found = cut_choices(shape, replace(base, **form), fleet, name)
        if any(choice.fits for choice in found):
            break
    return found


_PRECISION_BY_BITS = {32: "float32", 16: "bfloat16", 4: "4bit"}


def _forms() -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield precisions and whether activations are recomputed, from plain to frugal."""
    yield "float32", {"dtype_bytes": 4, "base_bits": 32}
    yield "bfloat16", {"dtype_bytes": 2, "base_bits": 16}
    yield "bfloat16 + checkpointing", {"dtype_bytes": 2, "base_bits": 16, "checkpointing": True}
    yield "4-bit + checkpointing", {"dtype_bytes": 2, "base_bits": 4, "checkpointing": True}


def _choice(
    shape: ModelShape, workload: Workload, precision: str, pruned: float, fleet: Fleet
) -> ModelChoice:
    levels = ladder(shape, workload)
    level = int(np.argmin(np.abs(levels.pruned - pruned)))
    assignments = Assignments(
        device=np.zeros(1, np.int64),
        prune_heads=levels.prune_heads[[level]],
        prune_ffn=levels.prune_ffn[[level]],
        rank=np.array([workload.rank]),
        share=np.ones(1),
        local_steps=np.array([workload.local_steps]),
        cut=np.zeros(1, np.int64),
        codec_index=np.zeros(1, np.int64),
    )
    fleet = fleet.at_precision(_PRECISION_BY_BITS[workload.base_bits])
    problem = Problem(shape, fleet.profiles(np.ones(1, np.int64)), workload, rounds=1, seed=0)
    cost = predict(
        problem, assignments, links=fleet.links_at(0, 0, 0.0), flops_per_s=fleet.flops_at(0)
    )
    memory = peak_memory(shape, workload, assignments)
    parts = {
        name: float(np.broadcast_to(getattr(memory, name), (1,))[0])
        for name in ("weights", "activations", "logits", "total")
    }
    return ModelChoice(
        precision=precision,
        checkpointing=workload.checkpointing,
        pruned=float(levels.pruned[level]),
        weights_bytes=parts["weights"],
        activations_bytes=parts["activations"],
        logits_bytes=parts["logits"],
        peak_bytes=parts["total"],
        fits=parts["total"] <= float(fleet.memory_bytes[0]),
        step_s=float(cost.compute_s[0]) / workload.local_steps,
        round_s=cost.round_s,
        upload_bytes=float(cost.upload_bytes[0]),
        energy_j=float(cost.energy_j[0]),
    )
