import math

import numpy as np
import pytest
import torch

from airtune.errors import DataError, ModelError
from airtune.model.batch import IGNORED, Sequences, collate
from airtune.work import evaluate as evaluate_module
from airtune.work.evaluate import evaluate, evaluate_devices, exact_match, score

EMPTY = Sequences((), ())


def plain_losses(base, sequences):
    """Mean loss of each example, by transformers itself."""
    losses = []
    for index in range(len(sequences)):
        batch = collate(sequences, [index])
        with torch.no_grad():
            losses.append(float(base.network(input_ids=batch.input_ids, labels=batch.labels).loss))
    return np.array(losses)


def test_the_loss_of_a_language_model_is_the_mean_over_scored_tokens(
    base, sequences_of, monkeypatch
):
    monkeypatch.setattr(evaluate_module, "PASS_TOKENS", 40)
    sequences = sequences_of(base, count=9)
    tokens = np.array([np.sum(target[1:] != IGNORED) for target in sequences.targets])
    wanted = float(plain_losses(base, sequences) @ tokens / tokens.sum())
    quality = evaluate(base.network, sequences, chunk=5)
    assert quality.loss == pytest.approx(wanted, abs=1e-5)
    assert quality.perplexity == pytest.approx(math.exp(wanted), rel=1e-5)
    assert (quality.count, quality.accuracy) == (tokens.sum(), None)


def test_the_accuracy_of_a_classifier_counts_right_answers(classifier, sequences_of):
    sequences = sequences_of(classifier, count=12)
    with torch.no_grad():
        guesses = [
            int(classifier.network(input_ids=torch.from_numpy(row)[None]).logits.argmax())
            for row in sequences.tokens
        ]
    quality = evaluate(classifier.network, sequences)
    assert quality.accuracy == pytest.approx(np.mean(np.array(guesses) == sequences.targets))
    assert quality.loss == pytest.approx(plain_losses(classifier, sequences).mean(), abs=1e-5)
    assert quality.perplexity is None


def test_devices_in_one_pass_equal_devices_one_by_one(base, sequences_of):
    devices = [sequences_of(base, count=2 + device, seed=device) for device in range(11)]
    weights = np.arange(1.0, 12.0)
    alone = np.array([evaluate(base.network, device).loss for device in devices])
    figures = evaluate_devices(base.network, devices, weights)
    assert figures["loss"] == pytest.approx(alone @ weights / weights.sum(), abs=1e-6)
    assert figures["worst_tenth"] == pytest.approx(np.sort(alone)[-2:].mean(), abs=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


def test_the_worst_tenth_of_classifiers_is_that_of_the_lowest_accuracy(classifier, sequences_of):
    devices = [sequences_of(classifier, count=8, seed=device) for device in range(4)]
    right = [evaluate(classifier.network, device).accuracy for device in devices]
    figures = evaluate_devices(classifier.network, devices, np.ones(4))
    assert figures["worst_tenth_accuracy"] == pytest.approx(min(right))
    assert figures["accuracy"] == pytest.approx(np.mean(right))


def test_devices_without_validation_data_are_left_out(base, sequences_of):
    held = sequences_of(base)
    both = evaluate_devices(base.network, [EMPTY, held], np.array([5.0, 1.0]))
    assert both == evaluate_devices(base.network, [held], np.ones(1))


def test_nothing_to_evaluate_is_an_error_of_the_data(base):
    with pytest.raises(DataError, match="at least one example"):
        score(base.network, EMPTY)
    silent = Sequences((np.arange(3, 9),), (np.full(6, IGNORED),))
    with pytest.raises(DataError, match=r"raise data\.held_out"):
        evaluate_devices(base.network, [silent], np.ones(1))


class Spelling:
    """Decodes tokens as numbers; 60 ends a text."""

    eos_token_id, pad_token_id = 60, None

    def decode(self, tokens, *, skip_special_tokens):
        return " ".join(str(token) for token in tokens if token != 60)


def test_exact_match_counts_greedy_answers(base, sequences_of):
    def continued(tokens):
        ids = torch.from_numpy(tokens)[None]
        for _ in range(3):
            with torch.no_grad():
                ids = torch.cat([ids, base.network(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        return [int(token) for token in ids[0, len(tokens) :]]

    prompts = sequences_of(base, count=8).tokens
    texts = [Spelling().decode(continued(tokens), skip_special_tokens=True) for tokens in prompts]
    answers = [text if place % 2 else "wrong" for place, text in enumerate(texts)]
    found = exact_match(
        base.network,
        list(zip(prompts, answers, strict=True)),
        tokenizer=Spelling(),
        answer_of=lambda text: text,
        max_new_tokens=3,
    )
    assert found == 0.5


def test_exact_match_of_a_classifier_or_of_nothing_is_an_error(base, classifier):
    for network, error, message in (
        (classifier.network, ModelError, "needs a causal language model"),
        (base.network, DataError, "at least one prompt"),
    ):
        with pytest.raises(error, match=message):
            exact_match(network, [], tokenizer=Spelling(), answer_of=str)
