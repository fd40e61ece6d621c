"""Measurements as documents that are stored and read again, those of earlier versions included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from airtune.calibrate.curves import rounds_needed
from airtune.calibrate.tables import by_distortion
from airtune.errors import CheckpointError
from airtune.plan import CodecSpec, Measurements, PrunedRounds, measurements_from
from airtune.records import write_atomically


def store(path: Path, measurements: Measurements) -> None:
    """Write a measurement.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    write_atomically(path, json.dumps(measurements.as_document(), indent=1))


def load(path: Path) -> Measurements | None:
    """Read a stored measurement; None where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return measurements_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the stored measurement {path} is damaged: {error}; remove it, it is measured again"
        ) from error


def from_header(header: Mapping[str, Any]) -> Measurements | None:
    """Return what a run's header holds of measurements, of this version or of the first.

    Raises:
        CheckpointError: if it is damaged.
    """
    if header.get("measurements") is not None:
        return measurements_from(header["measurements"])
    try:
        if header.get("split_calibration") is not None:
            return _first_codecs(header["split_calibration"])
        if header.get("calibration") is not None:
            return _first_pruning(header["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the calibration in the run's header is damaged: {error!r}; start a new run"
        ) from error
    return None


def _first_pruning(document: Mapping[str, Any]) -> Measurements:
    """Read ratios of rounds at pruning rates."""
    columns = (document[name] for name in ("budget", "rounds_ratio", "quality_loss"))
    rows = tuple(
        PrunedRounds(float(rate), float(np.log(ratio)), float(loss))
        for rate, ratio, loss in zip(*columns, strict=True)
    )
    return Measurements(
        str(document["fingerprint"]),
        str(document["source"]),
        tuple(map(float, document["curves"][0])),
        pruning=rows,
        most_pruned=float(document.get("most", 1.0)),
    )


def _first_codecs(document: Mapping[str, Any]) -> Measurements:
    """Read losses of codecs; their rounds are read off the curves beside them."""
    reference, *curves = document["curves"]
    columns = zip(document["codecs"], document["quality_loss"], curves, strict=True)
    costs = {
        CodecSpec(**codec): (float(np.log(rounds_needed(reference, curve))), float(loss))
        for codec, loss, curve in columns
    }
    distortion = np.array(document["distortion"], np.float64)
    return Measurements(
        str(document["fingerprint"]),
        str(document["source"]),
        codecs=by_distortion(document["cuts"], costs, distortion),
    )
