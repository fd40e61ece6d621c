"""Running a recipe, and going on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airtune.calibrate import from_header
from airtune.data.samples import write_samples
from airtune.engine.base import Engine
from airtune.engine.buffered import BufferedEngine
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.errors import CheckpointError, RecipeError, RunInterruptedError
from airtune.loop import LoopSettings, Run, Target, run_to_end
from airtune.model.server import ServerOptimizer
from airtune.model.state import GlobalState
from airtune.plan import Measurements, Method, Problem
from airtune.recipe import Recipe
from airtune.records import RunRecord, RunWriter, held, read_run
from airtune.report import write_report
from airtune.run import controls
from airtune.run.build import Pieces, build_pieces, pinned
from airtune.run.by_class import by_class_of
from airtune.run.checks import check_begin
from airtune.run.folders import (
    RECIPE_FILE,
    check_moved,
    claimed,
    extend,
    longer,
    places_of,
    resolved,
    saved_recipe,
)
from airtune.run.header import header, identity
from airtune.run.leakage import leakage_of
from airtune.run.load import Assets
from airtune.run.measurement import measure
from airtune.run.method import Chosen, choose_method
from airtune.run.notes import notes_of
from airtune.run.sensitivity import known_sensitivity, remembered_sensitivity, with_sensitivity

_WINDOW = 3
"""Validations whose mean is compared with the target, as in reports."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a run gets on; the default is nobody."""

    on_begin: Callable[[str, int], None] = lambda name, rounds: None
    """Told the run's name and its rounds."""
    on_stage: Callable[[str], None] = lambda stage: None
    """Told what begins: loading, calibrating, running, reporting."""
    on_calibration: Callable[[int, int], None] = lambda done, total: None
    """Told how many rounds of its short runs a calibration has done, of how many."""
    on_round: Callable[[Mapping[str, Any]], None] = lambda record: None
    """Told each round's record."""
    on_folder: Callable[[Path], None] = lambda folder: None
    """Told where the records are."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run ended with."""

    folder: Path
    report: Path | None
    rounds: int
    time_s: float
    """On the virtual clock."""
    upload_bytes: float
    download_bytes: float
    results: Mapping[str, Any] = field(default_factory=dict)
    """As in `result.json`: test, initial, validation_best, target_reached."""
    notes: tuple[str, ...] = ()
    """What a reader should know: rows left out or cut, devices that never took part."""


def run_recipe(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    label: str | None = None,
    assets: Assets | None = None,
    watch: Watch | None = None,
    reports: bool = True,
) -> RunResult:
    """Run a recipe from its first round to its report.

    Args:
        recipe: checked.
        folder: where the records go; None = `<output>/<time>-<name>`.
        label: what the method is called in reports; None = its name.
        assets: model, data and fleet that another run has loaded; None = load them.
        watch: receives the progress.
        reports: write the page at the end.

    Raises:
        RunExistsError: if the folder is there.
        RunInterruptedError: on Ctrl-C; the message says how to go on.
        AirtuneError: one of its kinds, for whatever is wrong with recipe, data, model or fleet.
    """
    watch, recipe = watch or Watch(), pinned(recipe)
    with ExitStack() as until_the_end:
        with claimed(recipe, folder) as taken:
            until_the_end.enter_context(held(taken))
            watch.on_folder(taken)
            ready = _begin(taken, recipe, label, assets, watch)
        return _finish(*ready, watch=watch, reports=reports)


def calibrate_recipe(
    recipe: Recipe, *, tables: Collection[str] | None = None, watch: Watch | None = None
) -> Measurements:
    """Measure what the knobs cost and store it, for whatever runs the recipe later.

    Args:
        recipe: checked.
        tables: names of tables; None = those that the recipe's method wants.
        watch: receives the progress.

    Raises:
        RecipeError: if the method wants none and none is named.
        InfeasibleError: if no device can keep the limit of energy.
        RunInterruptedError: on Ctrl-C; the same again goes on from there.
    """
    watch = watch or Watch()
    watch.on_begin(recipe.label, 0)
    watch.on_stage("loading model and data")
    try:
        chosen = choose_method(resolved(recipe))
        pieces = build_pieces(resolved(recipe))
        check_begin(pieces, chosen)
        pieces = with_sensitivity(pieces, chosen, watch.on_stage)
        found = measure(pieces, chosen, watch.on_stage, watch.on_calibration, tables=tables)
    except KeyboardInterrupt as error:
        raise RunInterruptedError("interrupted; the same command goes on from there") from error
    if found is None:
        raise RecipeError(
            f"{chosen.method.name} uses no measured costs; name tables, --tables pruning,ranks "
            "for instance"
        )
    return found


