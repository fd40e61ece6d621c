"""What data to train on and how to deal it out; checked when it is made, all faults at once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from airtune.data.embedded import ARITHMETIC, EMBEDDED_PREFIX, EMBEDDED_SOURCES, SHAPES, TOPICS
from airtune.errors import RecipeError

Task = Literal["causal-lm", "classification", "image-classification"]
Partition = Literal["iid", "dirichlet", "shards"]
Clusters = Literal["length", "first-word"]

ROLES: Mapping[Task, tuple[str, ...]] = {
    "causal-lm": ("messages", "prompt", "completion", "context", "text", "group"),
    "classification": ("text", "text_pair", "label", "label_name", "group"),
    "image-classification": ("image", "label", "label_name"),
}
"""What a column can stand for; `group` is what a partition groups by."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """The data of a run.

    Raises:
        RecipeError: if a field is out of range or two contradict; all faults are in the message.
    """

    source: str = ARITHMETIC
    """`embedded:arithmetic`, `embedded:topics`, `embedded:shapes`, a jsonl, json, csv, tsv, txt,
    log or parquet file, a folder of them, a folder made by `datasets`, or a hub id; of images also
    a folder with a sub-folder a class, npz or npy files, or CIFAR's binary files."""
    task: Task = "causal-lm"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which column stands for which role, `meta.label` for one in objects; the usual names are found
    without it."""
    test: str | None = None
    """File or folder of the test set; without it the source's own, named after test or else
    validation, or a share of the source."""
    test_share: float = 0.1
    """Fraction of the source kept as test set where there is no other, drawn by class."""
    encoding: str | None = None
    """Of text files without a byte order mark, cp1252 for instance; None = UTF-8."""
    subset: str | None = None
    """Configuration of a hub id, or sub-folder of a folder."""
    split: str = "train"
    """Training split of a hub id or of a folder made by `datasets`."""
    test_split: str | None = None
    """Test split of either, or of a folder; None = that named after test, else after validation."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    limit: int | None = None
    """Most training rows, drawn by seed; for embedded data, how many are made."""
    test_limit: int | None = None
    max_length: int = 256
    """Most tokens in a text; longer ones are cut and counted."""
    template: str | None = None
    """Text with `{prompt}` and perhaps `{completion}`, or the name of one of the tokenizer's chat
    templates; None = the tokenizer's chat template, or
    prompt, line feed, completion where it has none."""
    packing: bool = False
    """Join short training texts up to `max_length` tokens; causal-lm only."""
    labels: tuple[str, ...] = ()
    """Classes in the order of their ids; empty = sorted, as found in the whole source."""
    partition: Partition = "iid"
    alpha: float = 0.5
    """Concentration of the Dirichlet partition; small means unlike devices."""
    shards: int = 2
    """Shards a device of the label-shard partition."""
    clusters: Clusters = "length"
    """What stands for a label where rows have neither label nor group: tenths by length, or the
    first word (the nine most frequent, and the rest)."""
    min_rows: int = 2
    """Rows that every device gets at the least."""
    held_out: float = 0.1
    """Fraction of a device's rows kept for its validation."""

    def __post_init__(self) -> None:
        faults = [*_choices(self), *_ranges(self), *_columns(self), *_contradictions(self)]
        if faults:
            raise RecipeError("data: " + "; ".join(faults))


