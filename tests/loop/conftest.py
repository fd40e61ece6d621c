"""A run that nothing interrupts."""

import pytest
from tests.loop.training import train


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder
