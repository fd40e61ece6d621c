"""The server step after aggregation: momentum, and a running mean of the weights.

With theta the server's tensors before a round and g the mean change that its devices made of what
they were sent,

    v <- m v + g,    theta <- theta + v,    mean <- b_t mean + (1 - b_t) theta

where devices were asked at random, g is that times the share of the data that the round
stands for; with m the momentum (FedAvgM, Hsu et al., arXiv 1909.06335), b_t = min(b, (1 + t) / (10 + t)) and t
the rounds so far, so that early rounds, which are far from the end, are soon forgotten. The mean is
evaluated and exported; devices go on from theta. One device's change of a few steps is mostly noise
and a round averages few devices; the mean over rounds averages that noise away at no cost on the air.

Where the aggregation gives the adapters new axes every round, factors of two rounds do not compare:
there the products are averaged and factored anew, and momentum is refused
(`airtune.run.method.check_axes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from airtune.errors import ModelError
from airtune.model.lora import Adapters
from airtune.model.rules import RULES
from airtune.model.rules.products import mixed_products
from airtune.model.state import GlobalState
from airtune.plan.method import AggregateRule

Tensors = Mapping[str, torch.Tensor]
_GROUPS = ("adapters", "head", "merged")


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """How the server goes from one round to the next; the default does nothing of it."""

    average: float = 0.0
    """Most that the old mean counts, in [0, 1); 0 = no mean is kept."""
    momentum: float = 0.0
    """What is left of the last round's change in the next, in [0, 1)."""


def advance(
    settings: ServerOptimizer,
    before: GlobalState,
    sent: GlobalState,
    after: GlobalState,
    *,
    rule: AggregateRule,
    stands_for: float = 1.0,
) -> GlobalState:
    """Return the server's state after a round.

    Args:
        settings: of the run.
        before: the server's state.
        sent: what its devices worked from: `before` as it came out of the codec of the broadcast.
        after: what the aggregation made of `sent` and the updates.
        rule: of the aggregation.
        stands_for: how much of the data the round's devices stand for, each counted as many times
            as it weighs: of those asked at random 1 on average. The change is multiplied by it,
            so that its expectation over who is asked is the mean change of all.

    Raises:
        ModelError: if it is not 1 and the aggregation gives the adapters new axes.
    """
    keeps_axes, is_whole = RULES[rule].keeps_axes, stands_for == 1.0
    if not (keeps_axes or is_whole):
        raise ModelError(
            f"{rule} aggregation gives the adapters new axes, along which a part of a round's change "
            "is not defined; devices asked at random need one that keeps them"
        )
    is_sent = sent.adapters is before.adapters
    if keeps_axes and not (is_sent and is_whole and not settings.momentum):
        after = _moved(settings, before, sent, after, stands_for)
    if not settings.average:
        return after
    kept = min(settings.average, (1.0 + before.round) / (10.0 + before.round))
    return replace(after, average=_mean(kept, before, after, turns=not RULES[rule].keeps_axes))


def evaluated(state: GlobalState) -> GlobalState:
    """Return the model that is evaluated and exported: the mean over rounds where one is kept."""
    if not state.average:
        return state
    return _with(replace(state, average={}, velocity={}), state.average)


def _moved(
    settings: ServerOptimizer,
    before: GlobalState,
    sent: GlobalState,
    after: GlobalState,
    stands_for: float,
) -> GlobalState:
    """Return the server's own tensors, moved by the devices' mean change of what they were sent."""
    old, start, end = _grouped(before), _grouped(sent), _grouped(after)
    change = {name: stands_for * (end[name] - start[name]) for name in end}
    if settings.momentum:
        past = before.velocity
        change = {
            name: item + settings.momentum * past[name] if name in past else item
            for name, item in change.items()
        }
    moved = {name: old[name] + item for name, item in change.items()}
    return _with(replace(after, velocity=change if settings.momentum else {}), moved)


def _mean(kept: float, before: GlobalState, after: GlobalState, *, turns: bool) -> Tensors:
    """Return the running mean; it begins with the state before the first round."""
    old = before.average or _grouped(before)
    new = _grouped(after)
    mean = {
        name: torch.lerp(tensor, old[name].to(tensor), kept)
        if name in old
        else (1.0 - kept) * tensor  # merged for the first time: before, nothing was
        for name, tensor in new.items()
    }
    if turns:
        mixed = mixed_products(_with(before, old).adapters, after.adapters, share=1.0 - kept)
        mean |= {f"adapters/{name}": tensor for name, tensor in mixed.items()}
    return mean


def _grouped(state: GlobalState) -> dict[str, torch.Tensor]:
    groups: dict[str, Adapters] = {
        "adapters": state.adapters,
        "head": state.head,
        "merged": dict(state.merged),
    }
    return {f"{kind}/{name}": item for kind in _GROUPS for name, item in groups[kind].items()}


def _with(state: GlobalState, tensors: Tensors) -> GlobalState:
    """Return a state with these tensors, by group and name, in place of its own."""
    found: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in _GROUPS}
    for path, tensor in tensors.items():
        kind, _, name = path.partition("/")
        found[kind][name] = tensor
    return replace(state, adapters=found["adapters"], head=found["head"], merged=found["merged"])
