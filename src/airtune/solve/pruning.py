"""The pruning block: the least common finish time when the shares are given.

For given shares every device's time is a line in its kept fraction, `e_i + m_i x_i`, so the most it
may keep at a finish time T is `clip((T - e_i) / m_i, least, most)`. The weighted sum of these is
concave and piecewise linear in T; Newton's method from the left meets its budget exactly after
finitely many pieces.

Source: the pruning block of arXiv 2602.01024 (reconstructed).
"""

from __future__ import annotations

import numpy as np

from airtune.plan import Floats
from airtune.solve.problem import SLACK, JointProblem

_MOST_STEPS = 500


def prune_min_max(problem: JointProblem, share: Floats) -> tuple[Floats, float]:
    """Return the kept fractions, shape (n,), and the least finish time in seconds they allow."""
    rate = problem.curves.rate(share)
    start = problem.fixed_s + problem.fixed_bits / rate
    growth = np.maximum(problem.compute_s + problem.bits / rate, np.finfo(float).tiny)
    finish = float(np.max(start + growth * problem.least_kept))
    needed = problem.least_value - SLACK * max(1.0, abs(problem.least_value))
    pace = problem.weight / growth
    for _ in range(_MOST_STEPS):
        kept = np.minimum((finish - start) / growth, problem.most_kept)
        short = needed - float(np.sum(problem.weight * kept))
        climb = float(np.sum(pace[kept < problem.most_kept]))
        if short <= 0.0 or climb <= 0.0:
            break
        finish += short / climb
    return np.maximum(kept, problem.least_kept), finish
