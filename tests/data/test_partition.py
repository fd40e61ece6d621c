import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.data import DataSpec
from airtune.data.partition import cluster_by_first_word, cluster_by_length, partition
from airtune.errors import DataError


def deal(kind, groups, devices, seed=0, **settings):
    spec = DataSpec(partition=kind, **settings)
    return partition(groups, devices, spec=spec, random=np.random.default_rng(seed))


def skew(parts, groups):
    """Mean total variation between a device's mix of groups and the whole."""
    whole = np.bincount(groups) / len(groups)
    mixes = [np.bincount(groups[rows], minlength=len(whole)) / len(rows) for rows in parts.rows]
    return float(np.mean([np.abs(mix - whole).sum() / 2 for mix in mixes]))


@given(
    st.sampled_from(["iid", "dirichlet", "shards"]),
    st.integers(1, 12),
    st.integers(0, 200),
    st.integers(1, 6),
    st.floats(0.02, 50.0),
    st.integers(0, 99),
)
def test_every_row_is_on_one_device_and_none_is_short(kind, devices, more, kinds, alpha, seed):
    groups = np.random.default_rng(seed).integers(0, kinds, 3 * devices + more)
    parts = deal(kind, groups, devices, seed, alpha=alpha, min_rows=3)
    assert np.array_equal(np.sort(np.concatenate(parts.rows)), np.arange(len(groups)))
    assert len(parts.rows) == devices
    assert min(map(len, parts.rows)) >= 3


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(rows) for rows in deal("iid", np.zeros(103, np.int64), 10).rows]
    assert max(sizes) - min(sizes) == 1


def test_smaller_alpha_makes_devices_less_alike():
    groups = np.random.default_rng(0).integers(0, 8, 4000)
    skews = [
        skew(deal("dirichlet", groups, 10, alpha=alpha), groups) for alpha in (100.0, 1.0, 0.05)
    ]
    assert skews[0] < 0.1 < skews[1] < skews[2]
    assert skews[2] > 0.6


def test_dirichlet_shares_have_the_variance_of_the_law():
    groups = np.zeros(100_000, np.int64)
    alpha, devices = 2.0, 5
    sizes = [
        [len(rows) for rows in deal("dirichlet", groups, devices, seed, alpha=alpha).rows]
        for seed in range(60)
    ]
    shares = np.array(sizes) / len(groups)
    wanted = (1 / devices) * (1 - 1 / devices) / (devices * alpha + 1)
    assert shares.var() == pytest.approx(wanted, rel=0.35)


def test_device_of_two_shards_sees_few_labels():
    groups = np.repeat(np.arange(10), 100)
    parts = deal("shards", groups, 10, shards=2)
    assert max(len(np.unique(groups[rows])) for rows in parts.rows) <= 4
    assert {len(rows) for rows in parts.rows} == {100}


def test_rows_moved_to_short_devices_are_counted():
    groups = np.zeros(60, np.int64)
    parts = deal("dirichlet", groups, 20, alpha=0.02, min_rows=2)
    assert parts.moved > 0
    assert deal("iid", groups, 20).moved == 0


def test_same_seed_deals_the_same():
    groups = np.arange(100) % 7
    first, again = (deal("dirichlet", groups, 5, 3) for _ in range(2))
    assert all(map(np.array_equal, first.rows, again.rows))


def test_too_few_rows_names_the_first_empty_device():
    with pytest.raises(DataError, match=r"empty partition: 7 rows .* device 3 would .* 3 devices"):
        deal("iid", np.zeros(7, np.int64), 10)


def test_length_clusters_are_tenths():
    groups, names = cluster_by_length(np.arange(100))
    assert np.bincount(groups).tolist() == [10] * 10
    assert names[0] == "length 0"


def test_equal_lengths_are_one_cluster_less():
    groups, names = cluster_by_length(np.full(50, 9))
    assert len(np.unique(groups)) == 1
    assert int(groups.max()) < len(names)


def test_first_words_group_the_most_frequent_and_the_rest():
    groups, names = cluster_by_first_word(["b x", "B y", "a", "", "c", "a z"], 3)
    assert groups.tolist() == [1, 1, 0, 2, 2, 0]
    assert names == ("a", "b", "other")
