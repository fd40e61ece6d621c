"""Methods times seeds on the same fleet, data and channels, resumable, with the plain controls.

    <output>/<time>-compare-<name>/
        compare.json      recipe, methods, seeds, baseline: what the report reads
        runs/<label>-s<seed>/    a run folder each
        report.html, comparison.csv

A run that has finished is never run again; a method that has no answer for the fleet is left out and
named, and the others go on; one that was interrupted goes on from its checkpoint.
Within a seed, model, data and fleet are loaded once, and the calibration is measured once.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airtune.errors import (
    AirtuneError,
    CheckpointError,
    InfeasibleError,
    RecipeError,
    RunExistsError,
    RunInterruptedError,
)
from airtune.recipe import Recipe, check_recipe
from airtune.records import write_atomically
from airtune.report import Study, Summary, load_study, summarise, write_report
from airtune.run import Assets, RunResult, Watch, load_assets, new_folder, resume_run, run_recipe

COMPARE_FILE = "compare.json"
_PLAIN_BASELINE = "fedavg-lora"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A method of a comparison."""

    label: str
    method: Mapping[str, Any]
    """The recipe's method section: name and settings."""
    upload: Mapping[str, Any] | None = None
    """An upload section of its own; None = the recipe's."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A run that cannot be: its method has no answer for this fleet, or a setting it cannot take."""

    label: str
    seed: int
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison ended with."""

    folder: Path
    report: Path
    study: Study
    summary: Summary
    runs: tuple[RunResult, ...]
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class CompareWatch:
    """Who is told how a comparison gets on."""

    on_run: Callable[[str, int, int, int], Watch] = lambda label, seed, place, total: Watch()
    """Told label, seed, place and total of the run that begins; returns who watches it."""
    on_folder: Callable[[Path], None] = lambda folder: None


def compare_methods(
    recipe: Recipe,
    *,
    methods: Sequence[str | Mapping[str, Any]] = (),
    seeds: Sequence[int] = (),
    folder: Path | None = None,
    watch: CompareWatch | None = None,
) -> Comparison:
    """Run every method with every seed and write the page that compares them.

    Args:
        recipe: checked; its own method section gives the settings of that method.
        methods: names, or mappings of name, settings and perhaps a label; empty = the recipe's
            `compare.methods`.
        seeds: empty = the recipe's `compare.seeds`.
        folder: where to; None = `<output>/<time>-compare-<name>`.
        watch: told how it gets on.

    Raises:
        RecipeError: if a method or its settings are wrong; all are listed.
        RunExistsError: if the folder holds something else than this comparison.
        RunInterruptedError: on Ctrl-C; the message says how to go on.
    """
    entries = entries_of(recipe, methods or recipe.compare.methods)
    chosen = tuple(seeds or recipe.compare.seeds)
    place = folder or new_folder(recipe, f"compare-{recipe.name or 'methods'}")
    document = {
        "schema": _SCHEMA, "name": recipe.name or "methods", "recipe": recipe.plain(),
        "methods": [entry.label for entry in entries], "seeds": list(chosen),
        "baseline": baseline_of(recipe, entries, is_narrowed=bool(methods)),
        "entries": [asdict(entry) for entry in entries],
    }  # fmt: skip
    _claim(place, document)
    return _run_all(recipe, entries, chosen, place, watch or CompareWatch())


def resume_comparison(folder: Path, *, watch: CompareWatch | None = None) -> Comparison:
    """Go on with a comparison: finished runs are kept, the others are run to their end.

    Raises:
        CheckpointError: if the folder is no comparison or is damaged.
        RunInterruptedError: on Ctrl-C.
    """
    path = folder / COMPARE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        recipe = check_recipe(document["recipe"], name=str(path))
        entries = [
            Entry(entry["label"], entry["method"], entry.get("upload"))
            for entry in document["entries"]
        ]
        seeds = tuple(int(seed) for seed in document["seeds"])
    except OSError as error:
        raise CheckpointError(f"{folder} is no comparison: {path} cannot be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it or compare anew") from error
    return _run_all(recipe, entries, seeds, folder, watch or CompareWatch())


def entries_of(recipe: Recipe, methods: Sequence[str | Mapping[str, Any]]) -> list[Entry]:
    """Return the methods of a comparison, each with a label of its own.

    Raises:
        RecipeError: if a method has no name, two have one label, or a setting is wrong.
    """
    own = {"name": recipe.method.name, **recipe.method.settings}
    entries = []
    for method in methods:
        values: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
        if not isinstance(values.get("name"), str):
            raise RecipeError(f"compare.methods: every entry needs a name, got {method!r}")
        label = str(values.pop("label", "")) or _label(values)
        upload = values.pop("upload", None)
        mine = own if values == {"name": own["name"]} else values
        entries.append(Entry(label, mine, upload))
    labels = [entry.label for entry in entries]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise RecipeError(f"compare.methods: {twice[0]!r} stands twice; give one a label")
    faults = []
    for entry in entries:
        try:
            _recipe_for(recipe, entry, recipe.seed)
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    return entries


def baseline_of(recipe: Recipe, entries: Sequence[Entry], *, is_narrowed: bool = False) -> str:
    """Return the label that the others are compared with.

    Args:
        recipe: says which, or leaves it open.
        entries: what is compared.
        is_narrowed: they were asked for beside the recipe, so its baseline need not be among them.

    Raises:
        RecipeError: if the recipe names one that is not compared.
    """
    labels = [entry.label for entry in entries]
    asked = recipe.compare.baseline
    if asked is None or (is_narrowed and asked not in labels):
        return _PLAIN_BASELINE if _PLAIN_BASELINE in labels else labels[0]
    if asked not in labels:
        raise RecipeError(
            f"compare.baseline must be one of the methods compared, {', '.join(labels)}, got "
            f"{asked!r}"
        )
    return asked


def _run_all(
    recipe: Recipe, entries: Sequence[Entry], seeds: Sequence[int], place: Path,
    watch: CompareWatch,
) -> Comparison:  # fmt: skip
    watch.on_folder(place)
    results: list[RunResult] = []
    refused: list[Refused] = []
    why: list[AirtuneError] = []
    total = len(entries) * len(seeds)
    try:
        for seed in seeds:
            assets: Assets | None = None
            for entry in entries:
                told = watch.on_run(entry.label, seed, len(results) + len(refused), total)
                folder = place / "runs" / f"{_safe(entry.label)}-s{seed}"
                if not (folder / "result.json").exists() and assets is None:
                    told.on_stage("loading model and data")
                    assets = load_assets(_recipe_for(recipe, entry, seed))
                mine = _recipe_for(recipe, entry, seed)
                try:
                    done = _run_one(mine, entry.label, folder, assets=assets, watch=told)
                except (InfeasibleError, RecipeError) as error:
                    why.append(error)
                    refused.append(Refused(entry.label, seed, str(error)))
                    _drop_empty(folder)
                else:
                    results.append(done)
    except (KeyboardInterrupt, RunInterruptedError) as error:
        raise RunInterruptedError(
            f"interrupted with {len(results)} of {total} runs finished; go on with: "
            f"airtune compare --resume {place}"
        ) from error
    if not results:
        raise why[0]
    page = write_report([place], place)
    study = load_study([place])
    return Comparison(place, page, study, summarise(study), tuple(results), tuple(refused))


def _drop_empty(folder: Path) -> None:
    """Remove a run that was begun and never had a round."""
    rounds = folder / "rounds.jsonl"
    if folder.is_dir() and not (rounds.exists() and rounds.stat().st_size):
        shutil.rmtree(folder)


def _run_one(
    recipe: Recipe, label: str, folder: Path, *, assets: Assets | None, watch: Watch
) -> RunResult:
    if (folder / "run.json").exists():
        return resume_run(folder, assets=assets, watch=watch, reports=False)
    return run_recipe(recipe, folder=folder, label=label, assets=assets, watch=watch, reports=False)


def _recipe_for(recipe: Recipe, entry: Entry, seed: int) -> Recipe:
    values = recipe.plain()
    values |= {"seed": seed, "method": dict(entry.method)}
    if entry.upload is not None:
        values["upload"] = entry.upload
    return check_recipe(values, name=f"method {entry.label}")


def _claim(place: Path, document: Mapping[str, Any]) -> None:
    """Write what is compared, unless the folder holds something else."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunExistsError(
            f"the folder {place} is already there; choose another name, or continue with "
            f"airtune compare --resume {place}"
        )
    write_atomically(place / COMPARE_FILE, json.dumps(document, indent=1))


def _label(values: Mapping[str, Any]) -> str:
    name = str(values["name"]).rpartition(":")[2]
    settings = ", ".join(f"{key}={value}" for key, value in values.items() if key != "name")
    return f"{name} ({settings})" if settings else name


def _safe(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")
