import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from airtune.data.packing import pack
from airtune.model.batch import IGNORED, Sequences


@given(st.lists(st.integers(1, 10), min_size=1, max_size=40))
def test_packing_keeps_every_token_in_order_and_every_scored_one(lengths):
    random = np.random.default_rng(len(lengths))
    tokens = tuple(random.integers(0, 99, length) for length in lengths)
    targets = tuple(np.where(random.random(len(row)) < 0.5, row, IGNORED) for row in tokens)
    packed = pack(Sequences(tokens, targets, truncated=3), max_length=10)
    assert np.array_equal(np.concatenate(packed.tokens), np.concatenate(tokens))
    assert max(map(len, packed.tokens)) <= 10
    before = sum(int((row[1:] != IGNORED).sum()) for row in targets)
    assert sum(int((row[1:] != IGNORED).sum()) for row in packed.targets) == before
    assert packed.truncated == 3


def test_neighbours_that_fit_are_joined():
    row = np.arange(4)
    assert len(pack(Sequences((row,) * 6, (row,) * 6), max_length=12)) == 2