def resume_run(
    folder: Path,
    *,
    rounds: int | None = None,
    label: str | None = None,
    assets: Assets | None = None,
    watch: Watch | None = None,
    reports: bool = True,
) -> RunResult:
    """Go on with a run from its last checkpoint; the outcome is that of a run never stopped.

    Args:
        folder: the run folder.
        rounds: more rounds than the run was started with, ended or not; None = those.
        label: what the method of a run without a round is called in reports; None = its name.
        assets: as for `run_recipe`, and the next two.
        watch: receives the progress.
        reports: write the page at the end.

    Raises:
        CheckpointError: if the folder is no run, is damaged, or does not belong to its recipe.
        RecipeError: if `rounds` are not more.
        RunExistsError: if another process runs it.
        RunInterruptedError: on Ctrl-C.
    """
    with held(folder):
        return _resume(folder, rounds, label, assets, watch or Watch(), reports=reports)


def _resume(
    folder: Path,
    rounds: int | None,
    label: str | None,
    assets: Assets | None,
    watch: Watch,
    *,
    reports: bool,
) -> RunResult:
    is_begun = (folder / "run.json").exists() or not (folder / RECIPE_FILE).exists()
    record = read_run(folder) if is_begun else None
    recipe = saved_recipe(folder, None if record is None else record.header)
    if rounds is not None:
        recipe = longer(folder, recipe, rounds)
    watch.on_folder(folder)
    if record is None:
        if rounds is not None:
            extend(folder, recipe)
        return _finish(*_begin(folder, recipe, label, assets, watch), watch=watch, reports=reports)
    if record.results is not None and rounds is None:
        page = write_report([folder], folder) if reports else None
        return _result(folder, page)
    return _go_on(record, recipe, assets, watch=watch, reports=reports)


def _begin(
    folder: Path, typed: Recipe, label: str | None, assets: Assets | None, watch: Watch
) -> tuple[Pieces, Chosen, RunWriter, Measurements | None]:
    """Load, measure and write the header: all that stands before the first round."""
    recipe = resolved(typed)
    watch.on_begin(recipe.label, recipe.train.rounds)
    try:
        watch.on_stage("loading model and data")
        pieces = build_pieces(recipe, assets)
        chosen = choose_method(recipe, label=label)
        check_begin(pieces, chosen)
        pieces = with_sensitivity(pieces, chosen, watch.on_stage)
        measured = measure(pieces, chosen, watch.on_stage, watch.on_calibration)
    except (KeyboardInterrupt, RunInterruptedError) as error:
        raise RunInterruptedError(
            f"interrupted before the first round; go on with: airtune run --resume {folder}"
        ) from error
    document = header(pieces, chosen, measured)
    document["places"] = places_of(typed)
    document["model"]["source"], document["data"]["source"] = typed.model.source, typed.data.source
    write_samples(folder, pieces.assets.data.samples)
    return pieces, chosen, RunWriter.create(folder, document), measured


def _go_on(
    record: RunRecord, recipe: Recipe, assets: Assets | None, *, watch: Watch, reports: bool
) -> RunResult:
    """Go on after the last checkpoint."""
    folder = record.folder
    watch.on_begin(recipe.label, recipe.train.rounds)
    watch.on_stage("loading model and data")
    check_moved(folder, record.header)
    pieces = build_pieces(recipe, assets)
    _check_same(folder, record.header, pieces)
    chosen = choose_method(recipe, label=str(record.header["method"]["name"]))
    pieces, writer, measured, rounds = reopen(record, pieces)
    if recipe.train.rounds != record.header["rounds"]:
        extend(folder, recipe)
    for round_record in record.rounds[:rounds]:
        watch.on_round(round_record)
    return _finish(pieces, chosen, writer, measured, watch=watch, reports=reports)


def reopen(record: RunRecord, pieces: Pieces) -> tuple[Pieces, RunWriter, Measurements | None, int]:
    """Open a run's records to go on after its last checkpoint, of which it has so many rounds.

    Raises:
        CheckpointError: if the checkpoint is damaged or of another run.
    """
    pieces = known_sensitivity(pieces, remembered_sensitivity(record.header))
    checkpoint = load_checkpoint(record.folder / "checkpoint", identity=identity(pieces))
    rounds = 0 if checkpoint is None else checkpoint.rounds
    writer = RunWriter.resume(record.folder, rounds)
    return pieces, writer, from_header(record.header), rounds


