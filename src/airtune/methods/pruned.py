"""FedSpine and its baselines as methods: decider, aggregation and local work put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from airtune.errors import MethodError, RecipeError
from airtune.methods.fedspine import FedSpine
from airtune.methods.prune_and_tune import PruneAndTune
from airtune.methods.sparsity import check_min_rank
from airtune.methods.unlike_ranks import UnlikeRanks
from airtune.plan import AggregateSpec, ImportanceKind, Method, Want, WorkSpec
from airtune.plan.method import AggregateRule

Chosen = TypeVar("Chosen")

MEMORY = 0.9
"""Share of the old scores when scores of a round are pooled: a round asks few of the devices, and the
scores of few steps are noisy beside the fluctuation that pruning starts from."""

_SENSITIVITY: frozenset[Want] = frozenset({"sensitivity"})


@dataclass(frozen=True, slots=True)
class HetLora:
    """Settings of HETLoRA: unlike ranks that prune themselves."""

    min_rank: int = 2
    """Smallest rank to begin with; the largest is lora.r."""
    penalty_weight: float = 0.005
    """lambda of `lambda |B[:, g r:]| |A[g r:]|`."""
    keep: float = 0.99
    """g, the share of the rank that is not the tail."""

    def __post_init__(self) -> None:
        check_min_rank(self.min_rank)
        if not self.penalty_weight >= 0.0:
            raise RecipeError(f"penalty_weight must be at least 0, got {self.penalty_weight:g}")
        if not 0.0 < self.keep < 1.0:
            raise RecipeError(f"keep must be above 0 and below 1, got {self.keep:g}")


def fedspine(name: str, settings: object) -> Method:
    """Return FedSpine, or one of its forms, with its decider's settings."""
    chosen = _of(settings, FedSpine)
    if chosen.form == "published":
        return _published(name, chosen)
    work = WorkSpec(
        importance="fluctuation" if chosen.pace == "once" else "lora-gradient", cumulative=True
    )
    rule = AggregateSpec("nested", shrinks=True, as_planned=True, agreement=True, memory=MEMORY)
    return Method(name, chosen, rule, work, wants=_SENSITIVITY, paces=True, ranks=_ranks(chosen))


def _published(name: str, chosen: FedSpine) -> Method:
    decider = chosen.published
    work = WorkSpec(
        importance="lora-gradient",
        cumulative=True,
        over=decider.over,
        own_importance=decider.own_importance,
        prune_every=decider.prune_every,
        rank_scale="own",
    )
    rule = AggregateSpec("lifted", shrinks=True, memory=MEMORY)
    return Method(name, decider, rule, work, wants=_SENSITIVITY, ranks=_ranks(chosen))


def hetlora(name: str, settings: object) -> Method:
    """Return HETLoRA."""
    chosen = _of(settings, HetLora)
    work = WorkSpec(penalty="tail", penalty_weight=chosen.penalty_weight, tail=chosen.keep)
    rule = AggregateSpec("norm-weighted")
    ranks = {"min_rank": chosen.min_rank}
    return Method(name, UnlikeRanks(chosen.min_rank), rule, work, ranks=ranks)


def unlike_ranks(rule: AggregateRule) -> Callable[[str, object], Method]:
    """Return what makes a method of unlike ranks with this aggregation."""

    def make(name: str, settings: object) -> Method:
        chosen = _of(settings, UnlikeRanks)
        return Method(name, chosen, AggregateSpec(rule), ranks={"min_rank": chosen.min_rank})

    return make


def pruned_by(importance: ImportanceKind) -> Callable[[str, object], Method]:
    """Return what makes prune-and-tune by this importance."""

    def make(name: str, settings: object) -> Method:
        chosen = _of(settings, PruneAndTune)
        every = chosen.prune_every if chosen.pace == "cubic" else 0
        work = WorkSpec(importance=importance, cumulative=True, prune_every=every)
        rule = AggregateSpec("average", shrinks=True, memory=MEMORY)
        wants = _SENSITIVITY if chosen.order == "measured" else frozenset[Want]()
        return Method(name, chosen, rule, work, wants=wants, ranks={"min_rank": chosen.min_rank})

    return make


def _ranks(chosen: FedSpine) -> dict[str, int]:
    return {"min_rank": chosen.min_rank, "fixed_rank": chosen.fixed_rank}


def _of(settings: object, kind: type[Chosen]) -> Chosen:
    if not isinstance(settings, kind):
        raise MethodError(f"settings must be {kind.__name__}, got {type(settings).__name__}")
    return settings
