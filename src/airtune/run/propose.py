"""What a recipe should say of data that a person names: task, columns, encoding, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airtune.data.columns import propose_columns, resolve_columns, usual_roles
from airtune.data.embedded import SHAPES
from airtune.data.folder import proposed_encoding
from airtune.data.image_sources import holds_pictures
from airtune.data.picture import PICTURES
from airtune.data.read import check_places, read_rows
from airtune.data.spec import DataSpec, Task
from airtune.data.table import Table, first_value
from airtune.errors import DataError
from airtune.fleet import load_fleet
from airtune.model.families import Config, family_of
from airtune.model.source import load_config
from airtune.recipe import Recipe, check_recipe
from airtune.run.inspect import Inspection, Lengths, base_here, inspect_data, is_here
from airtune.run.load import positions_of

_NO_LIMIT = 2**20
"""Tokens: nothing is cut while lengths are measured."""
_USUAL_LENGTH, _LONGEST = 512, 2048
"""Tokens: texts up to the first are kept whole, the most that is proposed."""
_STEP = 16
_ROWS_A_DEVICE = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to write into a recipe; what is None or empty stays at its default."""

    task: Task
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    max_length: int | None = None
    devices: int | None = None
    """Where the fleet has more than the rows are enough for."""
    lines: tuple[str, ...] = ()
    """What was found, for the person who asked."""

    def settings(self) -> dict[str, Any]:
        """Return what the commented recipe takes."""
        return {
            "task": self.task,
            "columns": dict(self.columns),
            "encoding": self.encoding,
            "max_length": self.max_length,
            "devices": self.devices,
        }


def propose_data(source: str, *, model: str, task: Task | None, fleet: str) -> Proposal:
    """Look at data as a run of this model would, and return what its recipe should say.

    An encoder classifies; a decoder does where a column is named as labels are and none as prompts
    or answers are. Data of a hub are not looked at.

    Raises:
        DataError: if they are not there or malformed, or a column that the task needs cannot be told.
    """
    if task is None and (source == SHAPES or holds_pictures(Path(source).expanduser())):
        task = "image-classification"
    spec = DataSpec(source=source)
    check_places(spec)
    if not is_here(spec):
        return Proposal(task or "causal-lm")
    if task == "image-classification":
        found = inspect_data(_recipe(model, {"source": source, "task": task}))
        return _proposal(task, found, fleet)
    encoding = proposed_encoding(Path(source).expanduser())
    base = base_here(_recipe(model, {"source": source}))
    config = None if base is None else load_config(base)
    usual: Task = "causal-lm" if config is None or family_of(config).causal else "classification"
    table, _ = read_rows(DataSpec(source=source, encoding=encoding, task=task or usual), seed=0)
    task = task or _task(table, usual)
    columns, is_guess = _columns(source, task, table, config)
    data = {"source": source, "task": task, "columns": columns, "encoding": encoding}
    found = inspect_data(_recipe(model, data | {"max_length": _NO_LIMIT}))
    named = ", ".join(f"{role}: {column}" for role, column in columns.items())
    told = f"columns {named}{', guessed from their content: check them' if is_guess else ''}"
    if is_guess and _is_data(table):
        told += (
            "; their names are the first row, which looks like data: add a row of names before it"
        )
    proposal = _proposal(task, found, fleet, told)
    most = None
    if found is not None and found.lengths is not None:
        most = _max_length(found.lengths, 0 if config is None else positions_of(config))
    return replace(proposal, columns=columns, encoding=encoding, max_length=most)


def _proposal(task: Task, found: Inspection | None, fleet: str, *told: str) -> Proposal:
    if found is None:
        return Proposal(task, lines=told)
    few = found.rows < len(load_fleet(fleet)) * _ROWS_A_DEVICE
    devices = max(1, found.rows // _ROWS_A_DEVICE) if few else None
    return Proposal(task, devices=devices, lines=(*told, *_lines(found)))


def _recipe(model: str, data: Mapping[str, Any]) -> Recipe:
    return check_recipe({"model": {"source": model}, "data": dict(data)})


def _task(table: Table, usual: Task) -> Task:
    """Return the task that columns speak for; `usual` is what the model does with texts."""
    roles = usual_roles(table)
    if "image" in roles and _holds_image(table.column(roles["image"])):
        return "image-classification"
    if usual == "classification" or "messages" in roles:
        return usual
    is_labelled = {"text", "label"} <= roles.keys() and not {"prompt", "completion"} & roles.keys()
    return "classification" if is_labelled else "causal-lm"


def _is_data(table: Table) -> bool:
    """Say whether the names of columns look like a row of data: a number beside other words."""
    numbers = [name.replace(".", "", 1).isdigit() for name in table.columns]
    return any(numbers) and not all(numbers)


def _holds_image(values: Sequence[object]) -> bool:
    """Say whether the first value of a column is an image, or names one."""
    first = first_value(values)
    return not isinstance(first, str) or Path(first).suffix.lower() in PICTURES


def _columns(
    source: str, task: Task, table: Table, config: Config | None
) -> tuple[dict[str, str], bool]:
    """Return the columns by their usual names, or else by content, and whether it was that."""
    try:
        return resolve_columns(DataSpec(source=source, task=task), table), False
    except DataError as error:
        guess = propose_columns(task, table)
        enough = [{"text", "label"}]
        if task == "causal-lm":
            enough = [{"text"}, {"messages"}, {"prompt", "completion"}]
        if any(roles <= guess.keys() for roles in enough):
            return guess, True
        if config is not None and not family_of(config).causal and "label" not in guess:
            raise DataError(
                f"{error}. A {config.model_type} model classifies and needs labels; take a "
                "decoder for texts alone"
            ) from error
        raise


def _max_length(lengths: Lengths, positions: int) -> int:
    """Return room for all texts, or for 95 % of them where a few are long."""
    longest = max(lengths.longest, lengths.test_longest)
    wanted = longest if longest <= _USUAL_LENGTH else lengths.most
    rounded = -(-max(wanted, _STEP) // _STEP) * _STEP
    return min(rounded, _LONGEST, positions or _LONGEST)


def _lines(found: Inspection) -> tuple[str, ...]:
    classes = f", {len(found.labels)} classes" if found.labels else ""
    lengths = () if found.lengths is None else (f"tokens of a text: {found.lengths}",)
    return (
        f"{found.rows:,} rows for training, {found.test_rows:,} for the test{classes}",
        *lengths,
        *(line.marked for line in found.ledger.lines()),
    )
