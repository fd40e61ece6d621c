"""What stands for removed structures: against ridge regression on the very inputs, and its limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.errors import ModelError
from airtune.model.covariance import Covariances
from airtune.model.importance import measure
from airtune.model.kept import Kept
from airtune.model.mending import RIDGE, Grams, Mending, biased_layers, measure_grams, pooled_grams
from airtune.model.slicing import slice_network
from airtune.model.weights import bias_of, weight_of


def what_is_read(base, batch, block, name):
    seen = []
    module = base.family.linear(base.network, block, name)
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone = base.network.get_submodule(base.family.backbone)
    with torch.no_grad():
        backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    return seen[0][batch.attention_mask.bool()].double().numpy()


def exact_grams(base, batch):
    """Second moments of a batch, with as many directions as inputs and nothing rounded."""
    measured = measure_grams(base.network, base.shape, [batch])
    parts = []
    for name in (base.family.attention_output, base.family.ffn_output):
        read = [what_is_read(base, batch, block, name) for block in range(base.shape.blocks)]
        exact = [torch.from_numpy(np.cov(values.T, ddof=0)) for values in read]
        scaled = [
            matrix / matrix.diagonal().sqrt().outer(matrix.diagonal().sqrt()) for matrix in exact
        ]
        values, vectors = zip(*(torch.linalg.eigh(matrix) for matrix in scaled), strict=True)
        factors = [
            v.clamp_min(0).sqrt()[:, None] * e.T for v, e in zip(values, vectors, strict=True)
        ]
        factor = torch.stack(factors)
        variance = torch.stack([m.diagonal() for m in exact])
        parts.append(Covariances(factor, torch.ones_like(factor[..., :1]), variance))
    return Grams(*parts, measured.means)


def ridge_regression(inputs, targets, *, constant):
    """Least squares of targets on inputs with the ridge as rows of data, by numpy's lstsq."""
    mean_x = inputs.mean(0) * constant
    mean_y = targets.mean(0) * constant
    x, y = inputs - mean_x, targets - mean_y
    penalty = np.sqrt(len(x) * RIDGE * np.square(x).mean()) * np.eye(x.shape[1])
    rows = np.concatenate([x, penalty]), np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    slope = np.linalg.lstsq(*rows, rcond=None)[0].T
    return slope, mean_y - slope @ mean_x


@pytest.mark.parametrize("constant", [True, False])
def test_least_squares_is_ridge_regression_of_what_was_removed(make_base, make_batch, constant):
    base = make_base("llama")
    batch, stay, gone = make_batch(base), np.arange(3, 48), np.arange(3)
    mending = Mending(
        measure(base.network, base.shape, [batch]).means,
        exact_grams(base, batch),
        biased_layers(base, saved=False) if constant else frozenset(),
    )
    kept = Kept((np.arange(base.shape.kv_groups),) * 2, (stay,) * 2)
    sliced = slice_network(base, kept, mending=mending)
    read = what_is_read(base, batch, 1, "down_proj")
    dense = weight_of(base.family.linear(base.network, 1, "down_proj")).double().numpy()
    slope, offset = ridge_regression(
        read[:, stay], read[:, gone] @ dense[:, gone].T, constant=constant
    )
    found = base.family.linear(sliced, 1, "down_proj")
    np.testing.assert_allclose(weight_of(found).numpy() - dense[:, stay], slope, atol=1e-4)
    if constant:
        np.testing.assert_allclose(bias_of(found).numpy(), offset, atol=1e-4)
    else:
        assert bias_of(found) is None


def test_more_inputs_than_tokens_are_no_obstacle(make_base, make_batch):
    base = make_base("llama")
    batch = make_batch(base)
    few = replace(
        batch,
        **{
            name: getattr(batch, name)[:1, :2] for name in ("input_ids", "attention_mask", "labels")
        },
    )
    grams = measure_grams(base.network, base.shape, [few])
    mending = Mending(measure(base.network, base.shape, [few]).means, grams, frozenset())
    kept = Kept((np.array([0, 1]),) * 2, (np.arange(9, 48),) * 2)
    sliced = slice_network(base, kept, mending=mending)
    assert all(tensor.isfinite().all() for tensor in sliced.state_dict().values())


def test_a_gram_matrix_that_is_none_is_refused(make_base, make_batch):
    base = make_base("llama")
    batch = make_batch(base)
    grams = measure_grams(base.network, base.shape, [batch])
    means = measure(base.network, base.shape, [batch]).means
    mending = Mending(
        means, replace(grams, ffn=replace(grams.ffn, variance=-grams.ffn.variance)), frozenset()
    )
    kept = Kept((np.arange(base.shape.kv_groups),) * 2, (np.arange(9, 48),) * 2)
    with pytest.raises(ModelError, match=r"Gram matrix of down_proj of block 0 is singular.*mean"):
        slice_network(base, kept, mending=mending)
    with pytest.raises(ModelError, match="Gram matrix is measured on data and got no batch"):
        measure_grams(base.network, base.shape, [])


def test_padding_does_not_count_and_devices_count_by_weight(make_base, make_batch):
    base = make_base("llama")
    one, other = make_batch(base, seed=0), make_batch(base, seed=1)
    first, second = (what_is_read(base, batch, 0, "o_proj") for batch in (one, other))
    reports = [measure_grams(base.network, base.shape, [batch]) for batch in (one, other)]
    found = pooled_grams(reports, [3.0, 1.0])
    weights = np.repeat([0.75 / len(first), 0.25 / len(second)], [len(first), len(second)])
    joined = np.concatenate([first, second])
    expected = np.cov(joined.T, aweights=weights, ddof=0)
    scale = np.sqrt(np.diag(expected))
    apart = found.attention.matrix(0).numpy() - expected
    assert np.sqrt(np.square(apart / np.outer(scale, scale)).mean()) < 0.08  # four bits, twice
    np.testing.assert_allclose(np.diag(apart) / np.diag(expected), 0.0, atol=1e-4)
    np.testing.assert_allclose(found.means.attention[0], weights @ joined, atol=1e-6)
