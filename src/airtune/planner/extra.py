"""What a run costs beside its rounds, and what its caps make of them: staging, bytes of a month."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from airtune.cost import base_bytes, transfer_s
from airtune.errors import ModelError
from airtune.fleet import Fleet
from airtune.fleet.rates import downlink_bps
from airtune.model.gguf.source import is_gguf
from airtune.model.part import group_of
from airtune.plan import Floats, Problem
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.build import base_folder
from airtune.units import format_bytes, format_seconds
from airtune.wire.contents import contents_of

_NAMED = 6
"""Devices that are listed one by one; of more, the fastest and the slowest."""


def staging_bytes(recipe: Recipe, problem: Problem) -> float:
    """Return what a device that lacks the base fetches of it; 0 where the server hands none out.

    The bytes of the files where they are on this machine, or else the model's at its precision.
    """
    if recipe.model.stage == "none" or recipe.model.source == EMBEDDED:
        return 0.0
    if is_gguf(recipe.model.source):
        return base_bytes(problem.shape, problem.workload)
    try:
        contents = contents_of(base_folder(recipe), group_of)
        return float(sum(content.size_bytes for content in contents))
    except ModelError:
        return base_bytes(problem.shape, problem.workload)


def staging_s(fleet: Fleet, size_bytes: float, *, rounds: int) -> Floats:
    """Return how long each device takes to fetch, shape (devices,); median over drawn links.

    Args:
        fleet: devices and links.
        size_bytes: to fetch.
        rounds: whose links are drawn.
    """
    everyone = np.arange(len(fleet))
    rates = np.stack([
        downlink_bps(fleet.links_at(number, 0, 0.0), everyone) for number in range(rounds)
    ])  # fmt: skip
    return transfer_s(np.full(len(fleet), size_bytes), np.median(rates, axis=0))


def staging_lines(names: Sequence[str], size_bytes: float, seconds: Floats) -> list[str]:
    """Return in words what fetching the base takes each device."""
    if not size_bytes:
        return []
    order = np.argsort(seconds, kind="stable")
    shown = range(len(names)) if len(names) <= _NAMED else (order[0], order[-1])
    each = ", ".join(f"{names[index]} {format_seconds(float(seconds[index]))}" for index in shown)
    which = "" if len(names) <= _NAMED else f", the fastest and the slowest of {len(names)}"
    return [
        f"a device that lacks the base fetches {format_bytes(size_bytes)} of it from the server, once "
        f"and not in the rounds' times: {each} with its downlink to itself{which}"
    ]


def cap_lines(
    names: Sequence[str], round_bytes: Floats, problem: Problem, staged: float, *, part: float = 1.0
) -> list[str]:
    """Return in words how many rounds a month's bytes hold.

    Args:
        names: of the devices.
        round_bytes: what each receives and sends in a round, (devices,); NaN = it takes no part.
        problem: gives the cap and the number of rounds.
        staged: bytes of the base, fetched in the first month.
        part: of the rounds in which a device is asked, in (0, 1].
    """
    cap = problem.device_bytes_per_month
    if cap is None or not np.isfinite(round_bytes).any():
        return []
    most = int(np.nanargmax(round_bytes))
    held = max(int((cap - staged) // round_bytes[most]), 0)
    asked = math.ceil(problem.rounds * part)
    if held >= asked:
        return []
    return [
        f"{format_bytes(cap)} a device and month hold {held} of {asked} rounds of "
        f"{names[most]}, which takes {format_bytes(float(round_bytes[most]))} in each; a device is "
        "left out for the rest of a month (limits.device_bytes_per_month)"
    ]
