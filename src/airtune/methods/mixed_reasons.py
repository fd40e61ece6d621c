"""The reason of a mixed plan for each device, and why not the other way to train."""

from __future__ import annotations

import numpy as np

from airtune.cost import Prediction
from airtune.methods.mixed_choice import Menus, MixedChoice
from airtune.methods.mixed_lines import MixedLines, line_label
from airtune.plan import Assignments, Floats, Ints
from airtune.units import format_bytes, format_seconds

_SLACK = 1e-3


def mixed_reasons(
    menus: Menus,
    assignments: Assignments,
    index: Ints,
    expected: Prediction,
    choice: MixedChoice | None,
) -> tuple[str, ...]:
    """Return the reasons of a plan.

    Args:
        menus: of this round.
        assignments: the n devices of the plan.
        index: their lines, shape (n,).
        expected: what each will take.
        choice: of the able ones; None where there are none.
    """
    seen = menus.seen
    links = [spec.name for spec in seen.links.specs]
    able = np.full(len(assignments), -1, np.int64)
    able[seen.able] = np.arange(seen.able.size)
    other = _others(menus, choice) if choice else ()
    lines = []
    for row, name in enumerate(seen.names):
        link = links[int(seen.links.link[assignments.device[row]])]
        said = line_label(menus.lines, int(index[row]))
        if able[row] < 0:
            lines.append(
                f"{name}: {said}; no rate in this slot; gets a share of {link} when its rate is above 0"
            )
            continue
        lines.append(
            f"{name}: {said}; {assignments.share[row]:.2%} of {link}, computes "
            f"{format_seconds(float(expected.compute_s[row]))}, sends "
            f"{format_bytes(float(expected.upload_bytes[row]))}; {other[able[row]]}"
        )
    return tuple(lines)


def _others(menus: Menus, choice: MixedChoice) -> tuple[str, ...]:
    """Return why each able device is not told the other kind of line, at its own share."""
    lines, seen = menus.lines, menus.seen
    alone_s, limit_s = _alone_s(menus, choice.share), choice.round_s * (1.0 + _SLACK)
    memory, dense = seen.of(seen.memory_bytes), float(lines.peak_bytes[0])
    said = []
    for row, line in enumerate(choice.index.tolist()):
        is_cut = bool(lines.cut[line])
        there = np.flatnonzero((lines.whole == is_cut) & menus.allowed[row])
        lacks = memory[row] < dense and bool(lines.whole[0])
        parts = (
            [f"the whole model does not fit its {format_bytes(float(memory[row]))}"]
            if lacks
            else []
        )
        if there.size:
            parts.append(_other(lines, there, alone_s[row], limit_s))
        elif not parts:
            parts.append("no other choice is possible")
        said.append("; ".join(parts))
    return tuple(said)


def _other(lines: MixedLines, there: Ints, alone_s: Floats, limit_s: float) -> str:
    """Say what a device could do of the other kind of line: least pruned in time, or soonest."""
    kind = "without a cut" if lines.whole[there[0]] else "with a cut"
    in_time = there[alone_s[there] <= limit_s]
    if not in_time.size:
        at = int(there[np.argmin(alone_s[there])])
        even = f", even with {lines.pruned[at]:.0%} pruned" if lines.pruned[at] else ""
        return f"{kind} it would finish {format_seconds(float(alone_s[at]) - limit_s)} later{even}"
    at = int(in_time[np.argmin(lines.pruned[in_time])])
    if lines.pruned[at]:
        return f"{kind} it would have to prune {lines.pruned[at]:.0%} to finish in time"
    return f"{kind} it would finish in time too, without a gain for the fleet"


def _alone_s(menus: Menus, share: Floats) -> Floats:
    """Return when each able device would end on each line at its share, shape (m, k)."""
    mixed = menus.mixed(np.arange(len(menus.lines)), int(menus.lines.rank.max()))
    rate = menus.curves.rate(np.maximum(share, 1e-12))[:, None]
    step_s = mixed.fixed_s + mixed.bits / rate + mixed.backward_s + mixed.down_s + mixed.server_s
    cut_s = mixed.fetch_s + mixed.steps * step_s + mixed.adapter_bits / rate
    return np.where(mixed.whole, mixed.fixed_s + mixed.bits / rate, cut_s)
