"""How long a round of real devices will take, with an interval, learnt from the rounds before.

A device's seconds are the sum of its parts: download, computing, upload, judging, and the rest (the
ticket, the connection, waits). Each is what was planned over what was learnt of it, known up to a
log-normal factor; their sum is taken as log-normal with the same mean and variance (Fenton, IRE
Trans. Comm. Syst. 1960), devices as independent, and the round ends with the last:

    P(round <= t) = prod_i Phi((ln t - mu_i) / sigma_i)

The middle is its median, and four rounds of five are expected between its quantiles .1 and .9, each
as far from the median as rounds have been so far in units of that distance: devices are not as
independent as this takes them to be, where what slows one slows all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import Prediction
from airtune.engine.base import ExpectedRound
from airtune.engine.gathered import under
from airtune.engine.learnt import LearntRatio
from airtune.errors import CheckpointError
from airtune.fleet.fleet import Fleet
from airtune.plan import Assignments, Bools, Floats, Ints, LinkState, Results

LINK = {"start": 0.7, "drift": 0.1, "noise": 0.1}
"""Of a link's ratio, beside computing's: rates on the move change from round to round."""
FIRST_REST_S, LEAST_SPREAD = 0.3, 0.02
"""A first guess, and the least that the logarithm of a round's seconds is taken to scatter."""
LOW, HIGH = 0.1, 0.9
FIRST_WIDTH, MOST_OFF = 2.0, 3.0
"""First guess of how far rounds are off, in units of what was expected, and the most that one counts."""
_NEWEST = 0.2
"""Weight of the newest round in what the rest takes, and in how far rounds are off."""
_NORMAL = 1.2816
"""Quantile .9 of the normal distribution."""


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """What was measured of a round's devices, in columns of shape (n,); NaN where nothing was."""

    finish_s: Floats
    download_s: Floats
    work_s: Floats
    """Computing, without waiting for anybody."""
    upload_s: Floats
    judging_s: Floats
    loading_s: Floats


def seen_in(results: Results) -> MeasuredRound:
    """Return what the virtual clock measured of a round; NaN of devices that did not come back."""
    came = results.status == "ok"
    nothing = np.zeros(len(came))
    return MeasuredRound(
        finish_s=_where(came, results.finish_s),
        download_s=_where(came, results.download_s),
        work_s=_where(came, results.compute_s),
        upload_s=_where(came, results.upload_s),
        judging_s=_where(came, nothing),
        loading_s=nothing,
    )


