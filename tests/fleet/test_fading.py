import numpy as np
import pytest
from scipy import stats

from airtune.fleet.fading import Fading, rayleigh_gains, rician_gains

COUNT = 20_000


def draws(function, *values):
    return function(np.random.default_rng(7), COUNT, *values)


def test_rayleigh_power_is_exponential_with_mean_one():
    assert stats.kstest(draws(rayleigh_gains), "expon").pvalue > 0.01


@pytest.mark.parametrize("k", [0.0, 1.0, 4.0, 100.0])
def test_rician_power_is_a_scaled_noncentral_chi_square(k):
    # (k + 1) times twice the power is noncentral chi-square: 2 degrees, noncentrality 2k.
    law = stats.ncx2(2, 2 * k) if k else stats.chi2(2)
    assert stats.kstest(2 * (k + 1) * draws(rician_gains, k), law.cdf).pvalue > 0.01


@pytest.mark.parametrize("k", [0.0, 2.0, 10.0])
def test_rician_moments_are_the_closed_form(k):
    gains = draws(rician_gains, k)
    variance = (2 * k + 1) / (k + 1) ** 2
    assert gains.mean() == pytest.approx(1.0, abs=4 * np.sqrt(variance / COUNT))
    assert gains.var() == pytest.approx(variance, rel=0.08)


def test_a_strong_direct_path_hardly_fades():
    gains = Fading("rician", k_db=40.0).gains(np.random.default_rng(0), 1000)
    assert np.abs(gains - 1).max() < 0.1


def test_no_fading_is_a_gain_of_one():
    assert Fading("none").gains(np.random.default_rng(0), 3).tolist() == [1.0, 1.0, 1.0]


def test_descriptions_name_model_and_block():
    assert Fading("none").describe() == "no fading"
    assert Fading("rayleigh", every="slot").describe() == "Rayleigh fading each slot"
