"""One made-up problem that the tests of methods share."""

import pytest

from airtune.methods import sample_problem
from airtune.methods.contract import sample_observation


@pytest.fixture(scope="session")
def problem():
    return sample_problem()


@pytest.fixture(scope="session")
def observation(problem):
    return sample_observation(problem, 1)
