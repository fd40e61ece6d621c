"""`airtune init`: write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.options import AsJson
from airtune.errors import RunExistsError


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    *,
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the shipped model.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="File, folder or hub id; default: shipped data.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="causal-lm, classification or image-classification; default: as model and data say."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="See airtune list methods.")] = "jcpba",
    fleet: Annotated[str | None, typer.Option(help="See airtune list fleets.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe, ready to run.

    Data on this machine are read: the recipe gets their task, columns, encoding and length.

    Example: airtune init --model Qwen/Qwen2.5-0.5B --data ./logs.jsonl
    """
    from airtune.data.embedded import ARITHMETIC, SHAPES, TOPICS
    from airtune.recipe import EMBEDDED, check_recipe, commented_recipe, default_fleet, parse_yaml
    from airtune.records import write_atomically

    if path.exists() and not force:
        raise RunExistsError(f"{path} is already there; choose another name or add --force")
    shipped = {"classification": TOPICS, "image-classification": SHAPES}.get(task or "", ARITHMETIC)
    asked = {"source": data or shipped} | ({} if task is None else {"task": task})
    spec = check_recipe({"data": asked}, name="what was asked for").data
    found: dict[str, Any] = {"task": spec.task}
    said: tuple[str, ...] = ()
    if data is not None:
        from airtune.run.propose import propose_data

        proposal = propose_data(
            data,
            model=model or EMBEDDED,
            task=None if task is None else spec.task,
            fleet=fleet or default_fleet(model),
        )
        found, said = proposal.settings(), proposal.lines
    text = commented_recipe(
        file=str(path), model=model, data=data or shipped, method=method, fleet=fleet, **found
    )
    check_recipe(parse_yaml(text, where=str(path)), name="the recipe asked for")
    write_atomically(path, text)
    if as_json:
        print_json({"recipe": str(path), **found})
        return
    print_line(f"wrote {path}")
    for line in said:
        print_line(f"data: {line}")
    print_line(f"check it: airtune plan {path}\nrun it:   airtune run {path}")
