"""`airtune compare`: methods times seeds, and the page that compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note, print_table
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.errors import RecipeError
from airtune.report.wording import mean_of
from airtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from airtune.compare import Comparison
    from airtune.report import Against, Row, Study
    from airtune.report.stats import Change, Reached


_QUALITIES = ("best", "final", "worst", "test", "at_time", "at_bytes")


def compare(
    words: Words = None,
    *,
    methods: Annotated[str | None, typer.Option(help="Names with commas; untuned, local-only and pooled are controls.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Whole numbers with commas, or 0-4.")] = None,
    settings: Settings = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this comparison, or with latest.")] = None,
    name: Annotated[str | None, typer.Option(help="End of the folder's name.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare methods on the same fleet, data, channels and seeds.

    Example: airtune compare recipe.yaml --methods jcpba,fedavg-lora,untuned --seeds 0,1,2
    """
    from airtune.recipe import load_recipe

    source, changes = split_words(words, settings)
    if resume is not None:
        if source or changes or methods or seeds or name:
            raise RecipeError("--resume goes on with what was compared; give nothing else with it")
        run_comparison(resume=find_run(resume, mark="compare.json"), as_json=as_json)
        return
    changes += [f"name={name}"] if name else []
    recipe = load_recipe(source, overrides=changes)
    run_comparison(
        recipe=recipe,
        methods=[part.strip() for part in methods.split(",") if part.strip()] if methods else [],
        seeds=read_seeds(seeds) if seeds else [],
        as_json=as_json,
    )


def run_comparison(
    *, recipe: Any = None, methods: list[str] | None = None, seeds: list[int] | None = None,
    resume: Path | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Run a comparison, new or interrupted, and print its outcome."""
    from airtune.cli.progress import progress, watch_run
    from airtune.compare import CompareWatch, compare_methods, resume_comparison
    from airtune.recipe import Recipe
    from airtune.run import Watch

    with progress(is_quiet=as_json) as display:

        def on_run(label: str, seed: int, place: int, total: int) -> Watch:
            title = f"{place + 1}/{total} {label}, seed {seed}"
            return watch_run(display, title, rounds, lambda folder: None)

        def on_folder(folder: Path) -> None:
            if not as_json:
                print_note(f"records: {folder}")

        watch = CompareWatch(on_run=on_run, on_folder=on_folder)
        rounds = recipe.train.rounds if isinstance(recipe, Recipe) else 0
        if resume is not None:
            done = resume_comparison(resume, watch=watch)
        else:
            done = compare_methods(recipe, methods=methods or [], seeds=seeds or [], watch=watch)
    print_json(_document(done)) if as_json else _print(done)


def read_seeds(text: str) -> list[int]:
    """Read `0,1,2` or `0-4`.

    Raises:
        RecipeError: if it is neither.

    >>> read_seeds("0,2"), read_seeds("1-3")
    ([0, 2], [1, 2, 3])
    """
    try:
        seeds: list[int] = []
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise RecipeError(
            f"--seeds must be whole numbers with commas (0,1,2) or a range (0-4), got {text!r}"
        ) from error
    if not seeds or len(set(seeds)) != len(seeds):
        raise RecipeError(f"--seeds must name each seed once, got {text!r}")
    return seeds


def _print(done: Comparison) -> None:
    study, rows, against = done.study, done.summary.rows, done.summary.against
    end = "" if study.target is None else " to target"
    columns = ["method", f"time{end}", f"bytes{end}", "hit", "time vs base", "bytes vs base"]
    print_table("", columns if study.target is not None else columns[:3], [
        [name, _spent(row.time, study, format_seconds), _spent(row.bytes, study, format_bytes),
         *_hits(row.time, against.get(name), study)]
        for name, row in rows.items()
    ])  # fmt: skip
    if study.target is not None:
        print_line(
            f"target: {study.label} {study.metric.write(study.target)}; means over seeds, '>' = missed "
            "in some;\nchange against the baseline, 95 % interval from three seeds on"
        )
    _print_quality(study, rows)
    for refused in done.refused:
        print_note(f"left out: {refused.label}, seed {refused.seed}: {refused.reason}")
    print_line(f"report: {done.report}")


def _print_quality(study: Study, rows: Mapping[str, Row]) -> None:
    fair = (
        {"at equal time": "at_time", "at equal bytes": "at_bytes"} if study.target is None else {}
    )
    kinds = fair | {"best": "best", "last": "final", "worst tenth": "worst", "test": "test"}
    print_table("", [f"{study.metric.label}", *kinds], [
        [name, *(study.metric.write(mean_of(getattr(row, kind))) for kind in kinds.values())]
        for name, row in rows.items()
    ])  # fmt: skip
    print_line("best, last and worst tenth are of the devices' validation data")


def _spent(values: tuple[Reached, ...], study: Study, show: Any) -> str:
    mean = sum(value.value for value in values) / len(values)
    is_exact = study.target is None or all(value.hit for value in values)
    return f"{'' if is_exact else '> '}{show(mean)}"


def _hits(values: tuple[Reached, ...], against: Against | None, study: Study) -> list[str]:
    if study.target is None:
        return []
    return [f"{sum(value.hit for value in values)} of {len(values)}", *_against(against)]


def _against(against: Against | None) -> list[str]:
    if against is None:
        return ["baseline", ""]
    return [_change(against.time), _change(replace(against.bytes, low=math.nan))]


def _change(change: Change) -> str:
    if change.mean != change.mean:
        return "unknown"
    bound = {"at_most": "<= ", "at_least": ">= "}.get(change.bound, "")
    interval = f" [{change.low:+.0%}, {change.high:+.0%}]" if change.low == change.low else ""
    return f"{bound}{change.mean:+.0%}{interval}"


def _document(done: Comparison) -> dict[str, Any]:
    return {
        "folder": str(done.folder),
        "report": str(done.report),
        "metric": done.study.metric.name,
        "target": done.study.target,
        "methods": {
            name: {
                "seeds": list(row.seeds),
                "time_to_target_s": [value.value for value in row.time],
                "reached": [value.hit for value in row.time],
                "bytes_to_target": [value.value for value in row.bytes],
                **{name: getattr(row, name).tolist() for name in _QUALITIES},
                "against_baseline": _plain(done.summary.against.get(name)),
            }
            for name, row in done.summary.rows.items()
        },
        "refused": [asdict(refused) for refused in done.refused],
    }


def _plain(against: Against | None) -> dict[str, Any] | None:
    if against is None:
        return None
    changes = {"time": against.time, "bytes": against.bytes,
               **{name: getattr(against, name) for name in _QUALITIES}}  # fmt: skip
    return {
        name: {"mean": change.mean, "low": change.low, "high": change.high, "bound": change.bound}
        for name, change in changes.items()
    }
