"""`airtune run`: fine-tune by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note, print_quality
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson, Settings, Where, Words, split_words
from airtune.errors import RecipeError
from airtune.recipe import load_recipe
from airtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from airtune.run import RunResult


def run(
    words: Words = None,
    *,
    settings: Settings = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with this run folder, or with latest; train.rounds=40 gives it more rounds."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="End of the run folder's name.")] = None,
    folder: Annotated[Path | None, typer.Option(help="The run folder itself.")] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="Also write curves for tensorboard, mlflow or wandb; several with commas."
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST[:PORT] of a server: run on real devices.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="With --server: its ca.crt; default: that of the server's state folder here."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="With --server: your operator key; default: the one beside its ca.crt."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --server: it has no TLS.")
    ] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="With --server: the recipe's fleet keeps time, devices hold shares of its data.",
        ),
    ] = False,
    devices: Annotated[
        int,
        typer.Option(min=0, help="With --server: how many devices to wait for; 0 = at least one."),
    ] = 0,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune by a recipe; without one, the embedded default (no download).

    Examples: airtune run · airtune run recipe.yaml --set train.rounds=5 lora.r=4 ·
    airtune run --resume latest · airtune run --resume latest train.rounds=40 · airtune run recipe.yaml --server edge.example.org
    """
    source, changes = split_words(words, settings)
    check_options(
        server is not None,
        remote={
            "--ca": ca,
            "--key": key,
            "--insecure": insecure,
            "--replay": replay,
            "--devices": devices,
            "--where": where,
        },
        local={"--folder": folder, "--track": track},
    )
    rounds = None if resume is None else read_more(changes, source or name or folder)
    if resume is None and name:
        changes += [f"name={name}"]
    if server is not None:
        from airtune.cli.remote import RemoteTarget, run_remotely

        wanted = RemoteTarget(
            server,
            ca,
            key,
            insecure=insecure,
            replay=replay,
            devices=devices,
            resume=resume,
            rounds=rounds,
            where=tuple(where or ()),
        )
        run_remotely(wanted, source, changes, as_json=as_json)
        return
    recipe = load_recipe(source, overrides=changes) if resume is None else None
    begun = None if resume is None else find_run(resume, marks=("run.json", "recipe.yaml"))
    # Torch is loaded once the recipe is known to be right.
    from airtune.cli.progress import progress, watch_run
    from airtune.cli.track import tracked
    from airtune.run import resume_run, run_recipe

    with progress(is_quiet=as_json) as display:
        watch = tracked(watch_run(display, "", _announce(as_json)), track)
        if recipe is not None:
            result = run_recipe(recipe, folder=folder, watch=watch)
        elif begun is not None:
            result = resume_run(begun, rounds=rounds, watch=watch)
    if as_json:
        print_json(as_document(result))
    else:
        _print(result)


def read_more(changes: list[str], others: object) -> int | None:
    """Return the rounds that a resumed run is given; None = as many as it had.

    Raises:
        RecipeError: if anything else is given with --resume.
    """
    keys = {text.partition("=")[0] for text in changes}
    if others or not keys <= {"train.rounds"}:
        raise RecipeError(
            "--resume goes on with the recipe of the run; only more rounds can be given with it, "
            "train.rounds=40 for instance"
        )
    return load_recipe(None, overrides=changes).train.rounds if changes else None


def check_options(
    is_remote: bool, *, remote: Mapping[str, object], local: Mapping[str, object]
) -> None:
    """Refuse options that such a run would not obey.

    Args:
        is_remote: the run is on real devices.
        remote: options of such runs, with what was given; nothing, false or 0 = not given.
        local: those of runs in this process.

    Raises:
        RecipeError: if one was given.
    """
    name = next((name for name, value in (local if is_remote else remote).items() if value), None)
    if name is None:
        return
    if is_remote:
        raise RecipeError(
            f"{name} has no meaning with --server, where records are at the server; leave it out"
        )
    raise RecipeError(f"{name} is for runs on real devices; add --server HOST, or leave it out")


def as_document(result: RunResult) -> dict[str, Any]:
    """Return a result in plain values."""
    values = asdict(result)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _announce(as_json: bool) -> Any:
    def on_folder(folder: Path) -> None:
        if not as_json:
            print_note(f"records: {folder}")

    return on_folder


def _print(result: RunResult) -> None:
    print_quality(result.results)
    print_line(
        f"{result.rounds} round{'s' * (result.rounds != 1)} took {format_seconds(result.time_s)} on the fleet's clock; "
        f"{format_bytes(result.upload_bytes)} up, {format_bytes(result.download_bytes)} down"
    )
    reached = result.results.get("target_reached")
    if reached:
        print_line(f"target reached after {format_seconds(float(reached['time_s']))}")
    for note in result.notes:
        print_line(f"note: {note}")
    print_line(f"report: {result.report}")
