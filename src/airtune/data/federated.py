"""From a data spec to what every device holds: read, tokenised once, dealt out, held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from airtune.data.answers import answer_of
from airtune.data.conversation import Message
from airtune.data.draw import hold_out
from airtune.data.fingerprint import fingerprint_of
from airtune.data.intake import take_in
from airtune.data.labels import class_ids, label_keys
from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.packing import pack
from airtune.data.partition import Parts, cluster_by_first_word, cluster_by_length, partition
from airtune.data.samples import TextRows, spread
from airtune.data.spec import DataSpec
from airtune.data.table import Table, is_missing
from airtune.data.template import render, render_conversations, render_texts
from airtune.data.tokenise import Tokenised
from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.admission import surplus_tokens, told_surplus
from airtune.model.images import Examples
from airtune.plan import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Count = int | str | list[int] | list[list[int]] | list[str]


@dataclass(frozen=True, slots=True)
class DeviceData:
    """What one device holds."""

    train: Examples
    validation: Examples
    """Its held-out share; empty where `held_out` is 0."""


@dataclass(frozen=True)
class FederatedData:
    """The data of a run, as a model reads them."""

    devices: tuple[DeviceData, ...]
    test: Examples
    labels: tuple[str, ...]
    """Class names in the order of their ids; empty for causal-lm."""
    columns: Mapping[str, str]
    """The column that was used for every role."""
    counts: Mapping[str, Count]
    """Figures for the record, plain values: rows, truncated, dropped, blank, moved, ..."""
    ledger: DataLedger = field(default_factory=DataLedger)
    """What was left out, cut or mended, in both parts."""
    test_prompts: tuple[tuple[Ints, str], ...] = ()
    """Prompt tokens and final answer of every test row whose completion has a `#### answer`."""
    samples: TextRows = field(default_factory=TextRows)
    """A few test rows, for the records; none of images."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every device's examples, held-out ones included, and of the test set."""
        held = (part for device in self.devices for part in (device.train, device.validation))
        return fingerprint_of([*held, self.test])


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A table and its tokens, without the rows of which the length limit leaves nothing."""

    table: Table
    texts: TextRows
    tokenised: Tokenised
    completions: tuple[str, ...]
    rows: RowCounts


def load_federated(
    spec: DataSpec,
    *,
    tokenizer: PreTrainedTokenizerBase,
    devices: int,
    seed: int,
    known: Sequence[str] = (),
    vocabulary: int = 0,
) -> FederatedData:
    """Read the data, tokenise it, and deal it out to the devices.

    The same spec, tokenizer, number of devices and seed give the same result. Rows with blank
    text are left out (`blank`), and so are rows of which the length limit leaves nothing to
    score (`dropped`); rows that were merely cut are counted as `truncated`.

    Args:
        spec: what to load.
        tokenizer: a fast tokenizer of transformers.
        devices: how many devices, at least 1.
        seed: decides limits, partition and held-out rows.
        known: classes of the model's own head, whose order is kept where they are the data's.
        vocabulary: rows of the model's embedding; 0 = not compared with the tokenizer.

    Raises:
        DataError: if data is missing or malformed, too little for the devices, or has a token that
            the embedding lacks.
    """
    if devices < 1:
        raise DataError(f"data needs at least 1 device to go to, got {devices}")
    found = take_in(spec, seed=seed, known=known)
    columns, classes = found.columns, found.classes
    ready = _prepare(found.train, spec, columns, classes, tokenizer)
    ready_test = _prepare(found.test, spec, columns, classes, tokenizer)
    ledger = found.ledger + DataLedger(ready.rows, ready_test.rows)
    ledger += DataLedger(notes=_told_length((ready, ready_test), tokenizer.model_max_length))
    if vocabulary and (surplus := surplus_tokens(tokenizer, vocabulary)):
        ledger += DataLedger(notes=(told_surplus(surplus, vocabulary),))
        for part in (ready, ready_test):
            _check_vocabulary(part, tokenizer, vocabulary)
    groups, names = _groups(ready, spec, columns, classes)
    parts = partition(groups, devices, spec=spec, random=generator(seed, "partition"))
    held = tuple(
        _device(ready.tokenised, rows, spec, generator(seed, "held-out", device))
        for device, rows in enumerate(parts.rows)
    )
    test_rows = np.arange(len(ready_test.table))
    return FederatedData(
        devices=held,
        test=ready_test.tokenised.sequences(test_rows),
        labels=tuple(classes.values()),
        columns=columns,
        counts={
            "source": ready.table.source,
            "rows": len(ready.table),
            "test_rows": len(ready_test.table),
            "tokens": sum(len(row) for row in ready.tokenised.tokens),
            **dealt_counts(parts, groups, names),
            **ledger.totals(),
        },
        ledger=ledger,
        test_prompts=_prompts(ready_test),
        samples=ready_test.texts.take(spread(len(ready_test.texts))),
    )


def _told_length(parts: Sequence[_Prepared], limit: int) -> tuple[str, ...]:
    """Return a sentence on texts that are longer than the tokenizer says that the model reads."""
    longer = sum(len(tokens) > limit for part in parts for tokens in part.tokenised.tokens)
    if not longer:
        return ()
    return (
        f"{longer} texts are longer than the {limit} tokens of the tokenizer's model_max_length; they are "
        "read up to data.max_length, which the exported tokenizer then says",
    )


def _check_vocabulary(
    ready: _Prepared, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Refuse a row with a token that the model's embedding lacks."""
    for row, tokens in enumerate(ready.tokenised.tokens):
        highest = int(tokens.max(initial=0))
        if highest >= vocabulary:
            raise DataError(
                f"{ready.table.place(row)} has the token {tokenizer.convert_ids_to_tokens(highest)!r}, "
                f"number {highest}, which the model's embedding of {vocabulary} rows lacks; give the "
                "model rows for the tokens that were added to its tokenizer, or take them out"
            )


