import numpy as np
import pytest

from airtune.errors import DataError
from airtune.model.batch import Sequences
from airtune.work.importance import importance_bytes, measure_importance


def test_importance_depends_on_the_data_and_is_repeatable(base, sequences_of):
    mine, yours = sequences_of(base, seed=1), sequences_of(base, seed=2)
    first, again, other = (
        measure_importance(base, sequences, batch=2) for sequences in (mine, mine, yours)
    )
    assert np.array_equal(first.channels, again.channels)
    assert not np.array_equal(first.channels, other.channels)


def test_a_device_with_less_than_a_batch_can_still_measure(base, sequences_of):
    measured = measure_importance(base, sequences_of(base, count=1), batch=8)
    assert np.all(np.isfinite(measured.groups))


def test_a_device_without_data_cannot_measure(base):
    with pytest.raises(DataError, match="at least one training example"):
        measure_importance(base, Sequences((), ()))


def test_the_report_counts_every_score_and_mean_in_single_precision(base, sequences_of):
    measured = measure_importance(base, sequences_of(base))
    blocks, groups, ffn, query = 2, 2, 48, 32
    assert importance_bytes(measured) == 4 * blocks * (groups + ffn + query + ffn)
