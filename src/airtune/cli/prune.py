"""`airtune prune`: a smaller base model, before anything is tuned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.recipe import load_recipe
from airtune.units import format_bytes


def prune(
    words: Words = None,
    *,
    by: Annotated[
        float,
        typer.Option("--by", help="Fraction of the blocks' weights to remove, 0.3 for instance."),
    ],
    steps: Annotated[
        int,
        typer.Option(
            "--steps", help="Steps in which it learns to answer as the dense model; 0 = none."
        ),
    ] = 100,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; default: pruned-<by> in the recipe's output folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a smaller base model: prune, mend and distil, on the recipe's rows without their labels.

    Any run, plan or federation takes it as model.source; its devices never hold the dense model.

    Example: airtune prune recipe.yaml --by 0.3 --output small
    """
    source, changes = split_words(words, settings)
    recipe = load_recipe(source, overrides=changes)
    from airtune.cli.progress import progress, watch_run
    from airtune.run import prune_base

    with progress(is_quiet=as_json) as display:
        found = prune_base(
            recipe,
            by,
            steps=steps,
            output=output,
            overwrite=force,
            watch=watch_run(display, "", lambda folder: None),
        )
    if as_json:
        print_json(asdict(found) | {"folder": str(found.folder)})
        return
    check = found.check
    print_line(
        f"{check.parameters:,} of {check.dense_parameters:,} parameters are left, "
        f"{format_bytes(check.tensor_bytes)} of {format_bytes(check.dense_tensor_bytes)}"
    )
    print_line(
        f"loss on the test rows: dense {found.dense:.4g}, pruned and mended {found.mended:.4g}, "
        f"written {found.written:.4g}"
    )
    print_line(f"wrote {found.folder}; use it with model.source={found.folder}")
