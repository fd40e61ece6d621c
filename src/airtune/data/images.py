"""From a data spec to the labelled images that every device holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airtune.data.draw import at_most, set_aside
from airtune.data.embedded import SHAPES
from airtune.data.federated import DeviceData, FederatedData, dealt_counts
from airtune.data.generated import TEST_ROWS, TRAIN_ROWS
from airtune.data.image_files import Pictures, fit, read_pictures
from airtune.data.labels import class_ids, label_map, spelling_ledger
from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.partition import partition
from airtune.data.shapes import FIGURES, draw
from airtune.data.spec import DataSpec
from airtune.data.table import table_from_rows
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
    whole, test = (
        _generated(spec, frame, seed) if spec.source == SHAPES else read_pictures(spec, frame)
    )
    made = () if test is None or spec.source != SHAPES else test.labels
    classes = _classes(spec, (*whole.labels, *made), whole.source, known)
    names = tuple(classes.values())
    train, test = _drawn(whole, test, classes, spec=spec, seed=seed)
    targets, test_targets = (_ids(part, classes) for part in (train, test))
    parts = partition(targets, devices, spec=spec, random=generator(seed, "partition"))
    images = _images(train, targets, frame)
    ledger = _ledger(train, test)
    return FederatedData(
        devices=tuple(
            _device(images, rows, spec, generator(seed, "held-out", device))
            for device, rows in enumerate(parts.rows)
        ),
        test=_images(test, test_targets, frame),
        labels=names,
        columns={},
        counts={
            "source": train.source,
            "rows": len(train),
            "test_rows": len(test),
            **dealt_counts(parts, targets, names),
            **ledger.totals(),
        },
        ledger=ledger,
    )


def _drawn(
    whole: Pictures, test: Pictures | None, classes: Mapping[str, str], *, spec: DataSpec, seed: int
) -> tuple[Pictures, Pictures]:
    """Keep as many images as the limits say; without a test set, set a share aside by class."""
    if spec.source == SHAPES and test is not None:
        return whole, test
    train = whole.take(at_most(len(whole), spec.limit, generator(seed, "limit")))
    if test is not None:
        return train, test.take(at_most(len(test), spec.test_limit, generator(seed, "test-limit")))
    kept, aside = set_aside(
        _ids(train, classes), spec.test_share, generator(seed, "test-share"), source=train.source
    )
    return train.take(kept), train.take(aside)


def _ledger(train: Pictures, test: Pictures) -> DataLedger:
    """Count labels spelt in two ways, and test images that are training images too."""
    seen = {image.tobytes() for image in train.pixels}
    shared = sum(image.tobytes() in seen for image in test.pixels)
    rows = DataLedger(RowCounts(read=len(train)), RowCounts(read=len(test), shared=shared))
    return rows + spelling_ledger(train.labels, test.labels)


def _generated(spec: DataSpec, frame: ImageFormat, seed: int) -> tuple[Pictures, Pictures]:
    counts = (spec.limit or TRAIN_ROWS, spec.test_limit or TEST_ROWS)
    names, sets = tuple(FIGURES), []
    for part, count in zip(("train", "test"), counts, strict=True):
        pixels, classes = draw(count, generator(seed, "shapes", part))
        fitted = np.stack([fit(image.transpose(1, 2, 0), frame) for image in pixels])
        labels = tuple(names[index] for index in classes.tolist())
        sets.append(Pictures(fitted, labels, SHAPES if part == "train" else f"{SHAPES} (test)"))
    return sets[0], sets[1]


def _classes(
    spec: DataSpec, labels: Sequence[str], source: str, known: Sequence[str]
) -> dict[str, str]:
    table = table_from_rows([{"label": label} for label in labels], source=source)
    return label_map(table, "label", name_column=None, labels=spec.labels, known=known)


def _ids(pictures: Pictures, classes: Mapping[str, str]) -> Ints:
    rows = [{"label": label} for label in pictures.labels]
    return class_ids(table_from_rows(rows, source=pictures.source), "label", classes)


def _images(pictures: Pictures, targets: Ints, frame: ImageFormat) -> Images:
    return Images(pictures.pixels, targets, mean=frame.mean, deviation=frame.deviation)


def _device(images: Images, rows: Ints, spec: DataSpec, random: np.random.Generator) -> DeviceData:
    """Hold out a share of a device's images, at least one of them and never all."""
    count = min(max(round(spec.held_out * len(rows)), 1), len(rows) - 1) if spec.held_out else 0
    order = random.permutation(rows)
    return DeviceData(
        train=images.take(np.sort(order[count:])), validation=images.take(np.sort(order[:count]))
    )
