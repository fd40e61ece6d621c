"""What each knob costs this model on these data, in one unit: the rounds that it needs.

Every entry is `ln K`, the natural logarithm of the rounds needed relative to dense, whole training
at full rank, down to the same loss: 0 = as many, 0.7 = twice as many, below 0 = fewer. A fleet that
mixes lines adds the parts up, each in proportion to the devices' share of the data.

Source: this project's; pruning's part alone is the K of `solve/rounds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from airtune.errors import CheckpointError, MismatchError, RecipeError
from airtune.plan.assignment import CodecSpec
from airtune.plan.rounds_tables import (
    CodecRounds,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
    check_codecs,
    check_pruning,
    check_ranks,
    check_steps,
    check_uploads,
)

SCHEMA = 2
"""Of the document; schema 1 was that of single measurements."""

TABLES = ("pruning", "ranks", "codecs", "cut", "uploads", "steps")


@dataclass(frozen=True, slots=True)
class CodedScale:
    """Real bytes of coded adapters over what the formulas expect, measured by short runs."""

    up: float = 1.0
    """Of updates, in the recipe's codec."""
    down: float = 1.0
    uploads: tuple[tuple[CodecSpec, float], ...] = ()
    """Of updates in other codecs."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """The tables of ln K; an empty one, or None, was not measured.

    Raises:
        CheckpointError: if a table is no table of costs: not finite, not rising, asked twice.
    """

    fingerprint: str
    """Of the weights it was measured on."""
    source: str
    """One line that says how it was measured."""
    curve: tuple[float, ...] = ()
    """Validation loss of the reference (dense, whole, full rank) before the first round and after
    each; rounds were counted down to about its last."""
    pruning: tuple[PrunedRounds, ...] = ()
    """Rising in both columns, from no pruning at ln K = 0."""
    ranks: tuple[RankRounds, ...] = ()
    """Rising ranks, up to the full one at ln K = 0; a larger rank costs no more."""
    codecs: tuple[CodecRounds, ...] = ()
    """At least 0: compression never helps."""
    codecs_at: float = 0.0
    """Round of the short runs whose loss stands in `codecs`, a mean; 0 = not known."""
    cut: float | None = None
    """Of being cut without compression; below 0 where one shared server model learns faster than
    averaged copies."""
    uploads: tuple[UploadRounds, ...] = ()
    """Each codec once, the identity first at ln K = 0; at least 0, as compression never helps."""
    steps: tuple[StepRounds, ...] = ()
    """Rising local steps, the recipe's number at ln K = 0."""
    most_pruned: float = 1.0
    """Largest pruning rate of a device in a short run whose loss did not run away."""
    filled: float = 1.0
    """Real tokens of a text over those it may have, the mean over devices; padding does not cross."""
    coded_scale: CodedScale = field(default_factory=CodedScale)

    def __post_init__(self) -> None:
        _check_finite(self)
        check_pruning(self.pruning)
        check_ranks(self.ranks)
        check_codecs(self.codecs)
        check_uploads(self.uploads)
        check_steps(self.steps)

    @property
    def measured(self) -> frozenset[str]:
        """The names of the tables that are there."""
        return frozenset(
            name for name in TABLES if getattr(self, name) is not None and getattr(self, name) != ()
        )

    def require(self, *tables: str) -> None:
        """Refuse to go on without these tables.

        Raises:
            RecipeError: naming those that are missing.
        """
        missing = [name for name in tables if name not in self.measured]
        if missing:
            raise RecipeError(
                f"the cost of {' and '.join(missing)} was not measured; the measurement has "
                f"{', '.join(sorted(self.measured)) or 'nothing'}; measure it with airtune calibrate"
            )

    def check_model(self, fingerprint: str) -> None:
        """Refuse a measurement of another model.

        Raises:
            MismatchError: with both fingerprints.
        """
        if fingerprint != self.fingerprint:
            raise MismatchError(
                f"the stored costs are of weights {self.fingerprint[:12]}, but the model has weights "
                f"{fingerprint[:12]}; measure this model with airtune calibrate"
            )

    def rank_rounds(self, rank: int) -> float:
        """Return ln K of a rank: linear in ln rank, the last slope going on below; 0 from full on.

        Raises:
            RecipeError: if ranks were not measured.

        >>> found = Measurements("f", "an example", ranks=(RankRounds(4, 0.2), RankRounds(8, 0.0)))
        >>> [round(found.rank_rounds(rank), 6) for rank in (16, 8, 4, 2)]
        [0.0, 0.0, 0.2, 0.4]
        """
        self.require("ranks")
        at = np.log([row.rank for row in self.ranks])
        values = np.array([row.log_rounds for row in self.ranks])
        asked = math.log(rank)
        if asked >= at[0] or at.shape[0] < 2:
            return float(np.interp(asked, at, values))
        slope = (values[1] - values[0]) / (at[1] - at[0])
        return float(values[0] + slope * (asked - at[0]))

    @property
    def codecs_measured(self) -> tuple[CodecSpec, ...]:
        """The codecs whose cost was measured, each once, in the order of the menu."""
        return tuple(dict.fromkeys(row.codec for row in self.codecs))

    def codec_rounds(self, cut: int, codec: CodecSpec) -> float:
        """Return ln K of a codec at a cut, linear between the cuts measured; the identity costs 0.

        Prediction does not count: it changes the bytes.

        Raises:
            RecipeError: if the codec was not measured.
        """
        if codec.kind != "identity" and not self._rows_of(codec):
            known = ", ".join(one.label for one in self.codecs_measured) or "none"
            raise RecipeError(
                f"the cost of codec {codec.label} was not measured; measured are {known}; put it "
                "into split.codecs and measure again"
            )
        return _between(cut, [(row.cut, row.log_rounds) for row in self._rows_of(codec)])

    def steps_rounds(self, local_steps: int) -> float:
        """Return ln K of a number of local steps; the recipe's costs 0.

        Raises:
            RecipeError: if it was not measured.
        """
        known = {row.local_steps: row.log_rounds for row in self.steps}
        if local_steps not in known:
            raise RecipeError(
                f"the cost of {local_steps} local steps was not measured; measured are "
                f"{', '.join(map(str, known)) or 'none'}; measure again with airtune calibrate"
            )
        return known[local_steps]

    def upload_rounds(self, codec: CodecSpec) -> float:
        """Return ln K of coding the updates; the identity costs 0.

        Raises:
            RecipeError: if the codec was not measured.
        """
        known = {row.codec: row.log_rounds for row in self.uploads} | {CodecSpec(): 0.0}
        if codec not in known:
            raise RecipeError(
                f"the cost of updates coded with {codec.label} was not measured; measured are "
                f"{', '.join(each.label for each in known)}; put it into calibration.uploads and "
                "measure again"
            )
        return known[codec]

    def codec_loss(self, cut: int, codec: CodecSpec, *, rounds: float = 0.0) -> float:
        """Return the relative increase of the loss by a codec at a cut; 0 if it was not measured.

        Losses are taken to fall with a power of 1 + rounds, with a codec by another power than
        without. So the logarithm of their ratio grows with that of the rounds. An estimate: in one
        case it was measured at .9 % after 3.5 rounds and 2.3 % after 12.5, and this says 1.5 %.

        Args:
            cut: blocks on the device.
            codec: of what crosses.
            rounds: of the run; no more than the short runs had = what these measured.

        >>> found = Measurements("f", "an example", codecs_at=1.0, codecs=(
        ...     CodecRounds(1, CodecSpec("fp16"), 0.0, 0.1),))
        >>> [round(found.codec_loss(1, CodecSpec("fp16"), rounds=rounds), 6) for rounds in (1, 3)]
        [0.1, 0.21]
        """
        measured = _between(cut, [(row.cut, row.loss) for row in self._rows_of(codec)])
        if not self.codecs_at or rounds <= self.codecs_at:
            return measured
        growth = math.log1p(rounds) / math.log1p(self.codecs_at)
        return math.expm1(growth * math.log1p(measured))

    def codec_bits(self, cut: int, codec: CodecSpec) -> tuple[float, float] | None:
        """Return bits an entry of activation and gradient at a cut; None if they were not measured."""
        rows = [row for row in self._rows_of(codec) if row.up_bits > 0.0]
        if not rows:
            return None
        return (
            _between(cut, [(row.cut, row.up_bits) for row in rows]),
            _between(cut, [(row.cut, row.down_bits) for row in rows]),
        )

    def _rows_of(self, codec: CodecSpec) -> list[CodecRounds]:
        plain = replace(codec, predict=False)
        return [row for row in self.codecs if row.codec == plain]

    def as_document(self) -> dict[str, Any]:
        """Return plain values, for a file or a run's header."""
        return {"schema": SCHEMA, **asdict(self)} | {
            "pruning": [list(row) for row in self.pruning],
            "ranks": [list(row) for row in self.ranks],
            "codecs": [[cut, asdict(codec), *costs] for cut, codec, *costs in self.codecs],
            "uploads": [[asdict(codec), *costs] for codec, *costs in self.uploads],
            "steps": [list(row) for row in self.steps],
        }


