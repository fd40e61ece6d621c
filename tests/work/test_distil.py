"""A slice learns to answer as the dense model does."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from airtune.errors import TrainingError
from airtune.model.batch import Sequences, collate
from airtune.model.kept import Kept
from airtune.model.slicing import slice_network
from airtune.work.distil import distil_


@pytest.fixture
def texts():
    stream = np.random.default_rng(0)
    rows = tuple(stream.integers(1, 61, stream.integers(4, 12)) for _ in range(24))
    # of no text is anything scored: labels are not read
    return Sequences(rows, tuple(np.full(len(row), -100) for row in rows))


@pytest.fixture
def student(base):
    kept = Kept((np.array([0]), np.array([1])), (np.arange(24), np.arange(24, 48)))
    return copy.deepcopy(slice_network(base, kept))


def divergence(student, teacher, texts, rows):
    """Return KL(teacher || student) of some rows, in nats a token, with the logits of transformers."""
    batch = collate(texts, rows)
    told = [
        network(**batch.inputs).logits[:, :-1].log_softmax(-1) for network in (student, teacher)
    ]
    each = functional.kl_div(*told, log_target=True, reduction="none").sum(-1)
    return float(each[batch.attention_mask[:, 1:].bool()].mean().detach())


def test_the_divergence_is_that_of_all_logits_and_falls(base, student, texts):
    told = []
    before = divergence(student, base.network, texts, range(24))
    distil_(student, base.network, texts, steps=60, on_step=lambda step, nats: told.append(nats))
    assert len(told) == 60
    assert np.mean(told[:3]) == pytest.approx(before, rel=0.1)
    assert divergence(student, base.network, texts, range(24)) < 0.8 * before


def test_teacher_embeddings_and_output_layer_stay(base, student, texts):
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    distil_(student, base.network, texts, steps=2)
    for name, value in base.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(student.state_dict()[name], before[name], rtol=0, atol=0)
    assert not any(one.requires_grad for one in student.parameters())


def test_small_passes_add_up_to_a_step(base, student, texts):
    other = copy.deepcopy(student)
    distil_(student, base.network, texts, steps=2)
    distil_(other, base.network, texts, steps=2, batch=3)
    for one, same in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)


def test_what_diverges_is_said(base, student, texts):
    student.model.norm.weight.data.fill_(torch.inf)
    with pytest.raises(TrainingError, match="was nan in step 1 of 5; distil for fewer steps"):
        distil_(student, base.network, texts, steps=5)
