"""The page made from records: tables, figures and plain sentences; needs no torch and no network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from airtune.records import storage, write_atomically, write_rounds_csv
from airtune.report.page import quality_svg, render_page
from airtune.report.protocol import ProtocolTable, protocol_table
from airtune.report.study import Study, load_study
from airtune.report.summary import Against, Row, Summary, summarise
from airtune.report.tables import write_tables

__all__ = [
    "Against",
    "ProtocolTable",
    "Row",
    "Study",
    "Summary",
    "load_study",
    "protocol_table",
    "summarise",
    "write_report",
]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of a run, or of a comparison, and its files beside it.

    Beside the page: the quality curves as SVG; `rounds.csv` and `devices.csv` of a single run,
    `comparison.csv` (a line a run), `curves.csv`
    (a line a run and evaluation) and `comparison.tex` otherwise.

    Args:
        folders: run folders and comparison folders.
        output: the page, or the folder in which it becomes `report.html`.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: if a folder holds no run, or its records are damaged.
        StorageError: if the output cannot be written.
    """
    study = load_study([Path(folder) for folder in folders])
    summary = summarise(study)
    page = output if output.suffix == ".html" else output / "report.html"
    beside = page.parent
    with storage(beside):
        beside.mkdir(parents=True, exist_ok=True)
    if _is_one_run(study, folders):
        _write_tables(study, beside)
    else:
        write_tables(study, summary, beside)
    write_atomically(beside / "quality-vs-time.svg", quality_svg(study, summary, "time"))
    write_atomically(beside / "quality-vs-bytes.svg", quality_svg(study, summary, "bytes"))
    write_atomically(page, render_page(study, summary))
    return page


def _is_one_run(study: Study, folders: Sequence[Path]) -> bool:
    """Return whether the page is of a run itself, and not of a comparison that holds one."""
    found = [run.record.folder.resolve() for run in study.runs]
    return len(found) == 1 and found == [Path(folder).resolve() for folder in folders]


def _write_tables(study: Study, beside: Path) -> None:
    record = study.first.record
    write_rounds_csv(record.rounds, beside / "rounds.csv")
    source = record.folder / "devices.csv"
    if source.resolve() != (beside / "devices.csv").resolve():
        with storage(beside / "devices.csv"):
            shutil.copyfile(source, beside / "devices.csv")
