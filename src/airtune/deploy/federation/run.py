"""A run over real devices: who takes part, what they have, and the ordinary round loop over them.

What the local engine reads from the recipe, a federation learns from its devices: how many examples
each has, how long they are, how fast it is. What was learnt is saved with the run (`roster.json` and
`probes/`), so a run that is resumed has the same devices by the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from airtune.data.federated import Count, FederatedData
from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.samples import write_samples
from airtune.deploy import ROSTER
from airtune.deploy.federation.base_download import asking, have_held, offer_base
from airtune.deploy.federation.members import (
    Connected,
    RunDevices,
    RunFolder,
    Tell,
    join,
    run_folder_of,
    wait_for,
)
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.roster import Roster, joined_fleet
from airtune.deploy.federation.server_data import Known, load_known
from airtune.deploy.reading import describe_reader
from airtune.engine.base import Engine, with_work
from airtune.engine.buffered import BufferedEngine
from airtune.engine.message import RunSetup
from airtune.engine.remote.buffered import BufferedRealEngine
from airtune.engine.remote.devices import Remote
from airtune.engine.remote.real import RealEngine
from airtune.engine.remote.workers import RemoteWorkers, judges_of
from airtune.engine.virtual import VirtualEngine
from airtune.errors import MismatchError, RecipeError
from airtune.loop import Laps, Run, run_to_end
from airtune.model.base import BaseModel
from airtune.model.images import image_tokens
from airtune.model.part import part_fingerprints
from airtune.plan import Measurements, Method
from airtune.recipe import Recipe, dump_recipe
from airtune.records import RunWriter, read_run, storage, write_atomically
from airtune.report import write_report
from airtune.run import (
    Assets,
    Chosen,
    Pieces,
    build_pieces,
    choose_method,
    known_sensitivity,
    problem_of,
    stored_measurements,
    stored_sensitivity,
    workload_of,
)
from airtune.run.build import bare_problem, check_cuts, engine_settings, pinned
from airtune.run.by_class import by_class_of
from airtune.run.checks import check_mend
from airtune.run.execute import loop_settings, reopen
from airtune.run.folders import RECIPE_FILE, extend, longer, saved_recipe
from airtune.run.header import header, identity
from airtune.run.load import is_vision, load_model
from airtune.wire.traffic_budget import TRAFFIC_FILE, TrafficBudget


def run_federation(order: Order, nodes: Connected, *, tell: Tell, laps: Laps | None = None) -> Path:
    """Run an order to its end; returns the run's folder.

    Args:
        order: what is run.
        nodes: the devices.
        tell: told what happens.
        laps: a watch that has run since the order came; None = it comes now.

    Raises:
        ConnectionFailedError: if too few devices are there.
        MismatchError: if none of them fits the run.
        AirtuneError: one of its kinds, as for a local run.
    """
    run_folder = run_folder_of(order)
    try:
        return _run_in(run_folder, order, nodes, tell, laps or Laps())
    finally:
        with suppress(OSError):  # what failed before it had begun leaves no folder
            run_folder.path.rmdir()


def _run_in(run_folder: RunFolder, order: Order, nodes: Connected, tell: Tell, laps: Laps) -> Path:
    recipe = order.recipe if run_folder.is_new else saved_recipe(run_folder.path)
    if order.rounds is not None and not run_folder.is_new:
        recipe = longer(run_folder.path, recipe, order.rounds)
    recipe = pinned(recipe)
    chosen = choose_method(recipe)
    _check_federates(chosen)
    tell(stage="loading the model", folder=str(run_folder.path))
    known = load_known(recipe)
    base = load_model(recipe, classes=known.labels)
    check_cuts(recipe, base.shape)
    check_mend(recipe, base, chosen.method)
    laps.lap("loading_s")
    names = wait_for(order, run_folder, nodes, recipe, tell)
    laps.lap("waiting_s")
    link = RunDevices(nodes, names)
    setup = _setup(order, recipe, chosen.method, base, labels=known.labels, devices=len(names))
    remote = Remote(
        nodes.transport(link.located),
        names,
        setup,
        run=_number(run_folder.path),
        shape=base.shape,
        patience_s=order.silent_s,
        traffic_budget=_traffic_budget(order, run_folder, recipe, len(names)),
    )
    download = offer_base(
        recipe, order.serve, remote.traffic_budget, devices=len(names), silent_s=order.silent_s
    )
    remote.offers = {} if download is None else download.offers
    may_cut = chosen.method.may_cut
    ask = asking(remote, names, download, tell)
    roster = run_folder.roster or join(ask, names, blocks=0 if may_cut else None, tell=tell)
    laps.lap("staging_s")
    remote.data = {
        number: item.data for number, item in enumerate(roster.joined) if item is not None
    }
    pieces = _pieces(order, recipe, roster, folder=run_folder.path, known=known, base=base)
    remote.settle_on(replace(setup, workload=pieces.problem.workload))
    link.allowed = frozenset(np.flatnonzero(roster.samples).tolist())
    if may_cut and run_folder.is_new:
        link.allowed = have_held(
            ask,
            with_work(pieces.problem, chosen.method.work),
            pieces.assets.fleet.memory_bytes,
            names,
            cut=chosen.method.cut,
            tell=tell,
        )
    pieces, writer = _begin(run_folder, pieces, chosen, order, roster)
    if order.rounds is not None and not run_folder.is_new:
        extend(run_folder.path, recipe)
    tell(
        stage="running",
        folder=str(run_folder.path),
        name=recipe.label,
        rounds=recipe.train.rounds,
        devices=[names[number] for number in sorted(link.allowed)],
    )
    engine = _engine(order, pieces, chosen.method, remote)
    run = _run(order, pieces, chosen, engine, writer)
    run_to_end(run, base, on_round=lambda record: tell(round=record), laps=laps)
    page = write_report([run_folder.path], run_folder.path)
    tell(result=read_run(run_folder.path).results, folder=str(run_folder.path), report=str(page))
    return run_folder.path


def _check_federates(chosen: Chosen) -> None:
    """Refuse what a federation cannot run, before any device is asked."""
    name = chosen.method.name
    if chosen.is_control:
        raise RecipeError(f"{name} is a control and federates nothing; run it without --server")
    if chosen.method.work.hand_over:
        raise RecipeError(
            f"{name} hands the device part from one device to the next within a round, which devices "
            "over a network cannot; take splitfed-v2, whose devices come one after the other and keep "
            "their parts, or run it without --server"
        )


def _setup(
    order: Order,
    recipe: Recipe,
    method: Method,
    base: BaseModel,
    *,
    labels: tuple[str, ...],
    devices: int,
) -> RunSetup:
    """Return what every device is told of the run."""
    return RunSetup(
        recipe=recipe.model_dump_json(),
        fingerprint=base.fingerprint,
        tokenizer=describe_reader(recipe, base.tokenizer),
        workload=workload_of(recipe, base.shape, tokens=recipe.data.max_length),
        work=method.work,
        train=engine_settings(recipe).train,
        seed=recipe.seed,
        devices=devices,
        labels=labels,
        parts=part_fingerprints(base.network) if method.may_cut else {},
        threads=recipe.threads if order.clock == "replay" else order.recipe.threads,
    )


def _traffic_budget(
    order: Order, run_folder: RunFolder, recipe: Recipe, devices: int
) -> TrafficBudget:
    """Return what devices may receive and send; on the replayed clock the engine counts for itself."""
    cap_bytes = None if order.clock == "replay" else recipe.limits.device_bytes_per_month
    return TrafficBudget(cap_bytes, devices, file=run_folder.path / TRAFFIC_FILE)


def _pieces(
    order: Order, recipe: Recipe, roster: Roster, *, folder: Path, known: Known, base: BaseModel
) -> Pieces:
    if order.clock == "replay":
        pieces = build_pieces(recipe)
        held = tuple(len(device.train) for device in pieces.assets.data.devices)
        if held != roster.samples:
            raise MismatchError(
                f"on the replayed clock devices hold shares of the recipe's data, {held} rows; "
                f"they said {roster.samples}; start their agents with --data recipe"
            )
        return pieces
    fleet = joined_fleet(recipe, roster, folder, kept=order.probes)
    longest = max(item.longest for item in roster.joined if item is not None)
    tokens = image_tokens(base.network.config) if is_vision(recipe) else max(longest, 2)
    workload = workload_of(recipe, base.shape, tokens=tokens)
    problem = bare_problem(recipe, base.shape, workload, fleet, np.array(roster.samples))
    cut = sum(item.truncated for item in roster.joined if item is not None)
    counts: dict[str, Count] = {
        "source": known.source,
        "rows": sum(roster.samples),
        "device_rows": list(roster.samples),
        "test_rows": len(known.test),
        "truncated": cut,
    }
    data = FederatedData(
        devices=known.nothing(len(roster.names)),
        test=known.test,
        labels=known.labels,
        columns={},
        counts=counts,
        test_prompts=known.prompts,
        samples=known.samples,
        ledger=DataLedger(RowCounts(read=sum(roster.samples), truncated=cut), known.rows),
    )
    return Pieces(recipe, Assets(base, data, fleet), problem, engine_settings(recipe))


def _begin(
    run_folder: RunFolder, pieces: Pieces, chosen: Chosen, order: Order, roster: Roster
) -> tuple[Pieces, RunWriter]:
    """Open the records; the problem then holds what was measured beforehand, if anything was.

    Nothing is measured over real devices. A run takes what an earlier one has stored at the server,
    and writes it to its header, from which it reads it again when it is resumed.
    """
    if not run_folder.is_new:
        pieces, writer, measured, _ = reopen(read_run(run_folder.path), pieces)
        return _priced(order, pieces, chosen.method, measured), writer
    fingerprint = pieces.assets.base.fingerprint
    measured = stored_measurements(pieces.recipe, chosen, fingerprint=fingerprint)
    pieces = known_sensitivity(
        pieces, stored_sensitivity(pieces.recipe, chosen, fingerprint=fingerprint)
    )
    document = header(pieces, chosen, measured)
    document |= {"engine": {"kind": "remote", "clock": order.clock, "devices": list(roster.names)}}
    with storage(run_folder.path):
        run_folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder.path / RECIPE_FILE, dump_recipe(pieces.recipe))
    write_samples(run_folder.path, pieces.assets.data.samples)
    rows = [None if item is None else asdict(item) for item in roster.joined]
    write_atomically(
        run_folder.path / ROSTER,
        json.dumps({"names": list(roster.names), "joined": rows}, indent=1),
    )
    writer = RunWriter.create(run_folder.path, document)
    return _priced(order, pieces, chosen.method, measured), writer


def _priced(order: Order, pieces: Pieces, method: Method, measured: Measurements | None) -> Pieces:
    """Return the pieces with the problem as the method meets it."""
    problem = problem_of(pieces, method, measured)
    if order.clock == "real":
        # what this server has is not known: the fleet says it of a planned one
        limit = pieces.problem.server_memory_bytes
        problem = replace(problem, server_memory_bytes=limit)
    return replace(pieces, problem=problem)


def _engine(order: Order, pieces: Pieces, method: Method, remote: Remote) -> Engine:
    assets, problem, needs = pieces.assets, pieces.problem, method.decider.needs
    is_replay = order.clock == "replay"
    workers = RemoteWorkers(
        assets.fleet,
        problem,
        assets.base,
        assets.data,
        remote=remote,
        work=method.work,
        settings=pieces.engine,
        serve=order.serve,
        # on the real clock nobody waits longer for a judgement than for a round
        judging_s=None if is_replay else problem.deadline_s,
    )
    buffer = pieces.recipe.train.async_buffer
    if is_replay:
        played = VirtualEngine(assets.fleet, workers, needs=needs, settings=pieces.engine)
        return BufferedEngine(played, workers.problem, buffer=buffer) if buffer else played
    real = RealEngine(assets.fleet, workers, needs=needs, settings=pieces.engine)
    return BufferedRealEngine(real, workers.problem, buffer=buffer) if buffer else real


def _run(order: Order, pieces: Pieces, chosen: Chosen, engine: Engine, writer: RunWriter) -> Run:
    # a judgement by itself costs devices bytes; a coded broadcast is not the model that is kept, and
    # devices that are cut do not hold all of it
    is_kept = pieces.problem.workload.download.kind == "identity"
    rides = order.clock == "real" and is_kept and not chosen.method.may_cut
    rides = rides and bool(judges_of(pieces.problem, pieces.assets.fleet))
    return Run(
        chosen.method,
        pieces.problem,
        engine,
        writer,
        identity(pieces),
        replace(loop_settings(pieces), evaluate_raw=False, judge_along=rides),
        afterwards=by_class_of(pieces, chosen.method.work),
    )


def _number(folder: Path) -> int:
    """Return the number of a run, the same when it is resumed."""
    return int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:7], "big")
