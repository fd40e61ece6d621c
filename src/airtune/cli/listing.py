"""`airtune list`: what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from airtune.cli.console import print_json, print_table
from airtune.cli.folders import list_runs
from airtune.cli.options import AsJson
from airtune.errors import CheckpointError

Kind = Literal["methods", "fleets", "devices", "models", "runs"]
Rows = tuple[list[str], list[list[str]]]


def list_(
    kind: Annotated[Kind, typer.Argument(help="methods, fleets, devices, models or runs.")],
    *,
    root: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List methods, fleets, kinds of devices, models known without a download, or runs."""
    makers = {"methods": _methods, "fleets": _fleets, "devices": _devices, "models": _models}
    columns, rows = makers[kind]() if kind in makers else _runs(root)
    if as_json:
        print_json({kind: [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        print_table("", columns, rows)


def _methods() -> Rows:
    from airtune.methods import list_methods

    rows = [
        [
            name,
            row.kind,
            row.summary,
            row.source + (" (reconstructed)" if row.reconstructed else ""),
        ]
        for name, row in list_methods().items()
    ]
    return ["method", "kind", "what it does", "source"], rows


def _fleets() -> Rows:
    from airtune.fleet import preset_summaries

    return ["fleet", "what it is"], [list(item) for item in preset_summaries().items()]


def _devices() -> Rows:
    from airtune.fleet import DEVICE_KINDS
    from airtune.units import format_bytes

    rows = [
        [
            name,
            f"{kind.flops_per_s / 1e9:.0f} GFLOP/s",
            format_bytes(kind.memory_bytes),
            f"{kind.power_w:g} W",
        ]
        for name, kind in DEVICE_KINDS.items()
    ]
    return ["device", "training speed", "memory left", "power"], rows


def _models() -> Rows:
    from airtune.cost import known_shapes

    rows = [
        [name, shape.family, f"{shape.parameters / 1e6:,.0f} M", shape.task]
        for name, shape in known_shapes().items()
    ]
    return ["model", "family", "parameters", "task"], rows


def _runs(root: Path) -> Rows:
    rows = [_run_row(folder) for folder in list_runs(root)]
    return ["folder", "methods", "rounds", "finished"], rows


def _run_row(folder: Path) -> list[str]:
    from airtune.report import load_study

    if not any(folder.rglob("run.json")):
        return [str(folder), "-", "0", "nothing yet"]
    try:
        study = load_study([folder])
    except CheckpointError:
        return [str(folder), "-", "-", "damaged; airtune report says where"]
    rounds = sum(len(run.record.rounds) for run in study.runs)
    finished = sum(run.is_finished for run in study.runs)
    return [str(folder), ", ".join(study.methods), str(rounds), f"{finished} of {len(study.runs)}"]
