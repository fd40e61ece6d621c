"""Exponents are learnt from noisy agreement, and never leave their range."""

import numpy as np
import pytest

from airtune.solve.values import PRIOR, begin_values, learn_values, worth

TRUE = np.array([0.6, 0.9, 0.1])


def rounds(count, noise, seed=0):
    draw, values = np.random.default_rng(seed), begin_values()
    for _ in range(count):
        x = np.log(
            np.stack(
                [
                    draw.integers(1, 9, 8),
                    draw.choice([0.25, 0.5, 1.0], 8),
                    draw.choice([0.5, 1.0], 8),
                ],
                axis=1,
            )
        )
        scale = draw.uniform(0.5, 2.0)
        y = scale * np.exp(x @ TRUE)
        sd = np.full(8, noise * scale)
        values = learn_values(values, x, y + sd * draw.standard_normal(8), sd, discount=1.0)
    return values


def test_the_exponents_are_found():
    found = rounds(150, noise=0.3)
    assert found.theta == pytest.approx(TRUE, abs=0.08)
    assert found.noise == pytest.approx(1.0, rel=0.4)


def test_pure_noise_teaches_little():
    assert np.abs(rounds(20, noise=50.0).theta - PRIOR).max() < 0.35


def test_what_is_not_finite_is_left_out():
    x = np.zeros((3, 3))
    found = learn_values(
        begin_values(), x, np.array([np.nan, np.inf, 1.0]), np.ones(3), discount=0.9
    )
    assert found.theta.tolist() == PRIOR.tolist()


def test_more_of_anything_is_never_worth_less():
    found = rounds(60, noise=5.0, seed=3)
    assert (found.theta >= 0.0).all()
    x = np.log(np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [2.0, 0.5, 1.0]]))
    one, two, less = worth(found, x)
    assert one == 1.0
    assert two >= one
    assert less <= two
