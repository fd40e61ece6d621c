"""`airtune export`: files that ordinary tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson


def export(
    run: Annotated[str, typer.Argument(help="A run folder, or latest.")],
    *,
    format: Annotated[
        Literal["adapter", "merged", "pruned", "gguf", "adapter-gguf"],
        typer.Option("--format", help="What to write."),
    ] = "adapter",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; default: in the run folder.")
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            help="With merged, pruned or gguf, of a run that kept the dense base: fraction of the blocks' weights to remove; needs --force, as the result was not evaluated."
        ),
    ] = None,
    round: Annotated[
        Literal["best", "last"],
        typer.Option(
            "--round",
            help="Which round's model: the last, or the best on the devices' validation data.",
        ),
    ] = "last",
    quantise: Annotated[
        Literal["f32", "f16", "q8_0"] | None,
        typer.Option(
            "--quantise",
            help="How gguf stores matrices (adapter-gguf: f32 or f16); default: as the weights are.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace an existing export; also write a model that is worse than the untuned one or was not evaluated.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write what a run learned: a PEFT adapter, the merged model, a pruned one, or GGUF files.

    Example: airtune export latest --format adapter --output my-adapter
    """
    folder = find_run(run, marks=("run.json",))
    from airtune.run import export_run

    written = export_run(
        folder,
        format,
        output=output,
        prune=prune,
        round=round,
        quantise=quantise,
        overwrite=force,
        accept_worse=force,
    )
    if as_json:
        print_json({"format": format, "folder": str(written)})
    else:
        print_line(f"wrote {written}")
