"""What is left of quality at a sparsity, and what a deployed model costs beside the dense one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune.errors import CheckpointError
from airtune.plan import Floats
from airtune.records import METRICS, Metric
from airtune.report.cards import Cell, MethodLine
from airtune.report.curves import colour_index
from airtune.report.figure import palette_place
from airtune.report.stats import difference
from airtune.report.study import RunSeries, Study
from airtune.report.wording import format_gap, hold, mean_of
from airtune.units import format_bytes, format_seconds

EQUAL = 0.01
"""Final sparsities nearer than this are called equal."""
TITLES = ("Sparsity at the end", "Test", "Against the same sparsity")
DEPLOYED = ("Pruned", "Parameters", "Memory of its tensors", "Inference")


def final_sparsity(run: RunSeries) -> float:
    """Return the part of the blocks' weights that is gone from the model that a run hands over.

    Only methods with a `sparsity` to reach prune for good; others hand over the dense model.
    """
    settings = run.record.header["method"].get("settings") or {}
    devices = run.record.devices
    if "sparsity" not in settings or not devices["round"].size:
        return 0.0
    worked = devices["local_steps"] > 0
    if not worked.any():
        return 0.0
    last = worked & (devices["round"] == devices["round"][worked].max())
    return float(np.mean(devices["pruned"][last]))


def equal_sparsity(study: Study) -> list[MethodLine]:
    """Return a line a method, heaviest pruning first; nothing where no method prunes for good.

    Each is compared with the first method of the study at its sparsity, over paired seeds.
    """
    sparsity = {
        name: float(np.mean([final_sparsity(run) for run in study.of(name)]))
        for name in study.methods
    }
    if len(study.methods) < 2 or not any(sparsity.values()):
        return []
    order = sorted(study.methods, key=lambda name: -round(sparsity[name] / EQUAL))
    return [_line(study, name, sparsity) for name in order]


def _line(study: Study, name: str, sparsity: Mapping[str, float]) -> MethodLine:
    alike = [other for other in study.methods if abs(sparsity[other] - sparsity[name]) <= EQUAL]
    first = study.focus if study.focus in alike else alike[0]
    qualities = _test_metrics(study)
    main = qualities[0]
    mean = [metric.write(mean_of(_test(study, name, metric))) for metric in qualities]
    small = tuple(
        f"{metric.label} {text}" for metric, text in zip(qualities[1:], mean[1:], strict=True)
    )
    if first == name:
        against = Cell("–", (f"{len(alike) - 1} others",) if len(alike) > 1 else ())
    else:
        shared = sorted(
            {run.seed for run in study.of(name)} & {run.seed for run in study.of(first)}
        )
        change = difference(_test(study, name, main, shared), _test(study, first, main, shared))
        against = Cell(format_gap(change, main), (f"against {first}",))
        if change.is_resolved:
            better = change.is_more == main.higher
            against = replace(against, tone="better" if better else "worse")
    return MethodLine(
        method=name,
        key=palette_place(colour_index(study, study.methods.index(name))),
        is_baseline=name == study.baseline,
        cells=[
            Cell(hold(f"{100 * sparsity[name]:.1f} %") if sparsity[name] else "dense"),
            Cell(mean[0] if main.is_share else f"{mean[0]} {main.label}", small),
            against,
        ],
    )


def _test_metrics(study: Study) -> list[Metric]:
    """Return the qualities every test measured, accuracy first."""
    results = [(run.record.results or {}).get("test") or {} for run in study.runs]
    names = [name for name in ("accuracy", "loss") if all(name in result for result in results)]
    return [METRICS[name] for name in names] or [study.metric]


def _test(study: Study, name: str, metric: Metric, seeds: list[int] | None = None) -> Floats:
    runs = [run for run in study.of(name) if seeds is None or run.seed in seeds]
    tests = [(run.record.results or {}).get("test") or {} for run in runs]
    return np.array([metric.of(test) for test in tests], float)


def deployed(study: Study) -> list[MethodLine]:
    """Return a line an exported model that lies in its run folder, beside the dense model.

    Raises:
        CheckpointError: if a manifest is damaged.
    """
    lines = []
    for index, name in enumerate(study.methods):
        for run in study.of(name):
            for path in sorted(run.record.folder.glob("export-*/airtune.json")):
                manifest = _manifest(path)
                if "self_check" in manifest:
                    label = f"{name}, seed {run.seed}" if len(study.seeds) > 1 else name
                    key = palette_place(colour_index(study, index))
                    lines.append(
                        MethodLine(label, key, is_baseline=False, cells=_deployed(manifest))
                    )
    return lines


def _deployed(manifest: Mapping[str, Any]) -> list[Cell]:
    check = manifest["self_check"]
    part = float((manifest.get("slice") or {}).get("pruned") or 0.0)
    ratio = check["forward_s"] / check["dense_forward_s"]
    size = f"{check['batch']} × {check['tokens']} tokens"
    written: tuple[str, ...] = ()
    if check.get("token_s"):  # of a language model
        token_s, dense_s = (format_seconds(check[name]) for name in ("token_s", "dense_token_s"))
        written = (f"a token written: {token_s} against {dense_s}",)
    return [
        Cell(hold(f"{100 * part:.1f} %"), (str(manifest["format"]),)),
        _beside(
            check["parameters"],
            check["dense_parameters"],
            f"{check['parameters']:,}",
            f"{check['dense_parameters']:,}",
        ),
        _beside(
            check["tensor_bytes"],
            check["dense_tensor_bytes"],
            format_bytes(check["tensor_bytes"]),
            format_bytes(check["dense_tensor_bytes"]),
        ),
        Cell(
            hold(f"{ratio:.2f} × dense"),
            (
                f"{format_seconds(check['forward_s'])} against {format_seconds(check['dense_forward_s'])}",
                size,
                *written,
            ),
            "better" if ratio < 1.0 else "worse",
        ),
    ]


def _beside(value: float, dense: float, shown: str, shown_dense: str) -> Cell:
    ratio = value / dense
    return Cell(
        hold(f"{ratio:.2f} × dense"),
        (f"{shown} against {shown_dense}",),
        "better" if ratio < 1.0 else "plain",
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; export again") from error
    return content if isinstance(content, dict) else {}
