"""From a data spec to the labelled images that every device holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from airtune.data.draw import hold_out
from airtune.data.federated import DeviceData, FederatedData, dealt_counts
from airtune.data.image_files import fitted_pixels
from airtune.data.intake import Intake, take_in
from airtune.data.labels import class_ids
from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.partition import partition
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.frame import ImageFormat
from airtune.model.images import Images
from airtune.plan import Ints


def load_federated_images(
    spec: DataSpec, *, frame: ImageFormat, devices: int, seed: int, known: Sequence[str] = ()
) -> FederatedData:
    """Read labelled images, prepare them for a model, and deal them out to the devices.

    The same spec, frame, number of devices and seed give the same result.

    Args:
        spec: what to load; its task is image-classification.
        frame: how the model wants its images.
        devices: how many devices, at least 1.
        seed: decides limits, partition and held-out images.
        known: classes of the model's own head, whose order is kept where they are the data's.

    Raises:
        DataError: if data is missing or malformed, or too little for the devices.
        MissingExtraError: if pictures have to be decoded and Pillow is not installed.
    """
    if devices < 1:
        raise DataError(f"data needs at least 1 device to go to, got {devices}")
    found = take_in(spec, seed=seed, known=known)
    train, test = (_images(part, found, frame, spec) for part in (found.train, found.test))
    parts = partition(train.targets, devices, spec=spec, random=generator(seed, "partition"))
    names = tuple(found.classes.values())
    seen = {image.tobytes() for image in train.pixels}
    shared = sum(image.tobytes() in seen for image in test.pixels)
    ledger = found.ledger + DataLedger(test=RowCounts(shared=shared))
    return FederatedData(
        devices=tuple(
            _device(train, rows, spec, generator(seed, "held-out", device))
            for device, rows in enumerate(parts.rows)
        ),
        test=test,
        labels=names,
        columns=found.columns,
        counts={
            "source": found.train.source,
            "rows": len(train),
            "test_rows": len(test),
            **dealt_counts(parts, train.targets, names),
            **ledger.totals(),
        },
        ledger=ledger,
    )


def _images(table: Table, found: Intake, frame: ImageFormat, spec: DataSpec) -> Images:
    named = [Path(name).expanduser() for name in (spec.source, spec.test) if name is not None]
    folders = [path for path in named if path.is_dir()]
    pixels = fitted_pixels(table, found.columns["image"], frame, folders)
    targets = class_ids(table, found.columns["label"], found.classes)
    return Images(pixels, targets, mean=frame.mean, deviation=frame.deviation)


def _device(images: Images, rows: Ints, spec: DataSpec, random: np.random.Generator) -> DeviceData:
    kept, held_out = hold_out(rows, spec.held_out, random)
    return DeviceData(train=images.take(kept), validation=images.take(held_out))
