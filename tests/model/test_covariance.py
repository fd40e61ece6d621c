"""Covariances in few numbers: what is exact, and how near the rest comes to the best there is."""

import numpy as np
import pytest
import torch

from airtune.model.covariance import as_sent, covariances, pooled_covariances

WIDTH, TOKENS = 40, 400


def drawn(seed, *, directions=WIDTH):
    """Inputs of unlike scales in which a few directions dominate."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(TOKENS, directions)) @ draw.normal(size=(directions, WIDTH))
    noise = 0.1 * draw.normal(size=(TOKENS, WIDTH))
    return (mixed + noise) * 10.0 ** draw.uniform(-2, 2, WIDTH) + draw.normal(size=WIDTH)


def covariance(values):
    return torch.from_numpy(np.cov(values.T, ddof=0))


def correlation(matrix):
    scale = np.sqrt(np.diag(matrix))
    return matrix / np.outer(scale, scale)


def test_at_full_rank_it_is_the_matrix():
    exact = covariance(drawn(0))
    found = covariances([exact], rank=WIDTH).matrix(0).numpy()
    np.testing.assert_allclose(correlation(found), correlation(exact.numpy()), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_variances_are_exact_and_no_direction_is_negative(rank):
    exact = covariance(drawn(1))
    found = covariances([exact], rank=rank)
    assert found.factor.shape == (1, rank, WIDTH)
    matrix = found.matrix(0).numpy()
    np.testing.assert_allclose(np.diag(matrix), np.diag(exact), rtol=1e-4)
    assert np.linalg.eigvalsh(correlation(matrix)).min() > -1e-6


def test_few_directions_are_found_as_an_eigendecomposition_finds_them():
    exact = covariance(drawn(2, directions=5))
    values, vectors = np.linalg.eigh(correlation(exact.numpy()))
    best = vectors[:, -5:] * values[-5:] @ vectors[:, -5:].T
    factor = covariances([exact], rank=5).factor[0].double().numpy()
    np.testing.assert_allclose(factor.T @ factor, best, atol=1e-4)


def test_what_several_have_seen_is_the_covariance_of_all_of_it():
    seen = [drawn(seed) for seed in (3, 4, 5)]
    weights = [1.0, 2.0, 0.5]
    parts = [
        (
            weight,
            covariances([covariance(values)], rank=WIDTH),
            torch.from_numpy(values.mean(0))[None],
        )
        for weight, values in zip(weights, seen, strict=True)
    ]
    found = pooled_covariances(parts, rank=WIDTH).matrix(0).numpy()
    exact = np.cov(np.concatenate(seen).T, aweights=np.repeat(weights, TOKENS), ddof=0)
    np.testing.assert_allclose(correlation(found), correlation(exact), atol=1e-4)


def test_inputs_that_never_change_are_no_obstacle():
    exact = covariance(drawn(6))
    exact[3], exact[:, 3] = 0.0, 0.0
    found = covariances([exact], rank=8).matrix(0)
    assert found.isfinite().all()
    assert found[3, 3] < 1e-30


def test_what_is_sent_is_off_by_half_a_fifteenth_level_at_most():
    found = covariances([covariance(drawn(7))], rank=8)
    sent = as_sent(found)
    step = sent.factor.abs().amax(2, keepdim=True) / 7
    assert torch.allclose(step, found.factor.abs().amax(2, keepdim=True) / 7, rtol=2**-8)
    levels = sent.factor / step
    assert torch.equal(levels, levels.round())
    assert ((sent.factor - found.factor).abs() <= 0.5001 * step).all()
    assert torch.equal(as_sent(sent).factor, sent.factor)
