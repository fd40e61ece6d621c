"""The rows of what each knob costs in rounds, and what a table of them must be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from airtune.errors import CheckpointError
from airtune.plan.assignment import CodecSpec


class PrunedRounds(NamedTuple):
    """What a mean pruning rate costs."""

    pruned: float
    """Weighted mean fraction of the prunable weights, in [0, 1)."""
    log_rounds: float
    loss: float = 0.0
    """Relative increase of the loss after as many rounds, which a quality budget counts."""


class RankRounds(NamedTuple):
    """What a rank below the full one costs."""

    rank: int
    log_rounds: float
    loss: float = 0.0


class CodecRounds(NamedTuple):
    """What a codec costs at a cut, beside the cut itself."""

    cut: int
    codec: CodecSpec
    log_rounds: float
    loss: float = 0.0
    up_bits: float = 0.0
    """An entry of the activations' payloads; 0 = not measured."""
    down_bits: float = 0.0
    """An entry of the gradients' payloads; 0 = not measured."""


class UploadRounds(NamedTuple):
    """What coding the updates costs, against updates that are sent as they are."""

    codec: CodecSpec
    log_rounds: float
    loss: float = 0.0
    scale: float = 1.0
    """Real bytes over what the formulas expect."""


class StepRounds(NamedTuple):
    """What another number of local steps costs, against the recipe's."""

    local_steps: int
    log_rounds: float
    """Below 0 where more is learnt in a round."""
    loss: float = 0.0


def check_pruning(rows: Sequence[PrunedRounds]) -> None:
    """Refuse a table of pruning that does not rise from nothing.

    Raises:
        CheckpointError: with what was found.
    """
    if rows and tuple(rows[0][:2]) != (0.0, 0.0):
        raise CheckpointError(f"pruning of a measurement begins at [0, 0], got {list(rows[0])}")
    for left, right in pairwise(rows):
        if not left.pruned < right.pruned < 1.0 or right.log_rounds < left.log_rounds:
            raise CheckpointError(
                f"pruning of a measurement must rise, with rates below 1, got {list(left)} before "
                f"{list(right)}; sort the rates: more pruning needs no fewer rounds"
            )


def check_ranks(rows: Sequence[RankRounds]) -> None:
    """Refuse a table of ranks that does not rise to the full one.

    Raises:
        CheckpointError: with what was found.
    """
    if rows and (rows[0].rank < 1 or rows[-1].log_rounds != 0.0):
        raise CheckpointError(
            "ranks of a measurement go from at least 1 to the full rank, which costs 0, got "
            f"{list(rows[0])} to {list(rows[-1])}"
        )
    for low, high in pairwise(rows):
        if high.rank <= low.rank or high.log_rounds > low.log_rounds:
            raise CheckpointError(
                f"ranks of a measurement must rise and their rounds must not, got {list(low)} "
                f"before {list(high)}"
            )


def check_codecs(rows: Sequence[CodecRounds]) -> None:
    """Refuse codecs without a price at rising cuts.

    Raises:
        CheckpointError: with what was found.
    """
    last: dict[CodecSpec, int] = {}
    for cut, codec, log_rounds, *_ in rows:
        if cut <= last.get(codec, 0) or log_rounds < 0.0:
            raise CheckpointError(
                "codecs of a measurement have rising cuts from 1 on, each once, and cost at least "
                f"0, got {log_rounds:g} at cut {cut} of {codec.label}"
            )
        last[codec] = cut


def check_uploads(rows: Sequence[UploadRounds]) -> None:
    """Refuse codecs of updates that do not begin with none.

    Raises:
        CheckpointError: with what was found.
    """
    if rows and rows[0][:2] != (CodecSpec(), 0.0):
        raise CheckpointError(
            f"uploads of a measurement begin with the identity at 0, got {rows[0].codec.label} at "
            f"{rows[0].log_rounds:g}"
        )
    seen: set[CodecSpec] = set()
    for row in rows:
        if row.codec in seen or row.log_rounds < 0.0 or row.scale <= 0.0:
            raise CheckpointError(
                "uploads of a measurement have each codec once, at a cost of at least 0 and a scale "
                f"above 0, got {row.codec.label} at {row.log_rounds:g} and {row.scale:g}"
            )
        seen.add(row.codec)


def check_steps(rows: Sequence[StepRounds]) -> None:
    """Refuse local steps that do not rise.

    Raises:
        CheckpointError: with what was found.
    """
    steps = [row.local_steps for row in rows]
    if rows and (
        steps[0] < 1 or steps != sorted(set(steps)) or all(row.log_rounds for row in rows)
    ):
        raise CheckpointError(
            "steps of a measurement rise from at least 1, one of them at 0, got "
            + ", ".join(f"{row.local_steps} at {row.log_rounds:g}" for row in rows)
        )
