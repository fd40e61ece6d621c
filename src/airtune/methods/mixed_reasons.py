"""One line a device that says what a mixed plan tells it, and why not the other kind of line."""

from __future__ import annotations

import numpy as np

from airtune.cost import Prediction
from airtune.methods.mixed_choice import Menus, MixedChoice
from airtune.methods.mixed_lines import MixedLines
from airtune.plan import Assignments, Floats, Ints
from airtune.units import format_bytes, format_seconds

_SLACK = 1e-3


def mixed_reasons(
    menus: Menus, told: Assignments, index: Ints, expected: Prediction, choice: MixedChoice | None
) -> tuple[str, ...]:
    """Return the reasons of a plan.

    Args:
        menus: of this round.
        told: the n devices of the plan.
        index: their lines, shape (n,).
        expected: what each will take.
        choice: of the able ones; None where there are none.
    """
    seen = menus.seen
    links = [spec.name for spec in seen.links.specs]
    able = np.full(len(told), -1, np.int64)
    able[seen.able] = np.arange(seen.able.size)
    other = _others(menus, choice) if choice else ()
    lines = []
    for row, name in enumerate(seen.names):
        link = links[int(seen.links.link[told.device[row]])]
        said = _line(menus.lines, int(index[row]))
        if able[row] < 0:
            lines.append(
                f"{name}: {said}; no rate in this slot, gets none of {link} until it has one"
            )
            continue
        lines.append(
            f"{name}: {said}; {told.share[row]:.2%} of {link}, computes "
            f"{format_seconds(float(expected.compute_s[row]))}, sends "
            f"{format_bytes(float(expected.upload_bytes[row]))}; {other[able[row]]}"
        )
    return tuple(lines)


def _line(lines: MixedLines, line: int) -> str:
    if lines.cut[line]:
        return f"cut {lines.cut[line]}, {lines.codecs[int(lines.codec[line])].label}"
    pruned = f"{lines.pruned[line]:.0%} pruned" if lines.pruned[line] else "whole"
    return f"{pruned}, rank {lines.rank[line]}"


def _others(menus: Menus, choice: MixedChoice) -> tuple[str, ...]:
    """Return what each able device would do otherwise and when it would end, at its own share."""
    lines, index = menus.lines, choice.index
    is_cut = lines.cut[index] > 0
    alone_s = _alone_s(menus, choice.share)
    said = []
    for row in range(index.size):
        kind = lines.whole == is_cut[row]
        there = kind & menus.allowed[row]
        memory = float(menus.seen.of(menus.seen.memory_bytes)[row])
        dense = lines.peak_bytes[0]
        held = f"its {format_bytes(memory)} do not hold the model" if memory < dense else ""
        if not there.any():
            what = "nothing else fits its memory" if is_cut[row] else "it can only train whole"
            said.append((held and is_cut[row] and f"{held}") or what)
            continue
        at = int(np.argmin(np.where(there, alone_s[row], np.inf)))
        late_s = float(alone_s[row, at]) - choice.round_s
        when = (
            f"end {format_seconds(late_s)} after the round" if late_s > _SLACK * choice.round_s
            else "save no time that is worth its rounds"
        )  # fmt: skip
        name = "whole" if is_cut[row] else "cut"
        text = (
            f"{name} it would need {lines.pruned[at]:.0%} pruned and {when}"
            if (is_cut[row] and lines.pruned[at] > 0.0)
            else f"{name} it would {when}"
        )
        said.append(f"{held}; {text}" if held else text)
    return tuple(said)


def _alone_s(menus: Menus, share: Floats) -> Floats:
    """Return when each able device would end on each line at its share, shape (m, k)."""
    mixed = menus.mixed(np.arange(len(menus.lines)), int(menus.lines.rank.max()))
    rate = menus.curves.rate(np.maximum(share, 1e-12))[:, None]
    step_s = mixed.fixed_s + mixed.bits / rate + mixed.backward_s + mixed.down_s + mixed.server_s
    cut_s = mixed.fetch_s + mixed.steps * step_s + mixed.adapter_bits / rate
    return np.where(mixed.whole, mixed.fixed_s + mixed.bits / rate, cut_s)
