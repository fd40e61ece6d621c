"""Which column is the prompt, which the label: as mapped, or by the usual names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from airtune.data.conversation import holds_conversations, read_conversations
from airtune.data.embedded import ARITHMETIC
from airtune.data.spec import DataSpec
from airtune.data.table import Table, alike, first_value, is_missing, plain_name
from airtune.errors import DataError

USUAL: Mapping[str, tuple[str, ...]] = {
    "messages": (
        "messages", "conversations", "conversation", "dialogue", "dialog", "turns",
    ),
    "prompt": ("prompt", "question", "instruction", "query", "input"),
    "completion": ("completion", "answer", "output", "response"),
    "context": ("context", "input"),
    "text": (
        "text", "sentence", "sentence1", "question1", "premise", "content", "body", "message",
        "review", "comment", "utterance", "tweet", "headline", "title",
    ),
    "text_pair": ("text_pair", "sentence2", "question2", "hypothesis"),
    "label": (
        "label", "labels", "fine_label", "class", "class_index", "category", "topic", "intent", "sentiment",
        "target",
    ),
    "label_name": ("label_name", "label_text"),
    "image": (
        "image", "img", "picture", "pixel_values", "image_path", "file_name", "filename", "file",
        "path",
    ),
}  # fmt: skip
"""Names tried for a role that is not mapped, the first one present wins; neither case nor the
sign between words counts."""

_LIKELY_ANSWERS = ("chosen", "target", "reply")
"""Names that stand for other roles elsewhere, and beside a prompt for its completion."""
_LIKELY_PAIRS = (
    ("q", "a"), ("article", "highlights"), ("article", "summary"), ("document", "summary"),
    ("dialogue", "summary"), ("source", "target"),
)  # fmt: skip
"""Names of a prompt and its completion where both are there."""
_MOST_CLASSES = 200
_ROWS_A_CLASS = 2.0
"""A column is taken for labels where a value stands in this many rows or more on average."""


def resolve_columns(spec: DataSpec, table: Table) -> dict[str, str]:
    """Return the column of every role in use.

    What is mapped wins, and a column that is mapped stands for nothing else. A role that the task
    needs is found by its usual names; one that it can do without (context, text_pair, label_name)
    only where nothing at all is mapped.

    Raises:
        DataError: if a mapped column is absent or a needed role has no column.
    """
    roles = {role: find_column(name, table) for role, name in spec.columns.items() if name}
    bare = not set(roles) - {"group"}
    needed = _needed(spec, roles, table)
    for role in needed:
        if role not in roles:
            roles[role] = _usual(role, table, roles) or _missing(role, needed, table, spec, roles)
    if bare:
        for role in _optional(spec, roles):
            found = _usual(role, table, roles)
            if found is not None:
                roles[role] = found
    if spec.source == ARITHMETIC:
        roles.setdefault("group", "topic")
    return roles


def find_column(name: str, table: Table) -> str:
    """Return the column of this name; another case or sign between words is the same name.

    Raises:
        DataError: if there is none, or several that differ from it only in that.
    """
    found = alike(name, table.columns)
    if len(found) > 1:
        raise DataError(
            f"{table.source} has the columns {', '.join(map(repr, found))}; write the one that "
            f"is meant by {name!r} exactly so in `data.columns`"
        )
    if not found:
        table.column(name)
    return found[0]


def usual_roles(table: Table) -> dict[str, str]:
    """Return the roles that columns have by their usual names, whatever the task."""
    found = {role: _usual(role, table, {}) for role in USUAL}
    if not _holds_conversations(table, {}):
        found["messages"] = None
    return {role: name for role, name in found.items() if name is not None}


def propose_columns(task: str, table: Table) -> dict[str, str]:
    """Return the columns that content and usual names speak for; a guess for a person to check.

    For a classification the label is a column of few values, each in several rows, and the text
    the column with the longest texts. Else it is a prompt and its completion, or a conversation, or
    the text alone. A role that nothing speaks for is left out.
    """
    roles: dict[str, str] = {}
    if task == "causal-lm" and (roles := _likely_exchange(table)):
        return roles
    if task != "causal-lm":
        label = _usual("label", table, roles) or _likely_label(table)
        roles |= {} if label is None else {"label": label}
    text = _usual("text", table, roles) or _likely_text(table, roles.values())
    return ({} if text is None else {"text": text}) | roles


def _likely_exchange(table: Table) -> dict[str, str]:
    """Return the columns of a prompt and its completion, or of a conversation; {} for neither."""
    named = {plain_name(name): name for name in table.columns}
    prompt = _usual("prompt", table, {})
    if prompt is None:
        for asked, answered in _LIKELY_PAIRS:
            if {asked, answered} <= named.keys():
                return {"prompt": named[asked], "completion": named[answered]}
        spoken = next((name for name in table.columns if holds_conversations(table, name)), None)
        return {} if spoken is None else {"messages": spoken}
    roles = {"prompt": prompt}
    if _holds_answers(table):
        context = {"context": "context"} if "context" in table.columns else {}
        return roles | {"completion": "answers.text.0"} | context
    known = (named[name] for name in _LIKELY_ANSWERS if name in named)
    answer = _usual("completion", table, roles) or next(known, None)
    answer = answer or _likely_text(table, roles.values())
    return roles | ({} if answer is None else {"completion": answer})


def _holds_answers(table: Table) -> bool:
    """Say whether the column `answers` holds lists of texts, as SQuAD has them."""
    first = first_value(table.columns.get("answers", ()))
    return isinstance(first, Mapping) and isinstance(first.get("text"), list)


def _likely_label(table: Table) -> str | None:
    for name, values in table.columns.items():
        known = [value for value in values if not is_missing(value)]
        if not all(isinstance(value, str | int) for value in known):
            continue
        classes = len({str(value).strip() for value in known})
        if 2 <= classes <= min(_MOST_CLASSES, len(known) / _ROWS_A_CLASS):
            return name
    return None


def _likely_text(table: Table, taken: Collection[str]) -> str | None:
    lengths = {
        name: sum(len(value) for value in values if isinstance(value, str))
        for name, values in table.columns.items()
        if name not in taken
    }
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return longest if longest is not None and lengths[longest] else None


def _needed(spec: DataSpec, roles: Mapping[str, str], table: Table) -> tuple[str, ...]:
    if spec.task == "classification":
        return ("text", "label")
    if spec.task == "image-classification":
        return ("image", "label")
    if {"text", "messages"} & roles.keys():
        return ()
    if not {"prompt", "completion"} & roles.keys() and _holds_conversations(table, roles):
        return ("messages",)
    if "prompt" in roles or "completion" in roles or _usual("prompt", table, roles):
        return ("prompt", "completion")
    return ("text",)


def _optional(spec: DataSpec, roles: Mapping[str, str]) -> tuple[str, ...]:
    if spec.task == "causal-lm":
        return ("context",) if "prompt" in roles else ()
    return ("text_pair", "label_name") if spec.task == "classification" else ("label_name",)


def _holds_conversations(table: Table, roles: Mapping[str, str]) -> bool:
    """Say whether a column with a usual name holds lists of messages."""
    name = _usual("messages", table, roles)
    return name is not None and holds_conversations(table, name)


def _usual(role: str, table: Table, roles: Mapping[str, str]) -> str | None:
    """Return the first column with a usual name of a role that stands for no other role."""
    free = {
        plain_name(name): name
        for name in reversed(list(table.columns))
        if name not in roles.values()
    }
    return next((free[name] for name in USUAL[role] if name in free), None)


def _missing(
    role: str, needed: Sequence[str], table: Table, spec: DataSpec, roles: Mapping[str, str]
) -> str:
    stored = _usual("messages", table, roles) if spec.task == "causal-lm" else None
    if stored is not None and not any(isinstance(one, str) for one in table.column(stored)):
        read_conversations(table, stored)  # says which row is not as it must be
    guess = propose_columns(spec.task, table)
    shown = {name: roles.get(name) or guess.get(name, "COLUMN") for name in needed}
    if guess and not guess.keys() & set(needed):
        shown = guess
    raise DataError(
        f"{table.source} has no column for {role!r} of {spec.task}; it has "
        f"{table.described()}; name it, for instance `data.columns: "
        f"{{{', '.join(f'{name}: {column}' for name, column in shown.items())}}}`"
    )
