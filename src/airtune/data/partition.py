"""Dealing rows out to devices: evenly, by a Dirichlet draw a label, or by label shards."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from airtune.data.spec import DataSpec
from airtune.errors import DataError
from airtune.plan import Ints


@dataclass(frozen=True, slots=True)
class Parts:
    """Which rows a device holds."""

    rows: tuple[Ints, ...]
    """One sorted array a device."""
    moved: int
    """Rows moved from the largest devices to those below the minimum."""


def partition(groups: Ints, devices: int, *, spec: DataSpec, random: np.random.Generator) -> Parts:
    """Deal rows out so that every row is on one device and every device has `spec.min_rows`.

    iid: at random, sizes differ by at most one · dirichlet: every group is divided by its own
    draw from Dir(alpha, ..., alpha) over the devices · shards: rows sorted by group are cut into
    `devices * shards` pieces and every device gets `shards` of them. A device that a draw leaves
    below the minimum gets rows, at random, of the device that has most at that moment; `moved`
    says how many.

    Args:
        groups: label, group or cluster of every row, shape (rows,).
        devices: how many devices, at least 1.
        spec: the kind of partition and its settings.
        random: source of all draws.

    Raises:
        DataError: if there are too few rows; the first device left short is named.

    Source: Dirichlet by label from Hsu et al. 2019 (arXiv:1909.06335) as used by Li et al. 2022;
    shards from McMahan et al. 2017, section 3.
    """
    rows = groups.shape[0]
    if rows < devices * spec.min_rows:
        raise DataError(
            f"empty partition: {rows} rows cannot give each of {devices} devices {spec.min_rows}, "
            f"device {rows // spec.min_rows} would be the first left short; use at most "
            f"{rows // spec.min_rows} devices or more rows, or lower `data.min_rows`"
        )
    owner = _DEALERS[spec.partition](groups, devices, spec, random)
    moved = _top_up(owner, devices, spec.min_rows, random)
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(devices + 1))
    parts = tuple(order[low:high] for low, high in itertools.pairwise(edges))
    return Parts(parts, moved)


def _iid(groups: Ints, devices: int, spec: DataSpec, random: np.random.Generator) -> Ints:
    return random.permutation(groups.shape[0]) % devices


def _dirichlet(groups: Ints, devices: int, spec: DataSpec, random: np.random.Generator) -> Ints:
    owner = np.zeros(groups.shape[0], np.int64)
    for group in np.unique(groups):
        rows = random.permutation(np.flatnonzero(groups == group))
        shares = random.dirichlet(np.full(devices, spec.alpha))
        edges = np.rint(np.cumsum(shares) * len(rows)).astype(np.int64)[:-1]
        owner[rows] = np.searchsorted(edges, np.arange(len(rows)), side="right")
    return owner


def _shards(groups: Ints, devices: int, spec: DataSpec, random: np.random.Generator) -> Ints:
    shuffled = random.permutation(groups.shape[0])
    order = shuffled[np.argsort(groups[shuffled], kind="stable")]
    dealt = random.permutation(devices * spec.shards) % devices
    owner = np.zeros(groups.shape[0], np.int64)
    for device, rows in zip(dealt.tolist(), np.array_split(order, len(dealt)), strict=True):
        owner[rows] = device
    return owner


_DEALERS: Mapping[str, Callable[[Ints, int, DataSpec, np.random.Generator], Ints]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
}


def _top_up(owner: Ints, devices: int, minimum: int, random: np.random.Generator) -> int:
    """Move rows into devices below the minimum, in place; return how many."""
    sizes = np.bincount(owner, minlength=devices)
    short = np.flatnonzero(sizes < minimum)
    if not len(short):
        return 0
    order = random.permutation(owner.shape[0])
    order = order[np.argsort(owner[order], kind="stable")]
    # Rows are handed out from the end of each giver's shuffled list.
    held = [rows.tolist() for rows in np.split(order, np.cumsum(sizes)[:-1])]
    givers = [(-len(rows), device) for device, rows in enumerate(held) if len(rows) > minimum]
    heapq.heapify(givers)
    moved = 0
    for device in short.tolist():
        for _ in range(minimum - int(sizes[device])):
            _, giver = heapq.heappop(givers)
            owner[held[giver].pop()] = device
            moved += 1
            if len(held[giver]) > minimum:
                heapq.heappush(givers, (-len(held[giver]), giver))
    return moved


def cluster_by_length(lengths: Ints, count: int = 10) -> tuple[Ints, tuple[str, ...]]:
    """Return the tenth, by length in tokens, that every row falls into, and the tenths' names."""
    edges = np.unique(np.quantile(lengths, np.arange(1, count) / count))
    groups = np.searchsorted(edges, lengths, side="right")
    return groups, tuple(f"length {index}" for index in range(len(edges) + 1))


def cluster_by_first_word(texts: list[str], count: int = 10) -> tuple[Ints, tuple[str, ...]]:
    """Return a cluster for each of the `count - 1` most frequent first words, and one for the rest.

    >>> cluster_by_first_word(["How a", "how b", "Why c", "Who d"], count=2)
    (array([0, 0, 1, 1]), ('how', 'other'))
    """
    first = [text.split(None, 1)[0].lower() if text.strip() else "" for text in texts]
    words, tallies = np.unique(np.array(first), return_counts=True)
    # np.unique sorts, and a stable sort by tally keeps the alphabet among equals
    frequent = words[np.argsort(-tallies, kind="stable")][: count - 1].tolist()
    place = {word: index for index, word in enumerate(frequent)}
    groups = np.array([place.get(word, len(frequent)) for word in first], np.int64)
    return groups, (*frequent, "other")
