"""The local work of a method: what may differ between methods beside the five knobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from airtune.errors import MethodError
from airtune.plan.assignment import CodecSpec

ImportanceKind = Literal[
    "fluctuation", "magnitude", "random", "lora-gradient", "first-order", "salience"
]

Mend = Literal["none", "mean", "least-squares"]


@dataclass(frozen=True, slots=True)
class WorkSpec:
    """The closed set of switches by which methods change the local work."""

    importance: ImportanceKind = "fluctuation"
    mend: Mend = "mean"
    """What stands for what is removed: nothing; its mean, a constant vector a layer; or the least
    squares of what stays, from second moments that devices measure with the scores."""
    distill: float = 0.0
    """How much the logits of the dense base count beside the labels while a slice trains, in [0, 1);
    0 = not at all. For language models, on devices that hold the dense base."""
    cumulative: bool = False
    """Pruned structures never come back (FedSpine); otherwise the dense base is sliced anew."""
    prune_every: int = 0
    """Local iterations between prunings of a round that has more of them, with `cumulative`; 0 = a
    round prunes once, before its first iteration."""
    over: Literal["layers", "model"] = "layers"
    """Where structures compete: within each block, so that all blocks keep the same number and plain
    tools can load the result, or over the whole model."""
    own_importance: float = 0.0
    """Weight of a device's own scores against the pooled ones when it prunes, in [0, 1]."""
    rank_scale: Literal["shared", "own"] = "shared"
    """What divides lora_alpha in the scale of B A while a device trains: the largest rank for all, or
    its own, so that a device of low rank moves the product as far in a step as one of a high rank."""
    penalty: Literal["none", "proximal", "tail"] = "none"
    penalty_weight: float = 0.0
    tail: float = 0.99
    """Share of the rank that a tail penalty leaves alone."""
    labels: Literal["travel", "stay"] = "travel"
    device_frozen: bool = False
    server: Literal["shared", "copies", "sequential"] = "shared"
    """shared: one server model for all, in one pass · copies: one a device · sequential: one that
    serves the devices one after the other."""
    gradient: CodecSpec | None = None
    """Codec of what the server sends over a cut; None = that of the activation."""
    reuse_mask: bool = False
    """A Top-K gradient keeps the positions its activation kept, which both ends know."""
    hand_over: bool = False
    """With a sequential server: each device starts from the device part of the one before it."""

    def __post_init__(self) -> None:
        check_choice("importance", self.importance, ImportanceKind)


def check_choice(what: str, value: object, choices: object) -> None:
    """Refuse a value that is none of a Literal's.

    Raises:
        MethodError: naming what it is, the value and the choices.

    >>> check_choice("importance", "magnitude", ImportanceKind)
    """
    if value not in get_args(choices):
        raise MethodError(f"{what} must be one of {', '.join(get_args(choices))}, got {value!r}")
