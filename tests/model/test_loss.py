import pytest
import torch

from airtune.model.batch import IGNORED, Batch
from airtune.model.loss import Teacher, batch_losses, class_logits, scored, token_losses


def test_the_loss_is_that_of_transformers(make_base, make_batch, family_name):
    base = make_base(family_name)
    batch = make_batch(base)
    expected = base.network(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    torch.testing.assert_close(batch_losses(base.network, batch)[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_chunks_change_neither_loss_nor_gradient(make_base, make_batch, name, chunk):
    base = make_base(name)
    batch = make_batch(base)
    embedding = base.network.get_input_embeddings().weight.requires_grad_()
    try:
        own = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        head = base.network.get_output_embeddings().weight
        logits = (
            base.network.get_submodule(base.family.backbone)(**own).last_hidden_state
            @ head.detach().T
        )
        expected = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
        )
        (wanted,) = torch.autograd.grad(expected, embedding)
        loss = batch_losses(base.network, batch, chunk=chunk)
        (given,) = torch.autograd.grad(loss.sum(), embedding)
    finally:
        embedding.requires_grad_(requires_grad=False)
    torch.testing.assert_close(loss[0], expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=1e-5)


def test_logits_never_exist_whole(make_base, make_batch, monkeypatch):
    base = make_base("llama")
    batch = make_batch(base)
    seen = []
    original = torch.Tensor.logsumexp
    monkeypatch.setattr(
        torch.Tensor,
        "logsumexp",
        lambda self, *a, **k: seen.append(len(self)) or original(self, *a, **k),
    )
    batch_losses(base.network, batch, chunk=4)
    assert max(seen) == 4
    assert sum(seen) == int(scored(batch).sum())


def test_padding_changes_nothing(make_base, make_batch, family_name):
    base = make_base(family_name)
    batch = make_batch(base, rows=1)
    pad = torch.zeros((1, 5), dtype=torch.int64)
    labels = batch.labels
    if labels.dim() == 2:
        labels = torch.cat([labels, pad + IGNORED], 1)
    padded = Batch(
        torch.cat([batch.input_ids, pad + 7], 1), torch.cat([batch.attention_mask, pad], 1), labels
    )
    if base.family.name == "roberta":  # its positions are counted from the pad id
        padded.input_ids[:, -5:] = base.network.config.pad_token_id
    torch.testing.assert_close(
        batch_losses(base.network, padded), batch_losses(base.network, batch), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_without_pad_token_classifies_a_padded_batch(make_base, make_batch, name):
    base = make_base(name, labels=4)
    assert base.network.config.pad_token_id is None
    batch = make_batch(base)
    for row in range(len(batch.labels)):
        length = int(batch.attention_mask[row].sum())
        alone = base.network(input_ids=batch.input_ids[row : row + 1, :length]).logits
        torch.testing.assert_close(
            class_logits(base.network, batch)[row], alone[0], atol=1e-5, rtol=1e-5
        )


def test_every_device_has_its_own_mean(make_base, make_batch):
    base = make_base("llama")
    batch = make_batch(base, rows=4)
    losses = token_losses(base.network, batch)
    counts = scored(batch)
    expected = [losses[rows].sum() / counts[rows].sum() for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(batch_losses(base.network, batch, devices=2), torch.stack(expected))


def test_a_device_without_a_scored_position_has_no_loss(make_base, make_batch):
    base = make_base("llama")
    batch = make_batch(base, rows=2)
    batch.labels[0] = IGNORED
    losses = batch_losses(base.network, batch, devices=2)
    assert losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_teacher_adds_its_share_of_the_divergence(make_base, make_batch, chunk):
    student, other = make_base("llama"), make_base("llama")
    other.network.model.layers[0].mlp.down_proj.weight.data.mul_(-1.0)
    # a slice shares the output layer with the dense base
    other.network.lm_head.weight = student.network.lm_head.weight
    batch, share = make_batch(student), 0.3
    where = scored(batch)
    embedded = student.network.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    handle = student.network.get_input_embeddings().register_forward_hook(lambda *_: embedded)
    found = token_losses(
        student.network, batch, chunk=chunk, teacher=Teacher(other.network, share)
    ).sum()
    (gradient,) = torch.autograd.grad(found, embedded)
    ours = student.network(batch.input_ids, attention_mask=batch.attention_mask).logits
    handle.remove()
    with torch.no_grad():
        theirs = other.network(batch.input_ids, attention_mask=batch.attention_mask).logits
    log_ours = ours[:, :-1][where].log_softmax(-1)
    log_theirs = theirs[:, :-1][where].log_softmax(-1)
    hard = torch.nn.functional.nll_loss(log_ours, batch.labels[:, 1:][where], reduction="sum")
    soft = torch.nn.functional.kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
    expected = (1 - share) * hard + share * soft
    (wanted,) = torch.autograd.grad(expected, embedded)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
