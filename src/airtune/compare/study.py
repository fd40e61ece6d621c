"""Running a study, new or resumed, and its results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from airtune.compare.entries import CompareRow, Entry, baseline_of, entries_of, rows_of, swept
from airtune.compare.jobs import JobProcesses, run_one
from airtune.compare.protocol import Protocol, read_protocol
from airtune.errors import (
    AirtuneError,
    CheckpointError,
    InfeasibleError,
    RecipeError,
    RunExistsError,
    RunInterruptedError,
    StorageError,
)
from airtune.recipe import Recipe, check_recipe
from airtune.records import held, write_atomically
from airtune.report import Study, Summary, load_study, summarise, write_report
from airtune.run import Assets, RunResult, Watch, load_assets, new_folder
from airtune.run.folders import resolved

COMPARE_FILE = "compare.json"
_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that is not there: nothing satisfies its constraints, a setting is wrong, it failed."""

    label: str
    seed: int
    reason: str
    exit_code: int
    """What the run alone would have ended with; 7 = no answer, which is a finding of the study."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a study ended with."""

    folder: Path
    report: Path
    study: Study
    summary: Summary
    runs: tuple[RunResult, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Every run is there, or has no answer for its fleet."""
        return all(one.exit_code == InfeasibleError.exit_code for one in self.left_out)


@dataclass(frozen=True, slots=True)
class CompareWatch:
    """Who is told how a study gets on."""

    on_run: Callable[[str, int, int, int], Watch] = lambda label, seed, place, total: Watch()
    """Told label, seed, place and total of the run that begins; returns who watches it."""
    on_folder: Callable[[Path], None] = lambda folder: None
    on_left_out: Callable[[LeftOut], None] = lambda left_out: None
    """Told of a run that is not there, when that is known."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What `compare.json` says."""

    recipe: Recipe
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    baseline: str
    verb: str = "compare"
    protocol: Protocol | None = None

    def placed(self) -> _Plan:
        """Return it with full paths, so that it can be gone on with from any folder."""
        recipe = resolved(self.recipe)
        entries = tuple(entry.placed(recipe) for entry in self.entries)
        return replace(self, recipe=recipe, entries=entries)

    def document(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {
            "schema": _SCHEMA,
            "name": self.recipe.name or "methods",
            "recipe": self.recipe.plain(),
            "methods": [entry.label for entry in self.entries],
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "verb": self.verb,
            "entries": [asdict(entry) for entry in self.entries],
            "protocol": None if self.protocol is None else self.protocol.document(self.entries),
        }


def compare_methods(
    recipe: Recipe,
    *,
    methods: Sequence[CompareRow] = (),
    seeds: Sequence[int] = (),
    folder: Path | None = None,
    jobs: int = 1,
    watch: CompareWatch | None = None,
    protocol: Protocol | None = None,
) -> Comparison:
    """Run every method with every seed and write the page that compares them.

    Args:
        recipe: checked; its own method section gives the settings of that method.
        methods: labels of rows of `compare.methods`, names of methods, or mappings of name,
            settings and perhaps a label; empty = all rows of `compare.methods`.
        seeds: empty = the recipe's `compare.seeds`.
        folder: folder to write; None = `<output>/<time>-compare-<name>`.
        jobs: runs at once, each in a process of its own; 1 = one after the other in this one.
        watch: receives the progress.
        protocol: by which methods are compared; None = a plain comparison.

    Raises:
        RecipeError: if a method or its settings are wrong; all are listed.
        RunExistsError: if the folder holds something else than this comparison.
        RunInterruptedError: on Ctrl-C; the message says how to go on.
    """
    entries = entries_of(recipe, rows_of(recipe, methods) or recipe.compare.methods)
    baseline = baseline_of(recipe, entries, is_narrowed=bool(methods))
    entries = entries if protocol is None else protocol.crossed(entries)
    plan = _Plan(
        recipe, tuple(entries), tuple(seeds or recipe.compare.seeds), baseline, protocol=protocol
    )
    return _start(plan, folder, recipe.name or "methods", jobs, watch)


def sweep_recipe(
    recipe: Recipe,
    over: Sequence[str],
    *,
    seeds: Sequence[int] = (),
    folder: Path | None = None,
    jobs: int = 1,
    watch: CompareWatch | None = None,
) -> Comparison:
    """Run every combination of the values of some keys, with every seed.

    Args:
        recipe: checked.
        over: `a.b=1,2,4` each, any keys of the recipe, `method.name` among them.
        seeds: empty = those swept over, else the recipe's `compare.seeds`.
        folder: folder to write; None = `<output>/<time>-sweep-<name>`.
        jobs: as for `compare_methods`, and the next.
        watch: receives the progress.

    Raises:
        RecipeError: if there is no such key.
        RunExistsError: if the folder holds something else.
        RunInterruptedError: on Ctrl-C.
    """
    entries, own = swept(recipe, over)
    chosen = tuple(seeds or own or recipe.compare.seeds)
    plan = _Plan(recipe, tuple(entries), chosen, entries[0].label, verb="sweep")
    return _start(plan, folder, recipe.name or "recipe", jobs, watch)


def resume_comparison(
    folder: Path,
    *,
    methods: Sequence[CompareRow] = (),
    over: Sequence[str] = (),
    seeds: Sequence[int] = (),
    rounds: int | None = None,
    jobs: int = 1,
    watch: CompareWatch | None = None,
) -> Comparison:
    """Go on with a study: finished runs are kept, the others are run to their end.

    Args:
        folder: of the study.
        methods: more methods; those that are there stay as they are.
        over: more combinations, of a sweep.
        seeds: more seeds.
        rounds: more rounds, for every run.
        jobs: as for `compare_methods`, and the next.
        watch: receives the progress.

    Raises:
        CheckpointError: if the folder is no study or is damaged.
        RunExistsError: if another process runs it.
        RecipeError: if what is added is wrong.
        RunInterruptedError: on Ctrl-C.
    """
    plan = _read_plan(folder)
    more, own = (
        swept(plan.recipe, over)
        if over
        else (entries_of(plan.recipe, rows_of(plan.recipe, methods)), [])
    )
    more = more if plan.protocol is None else plan.protocol.crossed(more)
    if rounds is not None:
        if rounds <= plan.recipe.train.rounds:
            raise RecipeError(
                f"--resume takes more rounds than the {plan.recipe.train.rounds} of {folder}, got "
                f"train.rounds={rounds}"
            )
        values = plan.recipe.plain()
        values["train"]["rounds"] = rounds
        plan = replace(plan, recipe=check_recipe(values))
    present = {entry.label for entry in plan.entries}
    new = [entry for entry in more if entry.label not in present]
    longer = replace(
        plan, entries=(*plan.entries, *new), seeds=tuple(dict.fromkeys([*plan.seeds, *own, *seeds]))
    ).placed()
    with held(folder):
        write_atomically(folder / COMPARE_FILE, json.dumps(longer.document(), indent=1))
        return _run_all(longer, folder, jobs, watch or CompareWatch())


def _read_plan(folder: Path) -> _Plan:
    path = folder / COMPARE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _Plan(
            recipe=check_recipe(document["recipe"], name=str(path)),
            entries=tuple(_read_entry(entry) for entry in document["entries"]),
            seeds=tuple(int(seed) for seed in document["seeds"]),
            baseline=str(document["baseline"]),
            verb=str(document.get("verb", "compare")),
            protocol=read_protocol(document.get("protocol")),
        )
    except OSError as error:
        raise CheckpointError(f"{folder} is no comparison: {path} cannot be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it or compare again") from error


def _read_entry(entry: Mapping[str, Any]) -> Entry:
    if "values" in entry:
        return Entry(entry["label"], entry["values"])
    upload = entry.get("upload")  # of schema 1
    return Entry(
        entry["label"], {"method": entry["method"]} | ({"upload": upload} if upload else {})
    )


def _start(
    plan: _Plan, folder: Path | None, name: str, jobs: int, watch: CompareWatch | None
) -> Comparison:
    """Take the folder, unless it holds something else, and run all."""
    if jobs < 1:
        raise RecipeError(f"--jobs must be at least 1, got {jobs}")
    taken = folder or new_folder(plan.recipe, f"{plan.verb}-{name}")
    if taken.exists() and (not taken.is_dir() or any(taken.iterdir())):
        raise RunExistsError(
            f"the folder {taken} is already there; choose another name, or continue with "
            f"airtune {plan.verb} --resume {taken}"
        )
    plan = plan.placed()
    write_atomically(taken / COMPARE_FILE, json.dumps(plan.document(), indent=1))
    with held(taken):
        return _run_all(plan, taken, jobs, watch or CompareWatch())


@dataclass(frozen=True, slots=True)
class _Cell:
    """One run of a study."""

    entry: Entry
    seed: int
    number: int
    total: int

    def folder(self, runs_folder: Path) -> Path:
        """Return where it stands."""
        return runs_folder / "runs" / f"{self.entry.folder_name}-s{self.seed}"


def _run_all(plan: _Plan, folder: Path, jobs: int, watch: CompareWatch) -> Comparison:
    watch.on_folder(folder)
    pairs = [(entry, seed) for seed in plan.seeds for entry in plan.entries]
    cells = [_Cell(entry, seed, number, len(pairs)) for number, (entry, seed) in enumerate(pairs)]
    results: list[RunResult] = []
    errors: list[tuple[_Cell, AirtuneError]] = []
    run = _in_turn if jobs == 1 else _at_once
    try:
        for cell, outcome in run(plan, cells, folder, jobs, watch):
            if isinstance(outcome, RunResult):
                results.append(outcome)
                continue
            errors.append((cell, outcome))
            _drop_empty(cell.folder(folder))
            watch.on_left_out(_left_out(cell, outcome))
    except (KeyboardInterrupt, RunInterruptedError) as error:
        raise RunInterruptedError(
            f"interrupted with {len(results)} of {len(cells)} runs finished; go on with: "
            f"airtune {plan.verb} --resume {folder}"
        ) from error
    if not results:
        raise errors[0][1]
    page, study = write_report([folder], folder), load_study([folder])
    return Comparison(
        folder,
        page,
        study,
        summarise(study),
        tuple(results),
        tuple(_left_out(cell, error) for cell, error in errors),
    )


_Outcome = tuple[_Cell, RunResult | AirtuneError]


def _in_turn(
    plan: _Plan, cells: Sequence[_Cell], place: Path, jobs: int, watch: CompareWatch
) -> Iterator[_Outcome]:
    """Run one after the other; what several read alike is loaded once."""
    held: tuple[str, Assets] | None = None
    for cell in cells:
        told = watch.on_run(cell.entry.label, cell.seed, cell.number, cell.total)
        folder = cell.folder(place)
        try:
            recipe = cell.entry.recipe(plan.recipe, cell.seed)
            if not (folder / "result.json").exists() and (
                held is None or held[0] != _reads(recipe)
            ):
                told.on_stage("loading model and data")
                held = None  # the old ones make room first
                held = _reads(recipe), load_assets(recipe)
            assets = held[1] if held is not None and held[0] == _reads(recipe) else None
            yield cell, run_one(recipe, cell.entry.label, folder, assets=assets, watch=told)
        except (RunInterruptedError, StorageError):
            raise
        except AirtuneError as error:
            yield cell, error


def _at_once(
    plan: _Plan, cells: Sequence[_Cell], place: Path, jobs: int, watch: CompareWatch
) -> Iterator[_Outcome]:
    """Run several at once, each in a process of its own, with its part of the threads."""
    workers = JobProcesses()

    def work(cell: _Cell) -> RunResult:
        told = watch.on_run(cell.entry.label, cell.seed, cell.number, cell.total)
        told.on_stage("in a process of its own")
        done = workers.run(
            _sharing(cell.entry.recipe(plan.recipe, cell.seed), jobs),
            cell.entry.label,
            cell.folder(place),
        )
        told.on_stage("done")
        return done

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except (RunInterruptedError, StorageError):
                    raise
                except AirtuneError as error:
                    yield futures[future], error
        except BaseException:
            workers.stop()
            raise


def _sharing(recipe: Recipe, jobs: int) -> Recipe:
    """Return the recipe with an equal part of this machine's threads, where it leaves them open."""
    if recipe.threads:
        return recipe
    return recipe.model_copy(update={"threads": max(1, torch.get_num_threads() // jobs)})


def _reads(recipe: Recipe) -> str:
    """Return what decides model, data and fleet, as text."""
    values = recipe.plain()
    return json.dumps([values[key] for key in ("model", "data", "fleet", "seed")], sort_keys=True)


def _left_out(cell: _Cell, error: AirtuneError) -> LeftOut:
    label = cell.entry.label
    return LeftOut(label, cell.seed, str(error).removeprefix(f"{label}: "), error.exit_code)


def _drop_empty(folder: Path) -> None:
    """Remove a run that was begun and never had a round; one that had, and lost its file, stays."""
    is_empty = not (rounds := folder / "rounds.jsonl").exists() or not rounds.stat().st_size
    if folder.is_dir() and is_empty and not (folder / "checkpoint").exists():
        shutil.rmtree(folder)
