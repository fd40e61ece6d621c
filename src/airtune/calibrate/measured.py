"""A measurement and what it took, as a document that is stored and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airtune.errors import CheckpointError
from airtune.plan import Calibration, CodecSpec, SplitCalibration
from airtune.records import write_atomically

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What pruning or compression costs, and what it took to find out."""

    calibration: Calibration | SplitCalibration
    device_s: float
    """Seconds that the fleet's devices would have computed for it, all together."""
    wall_s: float
    curves: tuple[tuple[float, ...], ...]
    """Validation loss before the first round and after each, a row a short run."""
    fingerprint: str
    """Of the weights it was measured on."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values, for a file or a run's header."""
        return {
            "schema": SCHEMA,
            **_tables(self.calibration),
            "source": self.calibration.source,
            "device_s": self.device_s,
            "curves": [list(curve) for curve in self.curves],
            "fingerprint": self.fingerprint,
            "measured": {"wall_s": self.wall_s},
        }


def from_document(document: Mapping[str, Any]) -> Measured:
    """Read what `Measured.as_document` wrote.

    Raises:
        ValueError: if it is of another schema or its tables do not fit one another.
        KeyError: if a field is missing.
        TypeError: if a codec has a field that is none.
    """
    if document["schema"] != SCHEMA:
        raise ValueError(f"it has schema {document['schema']}, this version reads {SCHEMA}")
    read = _read_codecs if "codecs" in document else _read_budgets
    return Measured(
        calibration=read(document),
        device_s=float(document["device_s"]),
        wall_s=float(document["measured"]["wall_s"]),
        curves=tuple(tuple(map(float, curve)) for curve in document["curves"]),
        fingerprint=str(document["fingerprint"]),
    )


def store(path: Path, measured: Measured) -> None:
    """Write a measurement.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    write_atomically(path, json.dumps(measured.as_document(), indent=1))


def load(path: Path) -> Measured | None:
    """Read a stored measurement; None where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return from_document(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the stored calibration {path} is damaged: {error}; remove it, it is measured again"
        ) from error


def _tables(found: Calibration | SplitCalibration) -> dict[str, Any]:
    if isinstance(found, Calibration):
        names = ("budget", "rounds_ratio", "quality_loss")
        return {name: getattr(found, name).tolist() for name in names} | {"most": found.most}
    return {
        "codecs": [asdict(codec) for codec in found.codecs],
        "cuts": found.cuts.tolist(),
        "distortion": found.distortion.tolist(),
        "quality_loss": found.quality_loss.tolist(),
    }


def _read_budgets(document: Mapping[str, Any]) -> Calibration:
    budget, ratio, loss = (
        np.array(document[name], np.float64) for name in ("budget", "rounds_ratio", "quality_loss")
    )
    most = float(document.get("most", 1.0))
    return Calibration(budget, ratio, loss, str(document["source"]), most)


def _read_codecs(document: Mapping[str, Any]) -> SplitCalibration:
    codecs = tuple(CodecSpec(**codec) for codec in document["codecs"])
    cuts = np.array(document["cuts"], np.int64)
    distortion = np.array(document["distortion"], np.float64)
    losses = np.array(document["quality_loss"], np.float64)
    if distortion.shape != (len(cuts), len(codecs)) or losses.shape != (len(codecs),):
        raise ValueError(
            f"its tables have shapes {distortion.shape} and {losses.shape} for {len(cuts)} cuts "
            f"and {len(codecs)} codecs"
        )
    return SplitCalibration(codecs, cuts, distortion, losses, str(document["source"]))