def _prepare(
    table: Table,
    spec: DataSpec,
    columns: Mapping[str, str],
    classes: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
) -> _Prepared:
    """Tokenise, and leave out rows with nothing to score."""
    texts = _texts(table, spec, columns, classes, tokenizer)
    tokenised = texts.tokenised(tokenizer, max_length=spec.max_length)
    rows = np.flatnonzero(tokenised.scored)
    if not len(rows):
        raise DataError(
            f"no row of {table.source} has anything to score within {spec.max_length} tokens; "
            "raise `data.max_length`"
        )
    completions = _completions(table, columns)
    return _Prepared(
        table=table.take(rows),
        texts=texts.take(rows.tolist()),
        tokenised=_choose(tokenised, rows),
        completions=tuple(completions[row] for row in rows.tolist()) if completions else (),
        rows=RowCounts(
            dropped=len(table) - len(rows), truncated=int(tokenised.truncated[rows].sum())
        ),
    )


def _texts(
    table: Table,
    spec: DataSpec,
    columns: Mapping[str, str],
    classes: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
) -> TextRows:
    if spec.task == "classification":
        return TextRows(
            tuple(table.texts(columns["text"])),
            tuple(table.texts(columns["text_pair"])) if "text_pair" in columns else (),
            classes=tuple(class_ids(table, columns["label"], classes).tolist()),
        )
    if "text" in columns:
        rendered = render_texts(table.texts(columns["text"]))
    elif "messages" in columns:
        rendered = render_conversations(
            _conversations(table, columns),
            tokenizer=tokenizer,
            template=spec.template,
            place=table.place,
        )
    else:
        rendered = render(
            _with_context(table, columns),
            table.texts(columns["completion"]),
            tokenizer=tokenizer,
            template=spec.template,
            place=table.place,
        )
    return TextRows(
        rendered.texts,
        starts=rendered.starts,
        special=rendered.special,
        end=rendered.end,
        earlier=rendered.earlier,
    )


def _conversations(table: Table, columns: Mapping[str, str]) -> list[list[Message]]:
    return cast("list[list[Message]]", table.column(columns["messages"]))


def _completions(table: Table, columns: Mapping[str, str]) -> list[str]:
    """Return the last answers, () where there are none."""
    if "messages" in columns:
        return [messages[-1]["content"] for messages in _conversations(table, columns)]
    return table.texts(columns["completion"]) if "completion" in columns else []


def _with_context(table: Table, columns: Mapping[str, str]) -> list[str]:
    """Return the prompts, each with its context, where it has one, after an empty line."""
    prompts = table.texts(columns["prompt"])
    if "context" not in columns:
        return prompts
    contexts = ("" if is_missing(v) else str(v) for v in table.column(columns["context"]))
    return [
        f"{prompt}\n\n{context}" if context.strip() else prompt
        for prompt, context in zip(prompts, contexts, strict=True)
    ]


def _choose(tokenised: Tokenised, rows: Ints) -> Tokenised:
    chosen = tokenised.sequences(rows)
    return Tokenised(
        chosen.tokens,
        chosen.targets,
        tokenised.truncated[rows],
        tokenised.prompt[rows],
        tokenised.scored[rows],
        chosen.segments,
    )


def _groups(
    ready: _Prepared, spec: DataSpec, columns: Mapping[str, str], classes: Mapping[str, str]
) -> tuple[Ints, tuple[str, ...]]:
    """Return what the partition groups rows by: a mapped column, the label, or a cluster."""
    if "group" in columns:
        keys = [key or "(none)" for key in label_keys(ready.table, columns["group"])]
        names, groups = np.unique(np.array(keys), return_inverse=True)
        return groups.astype(np.int64), tuple(names.tolist())
    targets = ready.tokenised.targets
    if isinstance(targets, np.ndarray):
        return targets, tuple(classes.values())
    if spec.clusters == "length":
        return cluster_by_length(np.array([len(row) for row in ready.tokenised.tokens]))
    if "messages" in columns:
        asked = [messages[0]["content"] for messages in _conversations(ready.table, columns)]
        return cluster_by_first_word(asked)
    column = columns["text"] if "text" in columns else columns["prompt"]
    return cluster_by_first_word(ready.table.texts(column))


def _device(
    tokenised: Tokenised, rows: Ints, spec: DataSpec, random: np.random.Generator
) -> DeviceData:
    kept, held_out = hold_out(rows, spec.held_out, random)
    train = tokenised.sequences(kept)
    if spec.packing:
        train = pack(train, max_length=spec.max_length)
    return DeviceData(train=train, validation=tokenised.sequences(held_out))


def _prompts(ready: _Prepared) -> tuple[tuple[Ints, str], ...]:
    tokens, starts = ready.tokenised.tokens, ready.tokenised.prompt.tolist()
    answers = [answer_of(text) for text in ready.completions]
    return tuple(
        (tokens[row][: starts[row]], answer)
        for row, answer in enumerate(answers)
        if answer is not None
    )


def dealt_counts(parts: Parts, groups: Ints, names: tuple[str, ...]) -> dict[str, Count]:
    """Return for the record how many rows of each group went to which device."""
    by_group = [np.bincount(groups[rows], minlength=len(names)).tolist() for rows in parts.rows]
    return {
        "device_rows": [len(rows) for rows in parts.rows],
        "groups": list(names),
        "device_groups": by_group,
        "moved": parts.moved,
    }
