"""Covariances in few numbers: what is exact, and how near the rest comes to the best there is."""

import numpy as np
import pytest
import torch

from airtune.model.covariance import Covariances, as_sent, covariances, pooled_covariances

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


def test_fifteen_levels_are_off_by_half_a_step_or_cut_at_the_last():
    found = covariances([covariance(drawn(7))], rank=8)
    sent = as_sent(found)
    assert sent.levels.dtype == torch.int8
    assert int(sent.levels.abs().max()) == 7
    error = (sent.factor - found.factor).abs()
    assert (error <= 0.5001 * sent.step)[sent.levels.abs() < 7].all()
    outer = found.factor.abs()[sent.levels.abs() == 7]
    assert (outer >= (6.4999 * sent.step).expand_as(sent.levels)[sent.levels.abs() == 7]).all()


def test_the_step_is_near_the_best_for_normal_numbers():
    draw = torch.randn(1, 4, 20_000, generator=torch.Generator().manual_seed(0))
    normal = Covariances(draw, torch.ones(1, 4, 1), torch.ones(1, 20_000))
    sent = as_sent(normal)

    def lost(step):
        return float(((draw / step).round().clamp(-7, 7) * step - draw).square().mean())

    best = min(lost(step) for step in np.arange(0.1, 1.0, 0.01))
    assert float((sent.factor - draw).square().mean()) < 1.01 * best
