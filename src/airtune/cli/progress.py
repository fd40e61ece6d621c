"""The progress display: a bar a run with the time left, on the error stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils.logging import disable_progress_bar

from airtune.errors import MissingExtraError
from airtune.run import Watch
from airtune.units import format_seconds

OnRound = Callable[[Mapping[str, Any]], None]


@contextmanager
def progress(*, is_quiet: bool) -> Iterator[Progress]:
    """Show progress while the block runs; without a terminal no bar, and quietly nothing at all."""
    disable_progress_bar()  # one display at a time: transformers would draw its own
    console = Console(stderr=True, quiet=is_quiet)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
        MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        console=console, disable=is_quiet or not console.is_terminal,
    ) as display:  # fmt: skip
        yield display


def watch_run(
    display: Progress, name: str, rounds: int, on_folder: Callable[[Path], None]
) -> Watch:
    """Return a watch that shows a run as one bar, or says its stages where there is no bar."""
    task = display.add_task(name, total=rounds, news="")
    said = ""

    def on_stage(stage: str) -> None:
        nonlocal said
        display.update(task, news="" if stage == "running" else stage)
        if display.disable and stage != said:
            note = f"{name}: {stage}"
            display.console.print(note, markup=False, highlight=False, soft_wrap=True)
        said = stage

    def on_round(record: Mapping[str, Any]) -> None:
        display.update(task, advance=1, news=news_of(record))

    return Watch(on_stage=on_stage, on_round=on_round, on_folder=on_folder)


def news_of(record: Mapping[str, Any]) -> str:
    """Return a round in a few words.

    >>> news_of({"end_s": 61.0, "validation": {"loss": 2.5, "worst_tenth": 3.0}})
    'clock 1 min 1 s · loss 2.500'
    """
    words = [f"clock {format_seconds(float(record['end_s']))}"]
    validation = record.get("validation") or {}
    for name in ("loss", "accuracy"):
        value = validation.get(name)
        if value is not None and math.isfinite(value):
            words.append(f"{name} {value:.3f}")
    return " · ".join(words)


def with_tensorboard(watch: Watch) -> Watch:
    """Return a watch that also writes the curves for TensorBoard, beside the records.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "--tensorboard needs the tensorboard package; install it with "
            "pip install 'airtune[tensorboard]'"
        ) from error
    writers: list[SummaryWriter] = []

    def on_folder(folder: Path) -> None:
        writers.append(SummaryWriter(str(folder / "tensorboard")))
        watch.on_folder(folder)

    def on_round(record: Mapping[str, Any]) -> None:
        step = int(record["round"])
        for name in ("round_s", "upload_bytes", "download_bytes", "energy_j", "train_loss"):
            writers[-1].add_scalar(f"round/{name}", record[name], step)
        for name, value in (record.get("validation") or {}).items():
            writers[-1].add_scalar(f"validation/{name}", value, step)
        writers[-1].flush()
        watch.on_round(record)

    return replace(watch, on_folder=on_folder, on_round=on_round)