class Forecast:
    """Learns what the devices of a run take, and says what a round of them will."""

    def __init__(self, devices: int) -> None:
        """Believe what was declared."""
        self.speed = LearntRatio(devices)
        self.down, self.up = LearntRatio(devices, **LINK), LearntRatio(devices, **LINK)
        self._steps = LearntRatio(devices, **LINK)
        """Of all that a split round takes beside computing."""
        self._judging_s = np.zeros(devices)
        self._rest_s = np.full((2, devices), np.nan)
        """Mean and variance, of each device; NaN = not known."""
        self._width = np.array([FIRST_WIDTH])

    def flops_per_s(self, fleet: Fleet, round: int) -> Floats:
        """Return how fast each device is taken to be: as declared, put right by what was learnt."""
        return np.asarray(fleet.flops_at(round) * self.speed.factor, np.float64)

    def links(self, fleet: Fleet, round: int, time_s: float) -> LinkState:
        """Return the links as they are taken to be at the start of a round, likewise."""
        links = fleet.links_at(round, 0, time_s)
        return replace(links, up_factor=self.up.factor, down_factor=self.down.factor)

    def learnt(self, device: Ints) -> dict[str, object]:
        """Return what a record holds of what was learnt of devices, in plain values.

        Of speed and rates over the declared ones, in the order of `device`: the middle, and the ends
        between which four values of five are expected.
        """
        found: dict[str, object] = {"device": device.tolist()}
        for name, ratio in (("speed", self.speed), ("up", self.up), ("down", self.down)):
            off = np.exp(_NORMAL * ratio.deviation[device])
            middle = ratio.factor[device]
            ends = {"low": middle / off, "middle": middle, "high": middle * off}
            found[name] = {end: values.tolist() for end, values in ends.items()}
        return found

    def expect(
        self, assignments: Assignments, priced: Prediction, *, is_judging: bool
    ) -> ExpectedRound | None:
        """Return how long a round will take; None where no device can do its part.

        Args:
            assignments: the plan, n devices.
            priced: at the declared speeds and links.
            is_judging: the devices judge the model too.
        """
        who, is_cut = assignments.device, assignments.cut > 0
        judging_s = self._judging_s[who] * is_judging
        rest_s, rest_variance = np.where(
            np.isnan(self._rest_s[:, who]),
            [[FIRST_REST_S], [FIRST_REST_S**2]],
            self._rest_s[:, who],
        )
        parts = (
            (priced.compute_s / self.speed.factor[who], self.speed.spread[who]),
            (
                np.where(is_cut, 0.0, priced.download_s) / self.down.factor[who],
                self.down.spread[who],
            ),
            (np.where(is_cut, 0.0, priced.upload_s) / self.up.factor[who], self.up.spread[who]),
            (
                np.where(is_cut, _beside(priced), 0.0) / self._steps.factor[who],
                self._steps.spread[who],
            ),
            (judging_s, self.speed.spread[who]),
        )
        seconds, spread = (np.stack(column) for column in zip(*parts, strict=True))
        mean = np.sum(seconds * np.exp(spread**2 / 2), axis=0) + ~is_cut * rest_s
        known = np.isfinite(mean) & (mean > 0)
        if not known.any():
            return None
        variance = np.sum(seconds**2 * np.exp(spread**2) * np.expm1(spread**2), axis=0)
        mean, variance = mean[known], (variance + ~is_cut * rest_variance)[known]
        sigma = np.maximum(np.sqrt(np.log1p(variance / mean**2)), LEAST_SPREAD)
        low_s, middle_s, high_s = _last(np.log(mean) - sigma**2 / 2, sigma)
        width = float(self._width[0])
        return ExpectedRound(
            middle_s * (low_s / middle_s) ** width,
            middle_s,
            middle_s * (high_s / middle_s) ** width,
        )

    def learn(
        self,
        assignments: Assignments,
        priced: Prediction,
        seen: MeasuredRound,
        expected: ExpectedRound | None = None,
    ) -> None:
        """Take in a round.

        Args:
            assignments: what was done, n devices.
            priced: that, at the declared speeds and links.
            seen: what it took.
            expected: what was expected of it; None = nothing was.
        """
        self._learn_width(expected, seen.finish_s)
        who, is_cut = assignments.device, assignments.cut > 0
        judging_s = np.nan_to_num(seen.judging_s)
        beside_s = seen.finish_s - seen.work_s - judging_s - np.nan_to_num(seen.loading_s)
        self.speed.learn(who, priced.compute_s, seen.work_s)
        self.down.learn(who, priced.download_s, _where(~is_cut, seen.download_s))
        self.up.learn(who, priced.upload_s, _where(~is_cut, seen.upload_s))
        self._steps.learn(who, _beside(priced), _where(is_cut, beside_s))
        judged = np.isfinite(seen.judging_s)
        self._judging_s[who[judged]] = seen.judging_s[judged]
        rest_s = _where(~is_cut, beside_s - seen.download_s - seen.upload_s)
        told_s = np.isfinite(rest_s)
        self._learn_rest(who[told_s], np.maximum(rest_s[told_s], 0.0))

    def _learn_width(self, expected: ExpectedRound | None, finish_s: Floats) -> None:
        """Compare a round in which all were done with its interval."""
        if expected is None or not np.isfinite(finish_s).all():
            return
        took_s, width = float(np.max(finish_s)), float(self._width[0])
        end_s = expected.high_s if took_s > expected.middle_s else expected.low_s
        sigma = abs(np.log(end_s / expected.middle_s)) / (_NORMAL * width)
        off = min(abs(np.log(took_s / expected.middle_s)) / sigma, MOST_OFF * width)
        self._width[0] = np.sqrt(width**2 + _NEWEST * (off**2 - width**2))

    def _learn_rest(self, who: Ints, seconds: Floats) -> None:
        """Move mean and variance of each device's rest; a first value stands for both."""
        mean, variance = self._rest_s[:, who]
        is_first = np.isnan(mean)
        off = np.where(is_first, 0.0, seconds - mean)
        self._rest_s[0, who] = np.where(is_first, seconds, mean + _NEWEST * off)
        self._rest_s[1, who] = np.where(
            is_first, (seconds / 2) ** 2, variance + _NEWEST * (off**2 - variance)
        )

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what was learnt, as arrays."""
        parts = {
            f"{name}/{key}": array
            for name, one in self._ratios().items()
            for key, array in one.snapshot().items()
        }
        return {
            **parts,
            "judging_s": self._judging_s.copy(),
            "rest_s": self._rest_s.copy(),
            "width": self._width.copy(),
        }

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot; {} = from the start.

        Raises:
            CheckpointError: if it is not one of as many devices.
        """
        for name, one in self._ratios().items():
            one.restore(under(f"{name}/", arrays))
        for name in ("judging_s", "rest_s", "width") if arrays else ():
            found, own = arrays.get(name), getattr(self, f"_{name}")
            if found is None or found.shape != own.shape:
                raise CheckpointError(f"what was learnt of rounds lacks {name}")
            setattr(self, f"_{name}", np.asarray(found, np.float64).copy())

    def _ratios(self) -> dict[str, LearntRatio]:
        return {"speed": self.speed, "down": self.down, "up": self.up, "steps": self._steps}


def _beside(priced: Prediction) -> Floats:
    """Return what a round takes beside computing."""
    known = np.isfinite(priced.finish_s) & np.isfinite(priced.compute_s)
    found = np.full(len(known), np.inf)
    found[known] = priced.finish_s[known] - priced.compute_s[known]
    return found


def _where(chosen: Bools, seconds: Floats) -> Floats:
    return np.where(chosen, seconds, np.nan)


def _last(mu: Floats, sigma: Floats) -> tuple[float, float, float]:
    """Return quantiles of the largest of independent log-normal variables, by bisection."""
    from scipy.special import ndtr

    goals = np.array([LOW, 0.5, HIGH])
    low = np.full(3, float(np.min(mu - 9 * sigma)))
    high = np.full(3, float(np.max(mu + 9 * sigma)))
    for _ in range(60):
        middle = (low + high) / 2
        is_below = np.prod(ndtr((middle[:, None] - mu) / sigma), axis=1) < goals
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    found = np.exp(high)
    return float(found[0]), float(found[1]), float(found[2])