def _finish(
    pieces: Pieces,
    chosen: Chosen,
    writer: RunWriter,
    measured: Measurements | None,
    *,
    watch: Watch,
    reports: bool,
) -> RunResult:
    """Run the rounds that are left, then write the page."""
    watch.on_stage("running")
    try:
        if chosen.is_control:
            _run_control(pieces, chosen.method.name, writer, watch)
        else:
            _run_method(pieces, chosen.method, writer, measured, watch)
    except KeyboardInterrupt as error:
        raise RunInterruptedError(
            f"interrupted; go on with: airtune run --resume {writer.folder}"
        ) from error
    watch.on_stage("writing the report")
    page = write_report([writer.folder], writer.folder) if reports else None
    return _result(writer.folder, page)


def _run_method(
    pieces: Pieces, method: Method, writer: RunWriter, measured: Measurements | None, watch: Watch
) -> None:
    problem = problem_of(pieces, method, measured)
    assets = pieces.assets
    engine: Engine = local_engine(
        assets.fleet,
        problem,
        assets.base,
        assets.data,
        needs=method.decider.needs,
        settings=pieces.engine,
    )
    if buffer := pieces.recipe.train.async_buffer:
        engine = BufferedEngine(engine, problem, buffer=buffer)
    run = Run(
        method,
        problem,
        engine,
        writer,
        identity(pieces),
        loop_settings(pieces),
        afterwards=_afterwards(pieces, method, writer.folder),
    )
    run_to_end(run, assets.base, on_round=watch.on_round)


def _afterwards(
    pieces: Pieces, method: Method, folder: Path
) -> Callable[[GlobalState], Mapping[str, Any]]:
    """Return what is measured once on the last state."""
    asked = [by_class_of(pieces, method.work)]
    if pieces.recipe.evaluation.leakage:
        asked.append(leakage_of(pieces, folder))

    def measure(state: GlobalState) -> Mapping[str, Any]:
        return {name: value for one in asked for name, value in one(state).items()}

    return measure


def problem_of(pieces: Pieces, method: Method, measured: Measurements | None) -> Problem:
    """Return the problem as a method meets it: with its own local work and what was measured."""
    return replace(
        pieces.problem.with_measurements(measured),
        work=method.work,
        server_memory_bytes=pieces.assets.fleet.server.memory_bytes,
    )


def _run_control(pieces: Pieces, name: str, writer: RunWriter, watch: Watch) -> None:
    method, problem, engine = controls.control(name, pieces)
    # A control gives the server no update, so nothing is to be given up for the lack of one.
    settings = replace(loop_settings(pieces), patience=problem.rounds + 1, idle_s=0.0)
    run = Run(method, problem, engine, writer, identity(pieces), settings)
    run_to_end(run, pieces.assets.base, on_round=watch.on_round)


def loop_settings(pieces: Pieces) -> LoopSettings:
    """Return how the loop watches this run."""
    recipe = pieces.recipe
    asked = recipe.target
    return LoopSettings(
        evaluate_every=recipe.evaluation.every if recipe.data.held_out else 0,
        target=None if asked is None else Target(asked.metric, asked.value, window=_WINDOW),
        stop_at_target=asked is not None and asked.stop,
        scale=pieces.engine.train.scale,
        decay=recipe.train.decay,
        server=ServerOptimizer(recipe.train.server_average, recipe.train.server_momentum),
    )


def _check_same(folder: Path, saved: Mapping[str, Any], pieces: Pieces) -> None:
    assets, data = pieces.assets, saved["data"]
    if saved["model"]["fingerprint"] != assets.base.fingerprint:
        raise CheckpointError(
            f"the model {saved['model']['source']!r} has other weights than when {folder} was started; "
            "restore them or start a new run"
        )
    if data.get("fingerprint") not in (None, assets.data.fingerprint):
        raise CheckpointError(
            f"the data {data['source']!r} are not what they were when {folder} was started: rows "
            "changed, or another version of airtune reads them otherwise; restore them or start a new run"
        )


def _result(folder: Path, report: Path | None) -> RunResult:
    record = read_run(folder)
    results = record.results or {}
    return RunResult(
        folder=folder,
        report=report,
        rounds=len(record.rounds),
        time_s=float(record.rounds[-1]["end_s"]) if record.rounds else 0.0,
        upload_bytes=sum(float(row["upload_bytes"]) for row in record.rounds),
        download_bytes=sum(float(row["download_bytes"]) for row in record.rounds),
        results=results,
        notes=notes_of(record),
    )