def _choices(spec: DataSpec) -> list[str]:
    faults = []
    for name, kinds in (("task", Task), ("partition", Partition), ("clusters", Clusters)):
        value = getattr(spec, name)
        if value not in get_args(kinds):
            faults.append(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
    if spec.encoding is not None and not _is_encoding(spec.encoding):
        faults.append(
            f"encoding must be one that Python knows, utf-8 or cp1252 for instance, got "
            f"{spec.encoding!r}"
        )
    if not spec.source:
        faults.append("source must name a file, a folder, a hub id or embedded data, got nothing")
    if spec.source.startswith(EMBEDDED_PREFIX) and spec.source not in EMBEDDED_SOURCES:
        faults.append(f"source must be one of {', '.join(EMBEDDED_SOURCES)}, got {spec.source!r}")
    return faults


def _is_encoding(name: str) -> bool:
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True


def _ranges(spec: DataSpec) -> list[str]:
    faults = []
    for name, low in (
        ("max_length", 2),
        ("shards", 1),
        ("min_rows", 1),
        ("limit", 1),
        ("test_limit", 1),
    ):
        value = getattr(spec, name)
        if value is not None and value < low:
            faults.append(f"{name} must be at least {low}, got {value}")
    for name, value in (("held_out", spec.held_out), ("test_share", spec.test_share)):
        if not 0.0 <= value < 1.0:
            faults.append(f"{name} must be in [0, 1), got {value:g}")
    if not (math.isfinite(spec.alpha) and spec.alpha > 0.0):
        faults.append(f"alpha must be above 0, got {spec.alpha:g}")
    return faults


def _columns(spec: DataSpec) -> list[str]:
    known = ROLES.get(spec.task, ())
    faults = []
    for role in spec.columns:
        if known and role not in known:
            near = difflib.get_close_matches(role, known, 1)
            hint = f", did you mean {near[0]!r}" if near else ""
            faults.append(f"columns of {spec.task} can name {', '.join(known)}, got {role!r}{hint}")
    own = [column for role, column in spec.columns.items() if role not in ("group", "label_name")]
    faults += [
        f"columns name {column!r} twice; each role has a column of its own"
        for column in sorted(set(own))
        if own.count(column) > 1
    ]
    if "messages" in spec.columns and spec.columns.keys() - {"messages", "group"}:
        faults.append(
            "columns name messages, which hold all of a conversation; leave out the others"
        )
    if spec.task == "causal-lm" and "text" in spec.columns and "prompt" in spec.columns:
        faults.append("columns name both text and prompt; use text, or prompt and completion")
    return faults


def _contradictions(spec: DataSpec) -> list[str]:
    faults = []
    if spec.template is not None:
        faults.extend(_template_faults(spec.template))
    if spec.packing and spec.task != "causal-lm":
        faults.append(f"packing is for causal-lm, got task {spec.task}")
    if (spec.source == SHAPES) != (spec.task == "image-classification") and (
        spec.source in EMBEDDED_SOURCES
    ):
        wants = "image-classification" if spec.source == SHAPES else "a task of texts"
        faults.append(f"{spec.source} is for {wants}, got task {spec.task}")
    if spec.held_out > 0.0 and spec.min_rows < 2:
        faults.append(f"min_rows must be at least 2 where rows are held out, got {spec.min_rows}")
    if spec.test is not None and spec.test_split is not None:
        faults.append("test and test_split exclude each other")
    if spec.test is not None and spec.source in EMBEDDED_SOURCES:
        faults.append(f"{spec.source} makes its own test rows; leave test out, got {spec.test!r}")
    if len(set(spec.labels)) != len(spec.labels):
        faults.append(f"labels must differ from each other, got {', '.join(spec.labels)}")
    if spec.source == TOPICS and spec.task == "causal-lm" and "prompt" in spec.columns:
        faults.append(f"{TOPICS} has the columns text and label, no prompt")
    if spec.source == ARITHMETIC and spec.task == "classification" and not spec.columns:
        faults.append(f"{ARITHMETIC} is for causal-lm; use {TOPICS}, or map columns text and label")
    return faults


def _template_faults(template: str) -> list[str]:
    faults: list[str] = []
    if re.fullmatch(r"[\w.-]+", template):
        return faults  # the name of one of the tokenizer's templates
    if template.count("{prompt}") != 1:
        faults.append(f"template must have {{prompt}} once, got {template!r}")
    if template.count("{completion}") > 1:
        faults.append(f"template may have {{completion}} once, got {template!r}")
    if -1 < template.find("{completion}") < template.find("{prompt}"):
        faults.append(f"template must have {{prompt}} before {{completion}}, got {template!r}")
    return faults
