"""Random wireless problems that the solver tests share."""

from collections.abc import Callable

import numpy as np
import pytest

from airtune.solve import Curves, JointProblem


def make_curves(n: int, seed: int, *, cap: float = np.inf, links: int = 1, mixed: bool = False):
    draws = np.random.default_rng(seed)
    hertz = 1e6 * n
    distance_km = np.sqrt(draws.uniform(0.05**2, 0.5**2, n))
    loss_db = 128.1 + 37.6 * np.log10(distance_km) + 8.0 * draws.standard_normal(n)
    gain = 10 ** (-loss_db / 10) * draws.exponential(size=n)
    power_w = 10 ** (draws.uniform(10, 23, n) / 10) * 1e-3
    signal = power_w * gain / 10 ** (-17.4 - 3.0) / hertz
    link = draws.integers(0, links, n)
    scale, top = np.full(n, hertz), np.full(n, cap * hertz)
    dedicated = np.zeros(n, bool)
    if mixed:
        air = link == 1
        scale, signal = np.where(air, np.inf, scale), np.where(air, 1.0, signal)
        top = np.where(air, 10 ** draws.uniform(6.0, 7.5, n) * n / 8, top)
        dedicated = link == 2
    return Curves(link, dedicated, signal, scale, top, np.ones(links))


def make_problem(
    n: int,
    seed: int,
    *,
    cap: float = np.inf,
    links: int = 1,
    mixed: bool = False,
    constants: bool = False,
    budget: float = 0.3,
    max_prune: float = 0.7,
) -> JointProblem:
    draws = np.random.default_rng(seed + 10_000)
    nothing = np.zeros(n)
    return JointProblem(
        curves=make_curves(n, seed, cap=cap, links=links, mixed=mixed),
        fixed_s=draws.random(n) * 2 if constants else nothing,
        compute_s=30.0 / 10 ** draws.uniform(-0.5, 1.0, n),
        fixed_bits=np.full(n, 1.6e7) if constants else nothing,
        bits=np.full(n, 4e7),
        weight=draws.dirichlet(np.full(n, 3.0)),
        least_kept=np.full(n, 1.0 - max_prune),
        most_kept=np.ones(n),
        prune_budget=budget,
    )


@pytest.fixture(scope="session")
def curves() -> Callable[..., Curves]:
    return make_curves


@pytest.fixture(scope="session")
def joint() -> Callable[..., JointProblem]:
    return make_problem
