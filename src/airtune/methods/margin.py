"""How much later than expected a device may be: plans within which a stated part of rounds end.

A round ends with its last device. With reports y = ln(finish / expected finish) of mean m and
standard deviation s a device, learnt from what came back, a plan takes each to need

    exp(m + z s) times as long;    z = the normal quantile of q^(1/N) at first

so that a part q of the rounds would end as planned if reports were normal and independent. They are
not, so z is corrected by one number: after each round `z += 0.5 ((it ended later) - (1 - q))`, which
holds the part of later rounds at 1 - q in the long run whatever the reports are.

Source: the correction is the stochastic approximation of a quantile (Robbins and Monro, 1951); that it
moves z is this project's.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from airtune.plan import Floats, Ints, Results, State

USUAL = 0.5
"""The quantile at which nothing is learnt and expected times are planned with."""
_FIRST = 0.1
"""Standard deviation of a report before any."""
_NEWEST = 0.15
"""Least weight of the newest report."""
_STEP = 0.5
_MOST_Z, _MOST = 8.0, 8.0
"""Bounds of z, and of how many times as long a device may be taken to need, and its inverse."""


def no_reports(devices: int, quantile: float) -> State:
    """Return what is known of so many devices before the first round."""
    return {
        "late_log": np.zeros(devices),
        "late_variance": np.full(devices, _FIRST**2),
        "late_reports": np.zeros(devices, np.int64),
        "expected_s": np.full(devices, np.nan),
        "late_z": NormalDist().inv_cdf(quantile ** (1.0 / devices)),
        "planned_s": float("nan"),
    }


def times_longer(state: State, device: Ints) -> Floats:
    """Return how many times its expected time each device is taken to need, shape (n,)."""
    mean, variance = (np.asarray(state[name])[device] for name in ("late_log", "late_variance"))
    factor = np.exp(mean + float(state["late_z"]) * np.sqrt(variance))
    return np.asarray(np.clip(factor, 1.0 / _MOST, _MOST), np.float64)


def expecting(state: State, device: Ints, expected_s: Floats, planned_s: float) -> State:
    """Return the state after a plan.

    Args:
        state: before.
        device: of the plan, (n,).
        expected_s: when each would be done by what is declared, (n,); inf where it never is.
        planned_s: when the round is planned to end.
    """
    every = np.full(np.shape(state["late_log"]), np.nan)
    every[device] = np.where(np.isfinite(expected_s), expected_s, np.nan)
    return {**state, "expected_s": every, "planned_s": planned_s}


def reported(state: State, results: Results, quantile: float) -> State:
    """Return the state after a round: reports of each device, and whether it ended as planned."""
    device, finish_s = results.device, results.finish_s
    expected_s = np.asarray(state["expected_s"])[device]
    known = np.isfinite(finish_s) & (finish_s > 0.0) & (expected_s > 0.0)
    after: dict[str, Floats | Ints] = {
        name: np.array(state[name]) for name in ("late_log", "late_variance", "late_reports")
    }
    who = device[known]
    error = np.log(finish_s[known] / expected_s[known]) - after["late_log"][who]
    after["late_reports"][who] += 1
    weight = np.maximum(1.0 / (after["late_reports"][who] + 1.0), _NEWEST)
    after["late_log"][who] += weight * error
    after["late_variance"][who] = (1.0 - weight) * (after["late_variance"][who] + weight * error**2)
    z = float(state["late_z"])
    planned_s = float(state["planned_s"])
    missed = bool(np.any(results.status == "late"))
    if np.isfinite(planned_s) and (known.any() or missed):
        is_later = missed or float(np.max(finish_s[known])) > planned_s * (1.0 + 1e-9)
        z = float(np.clip(z + _STEP * (is_later - (1.0 - quantile)), -_MOST_Z, _MOST_Z))
    return {**state, **after, "late_z": z}
