"""How good a model is: loss, perplexity, accuracy, exact match; for many devices in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import GenerationMixin

from airtune.errors import DataError, ModelError
from airtune.model.generate import write_greedily
from airtune.model.images import Examples, Images, image_tokens
from airtune.model.loss import class_logits, scored, token_losses
from airtune.model.source import Tokenizer
from airtune.plan import Floats, Ints
from airtune.work.batches import collate_examples, join_examples, lengths_of

PASS_TOKENS = 8192
"""Padded tokens in one forward pass."""
WORST_SHARE = 0.1
"""Part of the devices that make up the worst tenth."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality over a set of examples."""

    loss: float
    """Nats per scored token, or per example of classification."""
    perplexity: float | None
    """exp(loss); None for classification."""
    accuracy: float | None
    """Fraction classified right; None for a language model."""
    count: int
    """Scored tokens, or examples."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Sums of each example, in columns of shape (examples,)."""

    loss_sum: Floats
    count: Ints
    """Scored tokens; 1 for classification."""
    correct: Ints
    """1 where classified right; 0 for a language model."""
    is_classification: bool
    answer: Ints
    """The class that is said; 0 for a language model."""

    def quality(self, chosen: slice = slice(None)) -> Quality:
        """Return the quality over a range of examples; NaN loss where nothing is scored."""
        count = int(self.count[chosen].sum())
        loss = float(self.loss_sum[chosen].sum()) / count if count else math.nan
        if self.is_classification:
            accuracy = float(self.correct[chosen].sum()) / count if count else math.nan
            return Quality(loss, None, accuracy, count)
        return Quality(loss, _perplexity(loss), None, count)


def evaluate(
    network: nn.Module, examples: Examples, *, chunk: int = 0, pass_tokens: int = PASS_TOKENS
) -> Quality:
    """Return the quality over all examples.

    Args:
        network: a Hugging Face network, or the `network` of a `LoraNetwork`.
        examples: tokenised texts, or images.
        chunk: positions whose logits exist at a time; 0 = all.
        pass_tokens: padded tokens in one forward pass, of one example at least.

    Raises:
        DataError: if there is no example.
    """
    return score(network, examples, chunk=chunk, pass_tokens=pass_tokens).quality()


def evaluate_devices(
    network: nn.Module, devices: Sequence[Examples], weights: Floats, *, chunk: int = 0
) -> dict[str, float]:
    """Return quality weighted over devices, and that of the worst tenth, in one pass over all.

    `loss` is the weighted mean of the devices' mean losses; `worst_tenth` the mean loss of the
    tenth of the devices (rounded up) that have the largest; `worst_tenth_accuracy` likewise.

    Args:
        network: what every device holds.
        devices: each one's examples; a device without any is left out.
        weights: one a device, shape (devices,); only their ratios count.
        chunk: positions whose logits exist at a time; 0 = all.

    Raises:
        DataError: if no device has an example that is scored.
    """
    scores = score(
        network, join_examples((part, range(len(part))) for part in devices), chunk=chunk
    )
    ends = np.cumsum([len(part) for part in devices])
    qualities = [
        scores.quality(slice(int(end) - len(part), int(end)))
        for part, end in zip(devices, ends, strict=True)
    ]
    return weigh(qualities, weights)


def weigh(qualities: Sequence[Quality], weights: Floats) -> dict[str, float]:
    """Return quality weighted over devices, and that of the worst tenth, from each one's own.

    Args:
        qualities: one a device; one that scored nothing is left out.
        weights: one a device, shape (devices,); only their ratios count.

    Raises:
        DataError: if no device has an example that is scored.
    """
    counted = np.array([quality.count > 0 for quality in qualities])
    weight = np.where(counted, weights, 0.0)
    if weight.sum() <= 0:
        raise DataError("no device has a scored validation example; raise data.held_out")
    weight = weight / weight.sum()
    losses = np.array([quality.loss for quality in qualities])[counted]
    loss = float(losses @ weight[counted])
    result = {"loss": loss, "worst_tenth": _worst(losses, largest=True)}
    if all(quality.accuracy is not None for quality in qualities):
        right = np.array([quality.accuracy for quality in qualities], np.float64)[counted]
        result |= {
            "accuracy": float(right @ weight[counted]),
            "worst_tenth_accuracy": _worst(right, largest=False),
        }
    else:
        result["perplexity"] = _perplexity(loss)
    return result


