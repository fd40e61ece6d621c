"""Conversations as people store them: `messages` with role and content, or ShareGPT's from and value.

A prompt and its completion may be lists of messages, too, as TRL has them: one conversation together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from airtune.data.table import Table, first_value, is_missing
from airtune.plan import Bools

Message: TypeAlias = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

ANSWERS = "assistant"
"""The role whose messages are scored."""
UNSCORED = "unscored"
"""Key of an answer that is read and not learnt: `weight: 0` where it was stored."""

_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": ANSWERS, "gpt": ANSWERS,
    "bot": ANSWERS, "model": ANSWERS, "chatgpt": ANSWERS, "system": "system", "developer": "system",
}  # fmt: skip
_KEYS = (("role", "content"), ("from", "value"))
_PAIRED = ("prompt", "completion", "context")
"""Roles that a conversation takes the place of."""


@dataclass(frozen=True, slots=True)
class Conversations:
    """A column of conversations, and which rows of it cannot be trained on."""

    messages: list[list[Message]]
    """Each up to its last answer; [] where a row cannot be used."""
    unanswered: Bools
    """No answer of the assistant to a user, shape (rows,)."""
    unsupported: Bools
    """A turn of a tool or of another role, or one that is no text, shape (rows,)."""


def read_conversations(table: Table, column: str) -> Conversations:
    """Return a column's conversations.

    Roles are user, assistant, system and ShareGPT's human and gpt; content is text, or a list of
    parts that are all text. What follows the last answer is left out. An answer with `weight: 0` is read
    and not scored, as OpenAI's fine-tuning has it.

    A row without a value is one without an answer.

    Raises:
        DataError: if a row holds no list of messages; the first few are named with file and line.
    """
    raw = [[] if is_missing(value) else _turns(value) for value in table.column(column)]
    table.refuse(
        column,
        [turns is None for turns in raw],
        "must be a list of messages with role and content, or with from and value",
        _shown,
    )
    read = [[_message(turn) for turn in turns or ()] for turns in raw]
    unsupported = np.array([None in messages for messages in read], np.bool_)
    kept = [
        [] if None in messages else _answered([message for message in messages if message])
        for messages in read
    ]
    unanswered = np.array([not messages for messages in kept], np.bool_) & ~unsupported
    return Conversations(kept, unanswered, unsupported)


def join_prompts(table: Table, columns: Mapping[str, str]) -> tuple[Table, dict[str, str]]:
    """Make one conversation a row of prompts and completions, where those are lists of messages.

    A text among them is the user's or the assistant's message. Others are left as they are.

    Args:
        table: rows.
        columns: the column of every role in use.

    Returns:
        The rows and the columns of the roles; conversations stand where the prompts were.
    """
    parts = [columns[role] for role in ("prompt", "completion") if role in columns]
    if len(parts) < 2 or not any(holds_conversations(table, name) for name in parts):
        return table, dict(columns)
    prompts, completions = (table.column(name) for name in parts)
    joined = [_joined(*row) for row in zip(prompts, completions, strict=True)]
    others = {role: name for role, name in columns.items() if role not in _PAIRED}
    return table.replaced(parts[0], joined), {"messages": parts[0], **others}


def holds_conversations(table: Table, column: str) -> bool:
    """Say whether the first value of a column is a list of messages."""
    return bool(_turns(first_value(table.column(column))))


def pair(prompt: str, completion: str) -> list[Message]:
    """Return one question and its answer as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": ANSWERS, "content": completion}]


def _turns(value: object) -> list[Mapping[str, Any]] | None:
    """Return the turns of a stored conversation, a list or JSON text of one; None if it is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    turns = [turn for turn in value if isinstance(turn, Mapping)]
    known = all(
        any(role in turn and (content in turn or "tool_calls" in turn) for role, content in _KEYS)
        for turn in turns
    )
    return turns if known and len(turns) == len(value) else None


def _joined(prompt: object, completion: object) -> object:
    """Return the turns of both; where one is neither turns nor text, itself, to be refused."""
    turns: list[Mapping[str, Any]] = []
    for role, value in (("user", prompt), (ANSWERS, completion)):
        if is_missing(value):
            continue
        read = _turns(value)
        if read is None and not isinstance(value, str):
            return value
        turns += [{"role": role, "content": value}] if read is None else read
    return turns


def _message(turn: Mapping[str, Any]) -> Message | None:
    """Return a turn as a message; None where it is no text of a known role."""
    role, content = next(keys for keys in _KEYS if keys[0] in turn)
    who, text = _ROLES.get(str(turn[role]).strip().lower()), _text(turn.get(content))
    if who is None or text is None or turn.get("tool_calls"):
        return None
    is_unscored = who == ANSWERS and turn.get("weight") == 0
    return {"role": who, "content": text} | ({UNSCORED: "weight 0"} if is_unscored else {})


def is_answer(message: Message) -> bool:
    """Return whether a message is one to learn: the assistant's, with text, and not of weight 0."""
    return (
        message["role"] == ANSWERS and bool(message["content"].strip()) and UNSCORED not in message
    )


def _text(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def _answered(messages: list[Message]) -> list[Message]:
    """Return the messages up to the last answer to a user."""
    asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last = [
        index
        for index, message in enumerate(messages)
        if is_answer(message) and index > min(asked, default=index)
    ]
    return messages[: last[-1] + 1] if last else []


def _shown(value: object) -> str:
    return repr(value)[:60]
