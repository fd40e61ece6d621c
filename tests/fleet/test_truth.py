"""Devices that are not as they declare: the declared fleet stays, the true one differs by factors."""

import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet import load_fleet
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.solve import curves_of


def fleet_of(truth, **more):
    return load_fleet(
        {
            "base": "pocket",
            **more,
            "devices": [
                {
                    "name": "wrong",
                    "count": 5,
                    "gflops_per_s": [1, 2],
                    "memory_gib": 1,
                    "power_w": 5,
                    "truth": truth,
                },
                {
                    "name": "right",
                    "count": 2,
                    "gflops_per_s": [1, 2],
                    "memory_gib": 1,
                    "power_w": 5,
                },
            ],
        }
    )


def test_what_is_declared_does_not_change():
    plain, wrong = load_fleet("pocket"), fleet_of({"speed": [0.5, 2], "rate": [0.5, 2]})
    assert plain.true() is plain
    assert wrong.links_at(0, 0, 0.0).up_factor is None
    ratio = wrong.true().flops_at(3) / wrong.flops_at(3)
    assert np.all((ratio[:5] >= 0.5) & (ratio[:5] <= 2.0))
    assert np.ptp(ratio[:5]) > 0.5
    np.testing.assert_array_equal(ratio[5:], 1.0)


def test_true_rates_are_the_declared_ones_times_a_factor():
    fleet, share, device = fleet_of({"rate": 0.5}), np.full(7, 0.1), np.arange(7)
    told, true = (one.links_at(0, 0, 0.0) for one in (fleet, fleet.true()))
    factor = np.repeat([0.5, 1.0], [5, 2])
    np.testing.assert_allclose(uplink_bps(true, share), factor * uplink_bps(told, share))
    np.testing.assert_allclose(downlink_bps(true), factor * downlink_bps(told))
    curves = curves_of(true, device)
    np.testing.assert_allclose(curves.rate(share), uplink_bps(true, share))
    np.testing.assert_allclose(curves.share_for(curves.rate(share)), share)


def test_factors_drift_within_their_range_and_are_those_of_the_seed():
    truth = {"speed": {"low": 0.5, "high": 2, "law": "log-uniform"}, "every_rounds": 10}
    fleet = fleet_of(truth).true()
    found = np.array([fleet.flops_at(round)[:5] / fleet.flops_per_s[:5] for round in range(40)])
    assert found.min() >= 0.5
    assert found.max() <= 2.0
    assert np.abs(np.diff(np.log(found), axis=0)).max() <= np.log(4.0) / 10 + 1e-9
    assert np.ptp(found, axis=0).min() > 0.1
    again = fleet_of(truth).true()
    np.testing.assert_array_equal(found[7], again.flops_at(7)[:5] / again.flops_per_s[:5])


@pytest.mark.parametrize(
    ("truth", "message"),
    [({"speed": 0}, "truth.speed"), ({"rates": 1}, "truth.rates"), ({"speed": [2, 1]}, "rise")],
)
def test_a_truth_that_means_nothing_is_refused(truth, message):
    with pytest.raises(FleetError, match=message):
        fleet_of(truth)
