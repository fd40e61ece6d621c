import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.data.draw import at_most, set_aside
from airtune.errors import DataError


@given(
    st.lists(st.integers(0, 5), min_size=20, max_size=80), st.floats(0.1, 0.6), st.integers(0, 9)
)
def test_every_class_gives_its_share_and_keeps_a_row(classes, share, seed):
    classes = np.array(classes)
    kept, aside = set_aside(classes, share, np.random.default_rng(seed), source="rows")
    assert sorted([*kept, *aside]) == list(range(len(classes)))
    assert set(classes[kept]) == set(classes)
    wanted = min(round(share * len(classes)), len(classes) - len(set(classes)))
    assert len(aside) == wanted
    if not any(np.bincount(classes) == 1):
        for group, size in zip(*np.unique(classes, return_counts=True), strict=True):
            assert abs((classes[aside] == group).sum() - share * size) < 2.0


def test_rows_of_one_class_are_drawn_as_a_permutation_says():
    kept, aside = set_aside(np.zeros(30, int), 0.2, np.random.default_rng(3), source="rows")
    order = np.random.default_rng(3).permutation(30)
    assert (aside.tolist(), kept.tolist()) == (sorted(order[:6]), sorted(order[6:]))


@pytest.mark.parametrize(
    ("classes", "share", "message"),
    [
        (np.zeros(30, int), 0.01, "0.01 of its 30 rows is 0"),
        (np.arange(30), 0.5, "one row of every class"),
    ],
)
def test_a_share_that_leaves_a_part_empty_is_refused(classes, share, message):
    with pytest.raises(DataError, match=message):
        set_aside(classes, share, np.random.default_rng(0), source="rows")


def test_a_limit_above_the_rows_keeps_all_in_order():
    assert at_most(4, 9, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    assert len(set(at_most(9, 4, np.random.default_rng(0)).tolist())) == 4
