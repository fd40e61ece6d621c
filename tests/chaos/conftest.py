"""One bed for all faults."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos_bed import Going, laid_out


@pytest.fixture(scope="session")
def bed(tmp_path_factory):
    with laid_out(tmp_path_factory.mktemp("bed")) as made:
        yield made


@pytest.fixture
def going(bed):
    """Starts runs on the bed."""
    return lambda *settings: Going(bed, *settings)
