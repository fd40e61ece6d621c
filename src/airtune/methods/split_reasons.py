"""The reason of a split plan for each device."""

from __future__ import annotations

import numpy as np

from airtune.cost import Prediction, SplitCost
from airtune.methods.seen import Seen
from airtune.plan import Assignments
from airtune.units import format_bytes, format_seconds


def split_reasons(
    blocks: int,
    seen: Seen,
    assignments: Assignments,
    expected: Prediction,
    cost: SplitCost,
    *,
    why: str,
) -> tuple[str, ...]:
    """Return the reasons of a plan in which every device is cut somewhere before `blocks`."""
    link = [spec.name for spec in seen.links.specs]
    lines = []
    for row, name in enumerate(seen.names):
        cut, part = int(assignments.cut[row]), float(assignments.share[row])
        codec = assignments.codecs[int(assignments.codec_index[row])].label
        link_name = link[int(seen.links.link[assignments.device[row]])]
        if not np.isfinite(expected.finish_s[row]):
            lines.append(
                f"{name}: no rate in this slot; gets a share of {link_name} when its rate is above 0"
            )
            continue
        lines.append(
            f"{name}: cut after block {cut} of {blocks}, {codec} ({why}); "
            f"{part:.2%} of {link_name}; computes {format_seconds(float(expected.compute_s[row]))}, "
            f"sends {format_bytes(float(cost.up_bytes[row]))} a step"
        )
    return tuple(lines)
