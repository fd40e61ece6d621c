"""`airtune report`: make the page of runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson


def report(
    runs: Annotated[list[str], typer.Argument(help="Run or comparison folders, or latest.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Page or folder to write; default: beside the only run, report/ for several."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of one run, or of several side by side.

    Example: airtune report runs/a runs/b --output ab.html
    """
    from airtune.report import write_report

    folders = [find_run(run) for run in runs]
    page = write_report(folders, output or (folders[0] if len(folders) == 1 else Path("report")))
    if as_json:
        print_json({"report": str(page), "runs": [str(folder) for folder in folders]})
    else:
        print_line(f"report: {page}")