def joined(parts: Sequence[Measurements]) -> Measurements:
    """Return what several measurements of one model found, each table from the first that has it.

    Raises:
        MismatchError: if they are of different models.
    """
    first, *others = parts
    for other in others:
        first.check_model(other.fingerprint)

    def having(table: str) -> Measurements:
        return next((part for part in parts if table in part.measured), first)

    return replace(
        first,
        source="; ".join(dict.fromkeys(part.source for part in parts)),
        curve=next((part.curve for part in parts if part.curve), ()),
        pruning=having("pruning").pruning,
        most_pruned=having("pruning").most_pruned,
        ranks=having("ranks").ranks,
        codecs=having("codecs").codecs,
        codecs_at=having("codecs").codecs_at,
        cut=having("cut").cut,
        uploads=having("uploads").uploads,
        steps=having("steps").steps,
        filled=having("codecs").filled,
        coded_scale=next(
            (part.coded_scale for part in parts if part.coded_scale != CodedScale()), CodedScale()
        ),
    )


def measurements_from(document: Mapping[str, Any]) -> Measurements:
    """Read what `Measurements.as_document` wrote.

    Raises:
        CheckpointError: if it is none, is of another schema or its tables are wrong.
    """
    try:
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}, this version reads {SCHEMA}")
        cut = document["cut"]
        return Measurements(
            fingerprint=str(document["fingerprint"]),
            source=str(document["source"]),
            curve=tuple(map(float, document["curve"])),
            pruning=tuple(PrunedRounds(*map(float, row)) for row in document["pruning"]),
            ranks=tuple(RankRounds(int(at), *map(float, k)) for at, *k in document["ranks"]),
            codecs=tuple(
                CodecRounds(int(at), CodecSpec(**codec), *map(float, k))
                for at, codec, *k in document["codecs"]
            ),
            cut=None if cut is None else float(cut),
            uploads=tuple(
                UploadRounds(CodecSpec(**codec), *map(float, k))
                for codec, *k in document.get("uploads", ())
            ),
            steps=tuple(
                StepRounds(int(at), *map(float, k)) for at, *k in document.get("steps", ())
            ),
            most_pruned=float(document["most_pruned"]),
            codecs_at=float(document.get("codecs_at", 0.0)),
            filled=float(document.get("filled", 1.0)),
            coded_scale=_scale_from(document.get("coded_scale", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"this is no measurement of costs in rounds: {what}; measure again with airtune "
            "calibrate"
        ) from error


def _scale_from(document: Mapping[str, Any]) -> CodedScale:
    others = document.get("uploads", ())
    read = tuple((CodecSpec(**codec), float(scale)) for codec, scale in others)
    return CodedScale(**{**document, "uploads": read})


def _between(cut: int, points: Sequence[tuple[int, float]]) -> float:
    at, values = zip(*points, strict=True) if points else ((0,), (0.0,))
    return float(np.interp(cut, at, values))


def _check_finite(found: Measurements) -> None:
    values = {
        "curve": found.curve,
        "pruning": [value for row in found.pruning for value in row],
        "ranks": [value for row in found.ranks for value in row],
        "codecs": [value for row in found.codecs for value in row[2:]],
        "uploads": [value for row in found.uploads for value in row[1:]],
        "cut": [found.cut or 0.0],
        "steps": [value for row in found.steps for value in row],
    }
    for name, column in values.items():
        if not np.isfinite(column).all():
            raise CheckpointError(f"{name} of a measurement must be finite, got {list(column)}")
    scale = found.coded_scale
    if not (0.0 < found.filled <= 1.0 and 0.0 < scale.up < np.inf and 0.0 < scale.down < np.inf):
        raise CheckpointError(
            f"filled must be in (0, 1] and scales of coded adapters positive, got {found.filled:g}, "
            f"{scale.up:g} and {scale.down:g}"
        )
    if not 0.0 <= found.codecs_at < np.inf:
        raise CheckpointError(f"codecs_at must be a round from 0 on, got {found.codecs_at:g}")
    if not 0.0 <= found.most_pruned <= 1.0:
        raise CheckpointError(f"most_pruned must be in [0, 1], got {found.most_pruned:g}")
