import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.fleet.path_loss import (
    PathLoss,
    log_distance_db,
    macro_db,
    sight_probability,
    urban_macro_db,
    urban_micro_db,
)

SIGHT, HIDDEN = np.array([True]), np.array([False])


@given(st.floats(10, 5000))
def test_macro_is_its_closed_form(distance):
    expected = 128.1 + 37.6 * np.log10(distance / 1000)
    assert macro_db(np.array([distance]))[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("losses", "is_sight", "expected"),
    [
        # Worked by hand from TR 38.901 table 7.4.1-1 at 3.5 GHz and 100 m flat distance:
        # slant 102.7239 m (UMa, 23.5 m up) and 100.3606 m (UMi, 8.5 m up); breakpoints 560 and 210 m.
        (urban_macro_db, SIGHT, 28.0 + 22 * 2.011671 + 10.881361),
        (urban_macro_db, HIDDEN, 13.54 + 39.08 * 2.011671 + 10.881361),
        (urban_micro_db, SIGHT, 32.4 + 21 * 2.001563 + 10.881361),
        (urban_micro_db, HIDDEN, 22.4 + 35.3 * 2.001563 + 21.3 * 0.544068),
    ],
)
def test_3gpp_losses_at_100_m(losses, is_sight, expected):
    assert losses(np.array([100.0]), is_sight, 3.5)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("losses", "corner"), [(urban_macro_db, 560.4), (urban_micro_db, 210.1)])
def test_sight_loss_is_continuous_at_the_breakpoint_and_steeper_beyond(losses, corner):
    around = losses(np.array([corner * 0.999, corner * 1.001]), np.array([True, True]), 3.5)
    assert abs(around[1] - around[0]) < 0.1
    decades = losses(np.array([2 * corner, 20 * corner]), np.array([True, True]), 3.5)
    assert decades[1] - decades[0] == pytest.approx(40.0, abs=0.2)


@pytest.mark.parametrize("losses", [urban_macro_db, urban_micro_db])
@given(st.floats(10, 5000), st.floats(1, 3), st.floats(0.5, 100))
def test_loss_rises_with_distance_and_is_never_less_without_sight(losses, near, factor, carrier):
    both = np.array([near, near * factor])
    for sight in (True, False):
        first, second = losses(both, np.array([sight, sight]), carrier)
        assert second >= first - 1e-9
    assert losses(both[:1], HIDDEN, carrier) >= losses(both[:1], SIGHT, carrier)


def test_distances_below_validity_count_as_ten_metres():
    near = np.array([0.0, 3.0, 10.0])
    assert len(set(macro_db(near).tolist())) == 1
    assert len(set(urban_macro_db(near, np.ones(3, bool), 3.5).tolist())) == 1


def test_log_distance_starts_at_free_space_and_loses_ten_n_db_a_decade():
    loss = PathLoss("log-distance", carrier_ghz=2.4, exponent=3.0)
    free_space = 20 * np.log10(4 * np.pi * 2.4e9 / 299_792_458)
    assert loss.loss_db(np.array([1.0, 10.0]), np.ones(2, bool)).tolist() == pytest.approx(
        [free_space, free_space + 30.0]
    )
    assert log_distance_db(np.array([100.0]), 2.0, 40.0)[0] == pytest.approx(80.0)


def test_line_of_sight_is_certain_to_18_m_and_follows_the_table_beyond():
    chance = sight_probability(np.array([5.0, 18.0, 63.0]), 63.0)
    assert chance[:2].tolist() == [1.0, 1.0]
    assert chance[2] == pytest.approx(18 / 63 + np.exp(-1) * (1 - 18 / 63))


@pytest.mark.parametrize(("setting", "chance"), [("always", 1.0), ("never", 0.0)])
def test_line_of_sight_can_be_set(setting, chance):
    loss = PathLoss("umi", line_of_sight=setting)
    assert loss.sight_probability(np.array([50.0, 500.0])).tolist() == [chance, chance]


def test_models_without_sight_never_have_any():
    assert PathLoss("macro").sight_probability(np.array([5.0])).tolist() == [0.0]


def test_shadowing_is_that_of_the_table():
    both = np.array([True, False])
    assert PathLoss("uma").shadowing_db(both).tolist() == [4.0, 6.0]
    assert PathLoss("umi").shadowing_db(both).tolist() == [4.0, 7.82]
    assert PathLoss("macro").shadowing_db(both).tolist() == [8.0, 8.0]
