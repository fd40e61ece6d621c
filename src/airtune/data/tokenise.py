"""Texts to tokens, all at once, with what was cut and what was left out counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from airtune.data.exchange import Rendered
from airtune.errors import ModelError
from airtune.model.batch import IGNORED, Sequences
from airtune.plan import Bools, Ints

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokenised:
    """All rows of a table as tokens; one entry a row."""

    tokens: tuple[Ints, ...]
    targets: tuple[Ints, ...] | Ints
    truncated: Bools
    """The text was longer than the limit and was cut."""
    prompt: Ints
    """Tokens before the last answer, which a caller sends; 0 for classification and plain text."""
    scored: Bools
    """At least one token can be scored; the cut may have left the prompt alone."""
    segments: tuple[Ints, ...] = ()
    """Segment ids as the tokenizer gives them; () where it gives none."""

    def sequences(self, rows: Ints) -> Sequences:
        """Return the chosen rows as training examples."""
        if isinstance(self.targets, np.ndarray):
            targets: tuple[Ints, ...] | Ints = self.targets[rows]
        else:
            targets = tuple(self.targets[row] for row in rows.tolist())
        tokens = tuple(self.tokens[row] for row in rows.tolist())
        segments = tuple(self.segments[row] for row in rows.tolist()) if self.segments else ()
        return Sequences(tokens, targets, int(self.truncated[rows].sum()), segments)


def tokenise_causal(
    rendered: Rendered, *, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Tokenised:
    """Return tokens and targets; a target is the token itself, or IGNORED before the completion.

    The whole text is tokenised at once, so that the boundary between prompt and completion is
    where generation meets it too. Where a token of a chat template's text would hold both, the text
    is cut there first, as a caller's is; else such a token belongs to the completion.

    Raises:
        ModelError: if the tokenizer cannot say which characters a token covers.
    """
    _require_fast(tokenizer)
    encoded = tokenizer(
        list(rendered.texts),
        add_special_tokens=rendered.special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    end = tokenizer.eos_token_id if rendered.end else None
    whole: list[Ints] = []
    targets: list[Ints] = []
    prompt = np.zeros(len(rendered.texts), np.int64)
    for row, (text, start) in enumerate(zip(rendered.texts, rendered.starts, strict=True)):
        spans = rendered.earlier[row] if rendered.earlier else ()
        cuts = [*(index for span in spans for index in span), start]
        ids = encoded["input_ids"][row]
        places = [_first_scored(encoded, row, cut, len(text)) for cut in cuts]
        if not rendered.special and _straddles(encoded, row, start, places[-1]):
            ids, places = _apart(tokenizer, text, cuts)
        whole.append(_with_end(ids, end))
        prompt[row] = places[-1]
        ends = [*places, len(whole[row])]
        targets.append(_mask(whole[row], list(zip(ends[::2], ends[1::2], strict=True))))
    tokens = tuple(row[:max_length] for row in whole)
    targets = [row[:max_length] for row in targets]
    lengths = np.array([len(row) for row in whole], np.int64)
    # The first token has nothing before it that could predict it.
    scored = np.array([bool((row[1:] != IGNORED).any()) for row in targets], np.bool_)
    return Tokenised(tokens, tuple(targets), lengths > max_length, prompt, scored)


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot map tokens to characters; use a model with a "
            "tokenizer.json"
        )


def _first_scored(encoded: BatchEncoding, row: int, start: int, length: int) -> int:
    """Return the first token that covers a character from `start` on; blanks may be in none."""
    if start == 0:
        return 0
    for index in range(start, length):
        token = encoded.char_to_token(row, index)
        if token is not None:
            return int(token)
    return len(encoded["input_ids"][row])


def _straddles(encoded: BatchEncoding, row: int, start: int, place: int) -> bool:
    """Say whether the token at the start of an answer holds characters before it, too."""
    return place < len(encoded["input_ids"][row]) and (
        encoded.token_to_chars(row, place).start < start
    )


def _apart(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the tokens of a text that is cut at its last answer first, and where the cuts are.

    A caller sends the text up to there, so no token may reach over it.
    """
    start = cuts[-1]
    parts = tokenizer([text[:start], text[start:]], add_special_tokens=False)
    sent, answer = parts["input_ids"]
    earlier = [_first_scored(parts, 0, cut, start) for cut in cuts[:-1]]
    return [*sent, *answer], [*earlier, len(sent)]


def _with_end(ids: Sequence[int], end: int | None) -> Ints:
    ended = end is None or (len(ids) > 0 and ids[-1] == end)
    return np.array(ids if ended else [*ids, end], np.int64)


def _mask(tokens: Ints, spans: Sequence[tuple[int, int]]) -> Ints:
    """Return the tokens within the spans, first and last + 1, and IGNORED elsewhere."""
    targets = np.full_like(tokens, IGNORED)
    for first, last in spans:
        targets[first:last] = tokens[first:last]
    return targets


def tokenise_classes(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    classes: Ints,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Tokenised:
    """Return the tokens of texts, or of pairs of texts, with one class each.

    Texts that are too long are cut by the tokenizer, which keeps its end marks and, of a pair,
    cuts the longer one. Segment ids are those that the tokenizer gives to anybody.
    """
    second = None if pairs is None else list(pairs)
    encoded = tokenizer(list(texts), second, return_attention_mask=False, verbose=False)
    long = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
    if long:
        again = tokenizer(
            [texts[row] for row in long],
            None if pairs is None else [pairs[row] for row in long],
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        for name, rows in again.items():
            for row, ids in zip(long, rows, strict=True):
                encoded[name][row] = ids
    tokens, segments = (
        tuple(np.array(ids, np.int64) for ids in encoded.get(name, ()))
        for name in ("input_ids", "token_type_ids")
    )
    truncated = np.zeros(len(tokens), np.bool_)
    truncated[long] = True
    scored = np.array([len(row) > 0 for row in tokens], np.bool_)
    prompt = np.zeros(len(tokens), np.int64)
    return Tokenised(tokens, classes, truncated, prompt, scored, segments)
