"""The order of pruning against brute force, and what few groups and wide models need."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cost import known_shapes, llama_like, most_pruned, pruning_path
from airtune.cost.path import TILE, TILED_FROM, typical
from airtune.plan import Sensitivity

FEW = llama_like(
    "llama", blocks=2, width=64, heads=6, kv_groups=3, head_dim=8, ffn=12, vocab=60, tied=True
)


def curve(steps):
    """A convex cost that rises from 0 by these slopes, at even fractions below 1."""
    at = np.linspace(0.0, len(steps) / (len(steps) + 1), len(steps) + 1)
    return tuple(at), tuple(np.concatenate([[0.0], np.cumsum(np.sort(steps))]))


slopes = st.lists(st.floats(0.01, 5.0), min_size=2, max_size=2)
many = st.lists(st.floats(0.01, 5.0), min_size=11, max_size=11)


@given(slopes, many)
@settings(max_examples=40, deadline=None)
def test_no_other_choice_that_saves_as_much_costs_less(heads, ffn):
    (at, cost), (at_ffn, cost_ffn) = curve(heads), curve(ffn)
    known = Sensitivity(at, cost, at_ffn, cost_ffn, "")
    path = pruning_path(FEW, known)

    groups, channels = (axis.ravel() for axis in np.meshgrid(range(1, 4), range(1, 13)))
    price = np.interp(1 - groups / 3, at, cost) + np.interp(1 - channels / 12, at_ffn, cost_ffn)
    saved = FEW.pruned_fraction(1 - groups / 3, 1 - channels / 12)
    for kept in zip(path.groups, path.channels, strict=True):
        here = int(np.flatnonzero((groups == kept[0]) & (channels == kept[1]))[0])
        assert price[here] <= price[saved >= saved[here] - 1e-12].min() + 1e-9


@pytest.mark.parametrize("order", ["measured", "proportional"])
@pytest.mark.parametrize("name", sorted(known_shapes()))
def test_a_path_only_ever_removes_whole_structures(name, order):
    shape = known_shapes()[name]
    path = pruning_path(shape, order=order)
    assert path.pruned[0] == 0.0
    assert np.all(np.diff(path.pruned) > 0.0)
    assert np.all(np.diff(path.groups) <= 0)
    assert np.all(np.diff(path.channels) <= 0)
    assert path.groups[-1] == 1
    if shape.ffn >= TILED_FROM:
        assert np.all(path.channels[path.channels < shape.ffn] % TILE == 0)


def test_with_few_groups_none_goes_early():
    small = llama_like(
        "llama",
        blocks=30,
        width=576,
        heads=9,
        kv_groups=3,
        head_dim=64,
        ffn=1536,
        vocab=49152,
        tied=True,
    )
    path = pruning_path(small)
    first = int(np.flatnonzero(path.groups < 3)[0])
    assert path.pruned[first] > 0.35
    balanced = pruning_path(small, order="proportional")
    assert balanced.pruned[np.flatnonzero(balanced.groups < 3)[0]] < 0.25


def test_in_balance_the_fractions_stay_within_one_structure():
    shape = known_shapes()["llama-2-7b"]
    path = pruning_path(shape, order="proportional")
    heads, ffn = 1 - path.groups / shape.kv_groups, 1 - path.channels / shape.ffn
    assert np.all(np.abs(heads - ffn) <= 1 / shape.kv_groups)


def test_heads_that_must_stay_do():
    path = pruning_path(FEW, heads=False)
    assert np.all(path.groups == 3)
    assert path.channels.tolist() == list(range(12, 0, -1))


def test_the_most_that_may_go_is_where_the_noise_reaches_the_signal():
    at, rise = (0.0, 0.25, 0.5, 0.75), (0.0, 0.3, 0.9, 9.0)
    known = Sensitivity((0.0, 0.5), (0.0, 99.0), at, rise, "")
    assert most_pruned(FEW, known) == pytest.approx(float(FEW.pruned_fraction(0.0, 0.5)))
    assert most_pruned(FEW, replace(known, ffn_cost=(0.0, 50.0, 60.0, 70.0))) == 0.0
    path = pruning_path(FEW, known)
    assert np.all(np.diff(path.cost) >= 0.0)


def test_a_cost_that_dips_is_read_as_its_convex_hull():
    dip = Sensitivity((0.0, 0.5), (0.0, 9.0), (0.0, 0.25, 0.5, 0.75), (0.0, 3.0, 3.0, 3.0), "")
    path = pruning_path(FEW, dip)
    assert path.groups[np.flatnonzero(path.channels == 1)[0]] == 3
    assert typical(FEW).heads_cost[0] == 0.0
