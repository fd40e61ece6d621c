"""Rows as texts; a few of the test set are kept with a run's records, to check exports.

Those are rows of the test set, never of a device: what an export shows of them, and of a real
federation's data, is what the server has anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from airtune.data.exchange import Rendered
from airtune.data.tokenise import Tokenised, tokenise_causal, tokenise_classes
from airtune.errors import CheckpointError
from airtune.records import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = TypeVar("Value")

SAMPLES = "samples.json"
MOST = 16
"""Rows that are kept."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """Rows as the tokenizer is given them, in columns."""

    texts: tuple[str, ...] = ()
    """Of a language model, prompt and answer as the template has them."""
    pairs: tuple[str, ...] = ()
    """The second texts of pairs; () where there are none."""
    classes: tuple[int, ...] = ()
    """Ids; () for a language model."""
    starts: tuple[int, ...] = ()
    """Character at which a language model's answer begins."""
    special: bool = True
    """The tokenizer adds its own marks."""
    end: bool = False
    """The end mark is added to a language model's text."""
    earlier: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Where earlier answers of a conversation begin and end; () where there are none."""

    def __len__(self) -> int:
        return len(self.texts)

    def tokenised(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Tokenised:
        """Return the rows as a run reads them, in training and evaluation."""
        if self.classes:
            return tokenise_classes(
                self.texts,
                self.pairs or None,
                np.array(self.classes, np.int64),
                tokenizer=tokenizer,
                max_length=max_length,
            )
        rendered = Rendered(self.texts, self.starts, self.special, self.end, self.earlier)
        return tokenise_causal(rendered, tokenizer=tokenizer, max_length=max_length)

    def take(self, places: Sequence[int]) -> TextRows:
        """Return the chosen rows."""

        def chosen(column: tuple[Value, ...]) -> tuple[Value, ...]:
            return tuple(column[index] for index in places) if column else ()

        return TextRows(
            chosen(self.texts),
            chosen(self.pairs),
            chosen(self.classes),
            chosen(self.starts),
            self.special,
            self.end,
            chosen(self.earlier),
        )


def spread(rows: int) -> list[int]:
    """Return which rows are kept: at most MOST of them, evenly over the set."""
    return [int(index) for index in np.linspace(0, rows - 1, min(rows, MOST))]


def write_samples(folder: Path, samples: TextRows) -> None:
    """Keep rows beside a run's records, where there are any; raises StorageError if that fails."""
    if not samples:
        return
    content = json.dumps(asdict(samples), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / SAMPLES, content)


def read_samples(folder: Path) -> TextRows:
    """Return a run's rows; none where it kept none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / SAMPLES
    if not path.exists():
        return TextRows()
    try:
        found: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
        columns = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        return TextRows(**columns)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove it or restore it") from error
