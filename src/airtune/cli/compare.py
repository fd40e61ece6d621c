"""`airtune compare`: methods with several seeds, and the report that compares them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note, print_table
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.cli.run import read_more
from airtune.errors import IncompleteError, RecipeError
from airtune.recipe import load_recipe
from airtune.report.wording import mean_of
from airtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from airtune.compare import Comparison
    from airtune.report import Against, Row, Study
    from airtune.report.stats import Change, Reached


_QUALITIES = ("best", "final", "worst", "test", "at_time", "at_bytes")


Seeds = Annotated[str | None, typer.Option(help="Whole numbers with commas, or 0-4.")]
Resume = Annotated[
    str | None,
    typer.Option(help="Go on with this study, or with latest; what is given beside it is added."),
]
Name = Annotated[str | None, typer.Option(help="End of the folder's name.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at once, each in a process of its own.")]


def compare(
    words: Words = None,
    *,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Labels of the recipe's compare.methods, or names of methods, with commas; a label "
            "with a comma in it stands in double quotes. untuned, local-only and pooled are controls."
        ),
    ] = None,
    seeds: Seeds = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="quality-under-budget, cost-to-target, or robustness, which runs each method under faults too."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="COSTS",
            help="With quality-under-budget: time=10m,bytes=50MB,joules=2kJ, some of them.",
        ),
    ] = None,
    settings: Settings = None,
    resume: Resume = None,
    name: Name = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same fleet, data, channels and seeds.

    Example: airtune compare recipe.yaml --methods jcpba,fedavg-lora,untuned --seeds 0,1,2
    """
    from airtune.compare import compare_methods, protocol_of

    source, changes = split_words(words, settings)
    asked: dict[str, Any] = {
        "methods": read_rows(methods) if methods else [],
        "seeds": read_seeds(seeds) if seeds else [],
    }
    if resume is not None:
        if protocol is not None:
            raise RecipeError("--protocol is that of the study that is resumed; leave it out")
        run_study(begun(resume, source or name, changes, asked), jobs=jobs, as_json=as_json)
        return
    recipe = load_recipe(source, overrides=changes + ([f"name={name}"] if name else []))
    how = protocol_of(recipe, protocol, budget)
    run_study(partial(compare_methods, recipe, protocol=how, **asked), jobs=jobs, as_json=as_json)


def begun(
    resume: str, others: object, changes: list[str], asked: dict[str, Any]
) -> Callable[..., Comparison]:
    """Return what goes on with a study, with what is added to it.

    Raises:
        CheckpointError: if there is no such study.
        RecipeError: if something is given that cannot be added.
    """
    from airtune.compare import resume_comparison

    rounds = read_more(changes, others)
    folder = find_run(resume, marks=("compare.json",))
    return partial(resume_comparison, folder, rounds=rounds, **asked)


def run_study(study: Callable[..., Comparison], *, jobs: int = 1, as_json: bool = False) -> None:
    """Run a study, new or begun, and print its outcome.

    Raises:
        Exit: with 19 if a run is missing that should be there.
    """
    from airtune.cli.progress import progress, watch_run
    from airtune.compare import CompareWatch, LeftOut
    from airtune.run import Watch

    with progress(is_quiet=as_json) as display:

        def on_run(label: str, seed: int, place: int, total: int) -> Watch:
            return watch_run(
                display, f"{place + 1}/{total} {label}, seed {seed}", lambda folder: None
            )

        def on_folder(folder: Path) -> None:
            if not as_json:
                print_note(f"records: {folder}")

        def on_left_out(one: LeftOut) -> None:
            if not as_json:
                print_note(f"left out: {one.label}, seed {one.seed}: {one.reason}")

        watch = CompareWatch(on_run=on_run, on_folder=on_folder, on_left_out=on_left_out)
        done = study(jobs=jobs, watch=watch)
    print_json(_document(done)) if as_json else _print(done)
    if not done.is_whole:
        raise typer.Exit(IncompleteError.exit_code)


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
        raise RecipeError(
            f"--seeds must name each seed once, and a range from the smaller one (0-4), got {text!r}"
        )
    return seeds


def read_rows(text: str) -> list[str]:
    """Read names and labels with commas; one with a comma in it stands in double quotes.

    >>> read_rows('sft, "sft, coded",fedavg-lora')
    ['sft', 'sft, coded', 'fedavg-lora']
    """
    return [
        part.strip() for part in next(csv.reader([text], skipinitialspace=True)) if part.strip()
    ]


def _print(done: Comparison) -> None:
    study, rows, against = done.study, done.summary.rows, done.summary.against
    end = "" if study.target is None else " to target"
    columns = ["method", f"time{end}", f"bytes{end}", "hit", "time vs base", "bytes vs base"]
    print_table(
        "",
        columns if study.target is not None else columns[:3],
        [
            [
                name,
                _spent(row.time, study, format_seconds),
                _spent(row.bytes, study, format_bytes),
                *_hits(row.time, against.get(name), study),
            ]
            for name, row in rows.items()
        ],
    )
    if study.target is not None:
        print_line(
            f"target: {study.label} {study.metric.write(study.target)}, smoothed over three "
            "evaluations; means over seeds, '>' = missed in some;\nchange against the baseline, 95 % interval from three seeds on"
        )
    _print_quality(study, rows)
    _print_protocol(done)
    for one in done.left_out:
        print_note(f"left out: {one.label}, seed {one.seed}: {one.reason}")
    print_line(f"report: {done.report}")


def _print_quality(study: Study, rows: Mapping[str, Row]) -> None:
    fair = (
        {"at equal time": "at_time", "at equal bytes": "at_bytes"} if study.target is None else {}
    )
    kinds = fair | {"best": "best", "last": "final", "worst tenth": "worst", "test": "test"}
    print_table(
        "",
        [f"{study.metric.label}", *kinds],
        [
            [name, *(study.metric.write(mean_of(getattr(row, kind))) for kind in kinds.values())]
            for name, row in rows.items()
        ],
    )
    print_line("best, last and worst tenth are measured on the devices' validation data")


def _print_protocol(done: Comparison) -> None:
    from airtune.report import protocol_table

    table = protocol_table(done.study, done.summary)
    if table is None:
        return
    print_table(
        table.name,
        ["method", *table.titles],
        [
            [line.method, *("; ".join([cell.main, *cell.small]) for cell in line.cells)]
            for line in table.lines
        ],
    )
    print_line(table.note)


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
    from airtune.report import protocol_table

    by_protocol = protocol_table(done.study, done.summary)
    return {
        "protocol": None
        if by_protocol is None
        else {"name": by_protocol.name, "values": by_protocol.values},
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
        "left_out": [asdict(one) for one in done.left_out],
    }


def _plain(against: Against | None) -> dict[str, Any] | None:
    if against is None:
        return None
    changes = {
        "time": against.time,
        "bytes": against.bytes,
        **{name: getattr(against, name) for name in _QUALITIES},
    }
    return {
        name: {"mean": change.mean, "low": change.low, "high": change.high, "bound": change.bound}
        for name, change in changes.items()
    }