@torch.no_grad()
def score(
    network: nn.Module, examples: Examples, *, chunk: int = 0, pass_tokens: int = PASS_TOKENS
) -> Scores:
    """Return loss sums, counts and right answers of each example.

    Examples of like length share a pass, so that little is padded.

    Raises:
        DataError: if there is no example.
    """
    if len(examples) == 0:
        raise DataError("evaluation needs at least one example, got none; raise data.held_out")
    is_classification = isinstance(examples.targets, np.ndarray)
    device = next(iter(network.parameters())).device
    tokens = _most_tokens(network, examples)
    loss_sum, answer = np.zeros(len(examples)), np.zeros(len(examples), np.int64)
    count, correct = np.ones((2, len(examples)), np.int64) * [[1], [0]]
    for rows in _passes(lengths_of(examples, tokens=tokens), pass_tokens):
        batch = collate_examples(examples, rows, tokens=tokens, device=device)
        if is_classification:
            logits = class_logits(network, batch).float()
            losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
            answer[rows] = logits.argmax(1).cpu().numpy()
            correct[rows] = answer[rows] == batch.labels.cpu().numpy()
        else:
            losses = token_losses(network, batch, chunk=chunk).double().sum(1)
            count[rows] = scored(batch).sum(1).cpu().numpy()
        loss_sum[rows] = losses.double().cpu().numpy()
    return Scores(loss_sum, count, correct, is_classification, answer)


@torch.no_grad()
def exact_match(
    network: nn.Module,
    prompts: Sequence[tuple[Ints, str]],
    *,
    tokenizer: Tokenizer,
    answer_of: Callable[[str], str | None],
    max_new_tokens: int = 128,
) -> float:
    """Return the fraction of prompts whose greedily generated answer is the right one.

    Args:
        network: a causal language model that can generate.
        prompts: tokens (tokens,) of each prompt, with the right answer.
        tokenizer: to read what was generated.
        answer_of: finds the answer in a text, for instance the number after `####`; None where
            there is none, which is never right.
        max_new_tokens: where generation stops at the latest.

    Raises:
        DataError: if there is no prompt.
        ModelError: if the network cannot generate.
    """
    if not isinstance(network, GenerationMixin):
        raise ModelError(
            f"exact match needs a causal language model, got {type(network).__name__}; "
            "drop it from the metrics"
        )
    if not prompts:
        raise DataError("exact match needs at least one prompt with an answer, got none")
    matched = 0
    for length in sorted({len(tokens) for tokens, _ in prompts}):
        # prompts of one length need no padding, which not every family generates after
        alike = [(tokens, answer) for tokens, answer in prompts if len(tokens) == length]
        step = max(1, PASS_TOKENS // (length + max_new_tokens))
        for start in range(0, len(alike), step):
            part = alike[start : start + step]
            ids = torch.from_numpy(np.stack([tokens for tokens, _ in part]))
            written = _generate(network, ids, tokenizer, max_new_tokens)
            matched += sum(
                answer_of(text) == answer for text, (_, answer) in zip(written, part, strict=True)
            )
    return matched / len(prompts)


def _generate(
    network: nn.Module, ids: torch.Tensor, tokenizer: Tokenizer, max_new_tokens: int
) -> list[str]:
    """Continue prompts of one length greedily, (prompts, tokens)."""
    ids = ids.to(next(iter(network.parameters())).device)
    said = getattr(network, "generation_config").eos_token_id  # noqa: B009
    stop = tokenizer.eos_token_id if said is None else said
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    written = write_greedily(network, ids, tokens=max_new_tokens, ends=stop, pad=pad)
    return [str(tokenizer.decode(row.tolist(), skip_special_tokens=True)) for row in written]


def _most_tokens(network: nn.Module, examples: Examples) -> int:
    """Return the tokens of an image, or of the longest text."""
    if isinstance(examples, Images):
        return image_tokens(getattr(network, "config"))  # noqa: B009
    return max(map(len, examples.tokens))


def _passes(lengths: Ints, most_tokens: int) -> Iterator[Ints]:
    """Yield the examples of each pass: alike in length, at most so many tokens with padding."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= most_tokens:
            end += 1
        yield np.asarray(order[start:end], np.int64)
        start = end


def _worst(values: Floats, *, largest: bool) -> float:
    count = math.ceil(len(values) * WORST_SHARE)
    ordered = np.sort(values)
    return float(np.mean(ordered[-count:] if largest else ordered[:count]))


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
