"""The progress display: a bar a run with the time left, on the error stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from airtune.run import Watch
from airtune.units import format_seconds

OnRound = Callable[[Mapping[str, Any]], None]


@contextmanager
def progress(*, is_quiet: bool) -> Iterator[Progress]:
    """Show progress while the block runs; without a terminal no bar, and quietly nothing at all."""
    disable_progress_bar()  # one display at a time: transformers would draw its own
    console = Console(stderr=True, quiet=is_quiet, emoji=False)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        console=console,
        disable=is_quiet or not console.is_terminal,
    ) as display:
        yield display


def watch_run(display: Progress, title: str, on_folder: Callable[[Path], None]) -> Watch:
    """Return a watch that shows a run as one bar, or says its stages where there is no bar.

    A calibration has a bar of its own, so that its time left is told too.

    Args:
        display: where the bars are.
        title: of the bar; "" = the run's name.
        on_folder: told the run's folder.
    """
    task = display.add_task(title, total=None, news="")
    short = display.add_task(f"{title} calibration".strip(), total=None, news="", visible=False)
    said, name = "", title

    def on_begin(label: str, rounds: int) -> None:
        nonlocal name
        name = title or label
        display.update(task, description=name, total=rounds)

    def on_stage(stage: str) -> None:
        nonlocal said
        display.update(task, news="" if stage == "running" else stage)
        if display.disable and stage != said:
            note = f"{name}: {stage}"
            display.console.print(note, markup=False, highlight=False, soft_wrap=True)
        said = stage

    def on_calibration(done: int, total: int) -> None:
        if not display.tasks[short].visible:
            display.reset(short, total=total, visible=True)
        display.update(short, completed=done, visible=done < total)
        if display.disable and (done == total or done % max(1, total // 4) == 0):
            display.console.print(f"{name}: calibrating, {done} of {total} short rounds")

    def on_round(record: Mapping[str, Any]) -> None:
        display.update(task, advance=1, news=news_of(record))

    return Watch(
        on_begin=on_begin,
        on_stage=on_stage,
        on_round=on_round,
        on_folder=on_folder,
        on_calibration=on_calibration,
    )


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
