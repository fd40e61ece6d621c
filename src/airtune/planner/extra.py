"""What a run costs beside its rounds, and what its caps make of them: staging, bytes of a month."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from airtune.cost import base_bytes, blocks_held, cut_weights, transfer_s
from airtune.errors import ModelError
from airtune.fleet import Fleet
from airtune.fleet.rates import downlink_bps
from airtune.model.gguf.source import is_gguf
from airtune.model.part import group_of, held_groups
from airtune.plan import Floats, Ints, Problem
from airtune.planner.sample import Draws
from airtune.recipe import EMBEDDED, Recipe
from airtune.run import Chosen
from airtune.run.load import base_folder
from airtune.units import format_bytes, format_seconds
from airtune.wire.contents import contents_of

_NAMED = 6
"""Devices that are listed one by one; of more, the fastest and the slowest."""


def held_blocks(problem: Problem, fleet: Fleet, chosen: Chosen) -> Ints:
    """Return how many blocks each device holds, shape (devices,): all, unless the method may cut."""
    if chosen.is_control or not chosen.method.may_cut:
        return np.full(len(fleet), problem.shape.blocks, np.int64)
    return blocks_held(problem, fleet.memory_bytes, cut=chosen.method.cut)


def staging_bytes(recipe: Recipe, problem: Problem, blocks: Ints) -> Floats:
    """Return what each device fetches of the base where it lacks it; 0 where none is handed out.

    The bytes of the files where they are on this machine, or else the model's at its precision.

    Args:
        recipe: says where the base is.
        problem: model and workload.
        blocks: that each device holds, shape (devices,).
    """
    shape = problem.shape
    if recipe.model.stage == "none" or recipe.model.source == EMBEDDED:
        return np.zeros(len(blocks))
    sizes = {} if is_gguf(recipe.model.source) else _file_bytes(recipe)
    if not sizes:
        whole = base_bytes(shape, problem.workload)
        parts = cut_weights(shape, problem.workload, np.arange(1, shape.blocks))
        return np.asarray(np.append(parts, whole)[blocks - 1], np.float64)
    output = problem.work.labels == "stay"
    found = {
        held: sum(sizes.values())
        if held == shape.blocks
        else sum(sizes.get(group, 0) for group in {"", *held_groups(held, output=output)})
        for held in set(blocks.tolist())
    }
    return np.array([float(found[held]) for held in blocks.tolist()])


def _file_bytes(recipe: Recipe) -> dict[str, int]:
    """Return the bytes of a base's files by group; {} where they are not on this machine."""
    sizes: dict[str, int] = {}
    try:
        for content in contents_of(base_folder(recipe), group_of):
            sizes[content.group] = sizes.get(content.group, 0) + content.size_bytes
    except ModelError:
        return {}
    return sizes


def staging_s(fleet: Fleet, size_bytes: Floats, draws: Draws) -> Floats:
    """Return how long each device takes to fetch, shape (devices,); median over drawn links.

    Args:
        fleet: devices and links.
        size_bytes: to fetch, shape (devices,).
        draws: by which links are drawn.
    """
    everyone = np.arange(len(fleet))
    rates = np.stack(
        [
            downlink_bps(fleet.links_at(number, 0, begin_s), everyone)
            for number, begin_s in zip(draws.numbers, draws.begin_s(fleet.trace_s), strict=True)
        ]
    )
    return transfer_s(size_bytes, np.median(rates, axis=0))


def staging_lines(names: Sequence[str], size_bytes: Floats, seconds: Floats) -> list[str]:
    """Return in words what fetching the base takes each device."""
    if not size_bytes.any():
        return []
    order = np.argsort(seconds, kind="stable")
    shown = range(len(names)) if len(names) <= _NAMED else (order[0], order[-1])
    is_alike = size_bytes.min() == size_bytes.max()
    each = ", ".join(
        f"{names[index]} {'' if is_alike else format_bytes(float(size_bytes[index])) + ' in '}"
        f"{format_seconds(float(seconds[index]))}"
        for index in shown
    )
    what = f"{format_bytes(float(size_bytes[0]))}" if is_alike else "its blocks"
    which = "" if len(names) <= _NAMED else f" (fastest and slowest of {len(names)})"
    return [
        f"a device without the base model downloads {what} from the server once, not counted in "
        f"round times: {each} with the whole downlink{which}"
    ]


def holding_lines(names: Sequence[str], blocks: Ints, total: int) -> list[str]:
    """Return in words who holds the whole model and judges it, where some hold a part.

    >>> holding_lines(["a", "b"], np.array([4, 1]), 4)
    ['a holds the whole model and evaluates it; b holds only the blocks below its cut and evaluates nothing']
    """
    whole = [name for name, held in zip(names, blocks.tolist(), strict=True) if held == total]
    rest = [name for name, held in zip(names, blocks.tolist(), strict=True) if held < total]
    if not rest:
        return []
    if not whole:
        return ["no device holds the whole model: only the server evaluates it, on its test set"]
    return [
        f"{_listed(whole, 'holds')} the whole model and evaluates it; {_listed(rest, 'holds')} "
        "only the blocks below its cut and evaluates nothing"
    ]


def _listed(names: Sequence[str], verb: str) -> str:
    if len(names) == 1:
        return f"{names[0]} {verb}"
    return f"each of {', '.join(names) if len(names) <= _NAMED else f'{len(names)} devices'} {verb}"


def cap_lines(
    names: Sequence[str],
    round_bytes: Floats,
    problem: Problem,
    staged: Floats,
    *,
    part: float = 1.0,
) -> list[str]:
    """Return in words how many rounds a month's bytes hold.

    Args:
        names: of the devices.
        round_bytes: what each receives and sends in a round, (devices,); NaN = it takes no part.
        problem: gives the cap and the number of rounds.
        staged: bytes of the base that each fetches in the first month, (devices,).
        part: of the rounds in which a device is asked, in (0, 1].
    """
    cap = problem.device_bytes_per_month
    if cap is None or not np.isfinite(round_bytes).any():
        return []
    most = int(np.nanargmax(round_bytes))
    held = max(int((cap - staged[most]) // round_bytes[most]), 0)
    asked = math.ceil(problem.rounds * part)
    if held >= asked:
        return []
    return [
        f"{format_bytes(cap)} a month (limits.device_bytes_per_month) is enough for {held} of {asked} "
        f"rounds of {names[most]}, which needs {format_bytes(float(round_bytes[most]))} in each; a "
        "device over the limit is left out until the month ends"
    ]
