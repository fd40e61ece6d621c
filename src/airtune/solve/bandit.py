"""Smooth upper confidence bounds over a square that refines itself where it pays.

Every device plays a point (ratio, log2 rank), both scaled to [0, 1]. The square is partitioned
into boxes, the leaves of a tree; playing a box means playing its centre. The index of box j is

    U_j = mean_j + explore * sqrt(2 ln n / n_j) + smooth * shrink^depth_j

with discounted trial counts n_j; the last term bounds how much the reward can vary inside the box
(its smoothness). Boxes nobody has tried come first. A box tried often enough is split across its
longer side and its halves inherit half of its memory each.

One private bandit a device learns too slowly for the rounds a run has. Statistics belong to a
group of devices that behave alike, found from what was observed (`behave_alike`), never from what
a device declares; a device that slows down joins another group and what that group knows. Within a
round the devices of a group choose one after another, each counting the choices before it as
trials without a reward, so that they spread out. Private bandits are groups of one.

Source: FedSpine (arXiv 2501.02438) names the smooth bound, the partition and its refinement;
the formulas are reconstructed after hierarchical optimistic optimisation (Bubeck et al. 2011).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.plan import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class BanditSettings:
    """How boldly to explore, how fast to forget, how finely to divide."""

    explore: float = 0.05
    discount: float = 0.98
    smooth: float = 0.05
    shrink: float = 0.5
    split_after: float = 10.0
    """Discounted trials, times 2^depth, after which a box is split."""
    narrowest: float = 0.13
    """A side shorter than this is not split again."""


@dataclass(frozen=True, slots=True)
class Bandit:
    """The boxes and what was learnt of them; all arrays, replaceable as a whole.

    `low` and `high` have shape (boxes, 2); `depth` (boxes,); `trials` and `reward` (sums), both
    discounted, have shape (groups, boxes).
    """

    low: Floats
    high: Floats
    depth: Ints
    trials: Floats
    reward: Floats

    @property
    def centre(self) -> Floats:
        """The point that stands for each box, shape (boxes, 2)."""
        return 0.5 * (self.low + self.high)


def start(groups: int) -> Bandit:
    """Return the bandit that knows nothing: four boxes."""
    corner = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    nothing = np.zeros((groups, 4))
    return Bandit(corner, corner + 0.5, np.zeros(4, np.int64), nothing, nothing.copy())


def choose(
    bandit: Bandit,
    group: Ints,
    settings: BanditSettings,
    *,
    allowed: Bools,
    generator: np.random.Generator,
) -> Ints:
    """Return the box each device plays, shape (devices,).

    Args:
        bandit: what was learnt so far.
        group: shape (devices,); whose statistics each device shares.
        settings: the dials.
        allowed: shape (devices, boxes); at least one a device.
        generator: breaks ties and orders the devices of a group.
    """
    chosen = np.zeros(group.size, np.int64)
    for member in np.unique(group):
        devices = np.flatnonzero(group == member)
        trials = bandit.trials[member].copy()
        mean = bandit.reward[member] / np.maximum(trials, 1e-12)
        tie = generator.random((devices.size, trials.size)) * 1e-9
        for row, device in enumerate(generator.permutation(devices)):
            index = _bounds(bandit, mean, trials, settings) + tie[row]
            index = np.where(allowed[device], index, -np.inf)
            best = int(np.argmax(index))
            chosen[device] = best
            trials[best] += 1.0
    return chosen


def _bounds(bandit: Bandit, mean: Floats, trials: Floats, settings: BanditSettings) -> Floats:
    with np.errstate(divide="ignore"):
        spread = np.sqrt(2.0 * np.log(max(trials.sum(), 2.0)) / trials)
    bound = mean + settings.explore * spread + settings.smooth * settings.shrink**bandit.depth
    return np.where(trials < 1e-9, np.inf, bound)


def learn(
    bandit: Bandit, group: Ints, settings: BanditSettings, *, box: Ints, reward: Floats
) -> Bandit:
    """Return the bandit after a round, refined where a box has been tried often enough.

    Args:
        bandit: what was known before.
        group: shape (devices,); as it was when the devices chose.
        settings: the dials.
        box: shape (devices,); the box each device played, -1 where it did not.
        reward: shape (devices,); in [0, 1], ignored where `box` is -1.
    """
    trials, total = bandit.trials * settings.discount, bandit.reward * settings.discount
    played = np.flatnonzero(box >= 0)
    np.add.at(trials, (group[played], box[played]), 1.0)
    np.add.at(total, (group[played], box[played]), reward[played])
    return refine(replace(bandit, trials=trials, reward=total), settings)


def refine(bandit: Bandit, settings: BanditSettings) -> Bandit:
    """Split every box that was tried often enough and is not yet narrow."""
    side = bandit.high - bandit.low
    tried = bandit.trials.sum(axis=0) >= settings.split_after * 2.0**bandit.depth
    ripe = np.flatnonzero(tried & (side.max(axis=1) >= 2.0 * settings.narrowest))
    if ripe.size == 0:
        return bandit
    axis = np.argmax(side[ripe], axis=1)
    middle = bandit.centre[ripe, axis]
    rows = np.arange(ripe.size)
    low, high, depth = bandit.low.copy(), bandit.high.copy(), bandit.depth.copy()
    upper_low, upper_high = low[ripe].copy(), high[ripe].copy()
    upper_low[rows, axis] = middle
    high[ripe, axis] = middle
    depth[ripe] += 1
    trials, reward = bandit.trials.copy(), bandit.reward.copy()
    trials[:, ripe] *= 0.5
    reward[:, ripe] *= 0.5
    return Bandit(
        low=np.vstack([low, upper_low]),
        high=np.vstack([high, upper_high]),
        depth=np.concatenate([depth, depth[ripe]]),
        trials=np.hstack([trials, trials[:, ripe]]),
        reward=np.hstack([reward, reward[:, ripe]]),
    )


def behave_alike(observed: Floats, groups: int) -> Ints:
    """Return the group of each device, shape (n,) from one observed figure each (smallest first).

    One-dimensional k-means on the logarithm, started at the quantiles; deterministic. Devices not
    yet observed (NaN) join the middle group.

    Args:
        observed: shape (n,), positive, for instance seconds per unit of work; NaN = unknown.
        groups: how many groups at most, at least 1.

    >>> behave_alike(np.array([1.0, 1.1, 9.0, 10.0]), 2).tolist()
    [0, 0, 1, 1]
    """
    known = np.isfinite(observed) & (observed > 0.0)
    label = np.full(observed.size, (groups - 1) // 2, np.int64)
    if not known.any():
        return label
    value = np.log(observed[known])
    centre = np.unique(np.quantile(value, (np.arange(groups) + 0.5) / groups))
    for _ in range(25):
        nearest = np.abs(value[:, None] - centre[None, :]).argmin(axis=1)
        count = np.bincount(nearest, minlength=centre.size)
        moved = np.bincount(nearest, value, centre.size)[count > 0] / count[count > 0]
        if moved.size == centre.size and np.allclose(moved, centre):
            break
        centre = np.sort(moved)
    label[known] = np.abs(value[:, None] - centre[None, :]).argmin(axis=1)
    return label
