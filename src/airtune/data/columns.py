"""Which column is the prompt, which the label: as mapped, or by the usual names."""

from __future__ import annotations

from collections.abc import Mapping

from airtune.data.embedded import ARITHMETIC
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError

USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction"),
    "completion": ("completion", "answer", "output", "response"),
    "context": ("context", "input"),
    "text": ("text", "sentence", "sentence1", "question1", "premise", "content"),
    "text_pair": ("text_pair", "sentence2", "question2", "hypothesis"),
    "label": ("label", "labels"),
    "label_name": ("label_name", "label_text"),
}
"""Names tried for a role that is not mapped, the first one present wins."""


def resolve_columns(spec: DataSpec, table: Table) -> dict[str, str]:
    """Return the column of every role in use.

    What is mapped wins. A role that the task needs is found by its usual names; one that it can
    do without (context, text_pair, label_name) only where nothing at all is mapped.

    Raises:
        DataError: if a mapped column is absent or a needed role has no column.
    """
    roles = {role: name for role, name in spec.columns.items() if name}
    for name in roles.values():
        table.column(name)
    bare = not set(roles) - {"group"}
    for role in _needed(spec, roles, table):
        roles.setdefault(role, _usual(role, table) or _missing(role, table, spec))
    if bare:
        optional = ("context",) if "prompt" in roles else ()
        for role in optional if spec.task == "causal-lm" else ("text_pair", "label_name"):
            found = _usual(role, table)
            if found is not None:
                roles[role] = found
    if spec.source == ARITHMETIC:
        roles.setdefault("group", "topic")
    return roles


def _needed(spec: DataSpec, roles: Mapping[str, str], table: Table) -> tuple[str, ...]:
    if spec.task == "classification":
        return ("text", "label")
    if "text" in roles:
        return ()
    if "prompt" in roles or "completion" in roles or _usual("prompt", table):
        return ("prompt", "completion")
    return ("text",)


def _usual(role: str, table: Table) -> str | None:
    return next((name for name in USUAL[role] if name in table.columns), None)


def _missing(role: str, table: Table, spec: DataSpec) -> str:
    raise DataError(
        f"{table.source} has no column for {role!r} of {spec.task}; it has "
        f"{', '.join(table.columns) or 'none'}; name it, for instance "
        f"`data.columns: {{{role}: COLUMN}}`"
    )
