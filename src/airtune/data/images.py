"""From a data spec to the labelled images that every device holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airtune.data.embedded import SHAPES
from airtune.data.federated import DeviceData, FederatedData
from airtune.data.generated import TEST_ROWS, TRAIN_ROWS
from airtune.data.image_files import Pictures, fit, read_pictures
from airtune.data.labels import class_ids, label_map
from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.partition import partition
from airtune.data.shapes import FIGURES, draw
from airtune.data.spec import DataSpec
from airtune.data.table import table_from_rows
from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.frame import Frame
from airtune.model.images import Images
from airtune.plan import Ints


def load_federated_images(
    spec: DataSpec, *, frame: Frame, devices: int, seed: int, known: Sequence[str] = ()
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
    train, test = _sets(spec, frame, seed)
    classes, names = _classes(spec, train, known)
    targets, test_targets = (_ids(part, classes) for part in (train, test))
    parts = partition(targets, devices, spec=spec, random=generator(seed, "partition"))
    whole = _images(train, targets, frame)
    by_class = [np.bincount(targets[rows], minlength=len(names)).tolist() for rows in parts.rows]
    return FederatedData(
        devices=tuple(
            _device(whole, rows, spec, generator(seed, "held-out", device))
            for device, rows in enumerate(parts.rows)
        ),
        test=_images(test, test_targets, frame),
        labels=names,
        columns={},
        counts={
            "source": train.source, "rows": len(train), "test_rows": len(test),
            "device_rows": [len(rows) for rows in parts.rows], "groups": list(names),
            "device_groups": by_class, "truncated": 0, "test_truncated": 0, "dropped": 0,
            "blank": 0, "moved": parts.moved,
        },
        ledger=DataLedger(RowCounts(read=len(train)), RowCounts(read=len(test))),
    )  # fmt: skip


def _sets(spec: DataSpec, frame: Frame, seed: int) -> tuple[Pictures, Pictures]:
    if spec.source == SHAPES:
        return _generated(spec, frame, seed)
    train, test = read_pictures(spec, frame)
    train = _at_most(train, spec.limit, generator(seed, "limit"))
    if test is None:
        return _set_aside(train, spec.test_share, generator(seed, "test-share"))
    return train, _at_most(test, spec.test_limit, generator(seed, "test-limit"))


def _generated(spec: DataSpec, frame: Frame, seed: int) -> tuple[Pictures, Pictures]:
    counts = (spec.limit or TRAIN_ROWS, spec.test_limit or TEST_ROWS)
    names, sets = tuple(FIGURES), []
    for part, count in zip(("train", "test"), counts, strict=True):
        pixels, classes = draw(count, generator(seed, "shapes", part))
        fitted = np.stack([fit(image.transpose(1, 2, 0), frame) for image in pixels])
        labels = tuple(names[place] for place in classes.tolist())
        sets.append(Pictures(fitted, labels, SHAPES if part == "train" else f"{SHAPES} (test)"))
    return sets[0], sets[1]


def _classes(
    spec: DataSpec, train: Pictures, known: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    table = table_from_rows([{"label": label} for label in train.labels], source=train.source)
    classes = label_map(table, "label", name_column=None, labels=spec.labels, known=known)
    return classes, tuple(classes.values())


def _ids(pictures: Pictures, classes: dict[str, str]) -> Ints:
    rows = [{"label": label} for label in pictures.labels]
    return class_ids(table_from_rows(rows, source=pictures.source), "label", classes)


def _images(pictures: Pictures, targets: Ints, frame: Frame) -> Images:
    return Images(pictures.pixels, targets, mean=frame.mean, deviation=frame.deviation)


def _device(images: Images, rows: Ints, spec: DataSpec, random: np.random.Generator) -> DeviceData:
    """Hold out a share of a device's images, at least one of them and never all."""
    count = min(max(round(spec.held_out * len(rows)), 1), len(rows) - 1) if spec.held_out else 0
    order = random.permutation(rows)
    return DeviceData(
        train=images.take(np.sort(order[count:])), validation=images.take(np.sort(order[:count]))
    )


def _at_most(pictures: Pictures, limit: int | None, random: np.random.Generator) -> Pictures:
    if limit is None or len(pictures) <= limit:
        return pictures
    return pictures.take(np.sort(random.permutation(len(pictures))[:limit]))


def _set_aside(
    pictures: Pictures, share: float, random: np.random.Generator
) -> tuple[Pictures, Pictures]:
    count = round(share * len(pictures))
    if not 0 < count < len(pictures):
        raise DataError(
            f"{pictures.source} has no test set and {share:g} of its {len(pictures)} images is "
            f"{count}; name one as `data.test` or change `data.test_share`"
        )
    order = random.permutation(len(pictures))
    return pictures.take(np.sort(order[count:])), pictures.take(np.sort(order[:count]))
