"""What every device would do at a given finish time T and given prices of the links.

At price `lambda` a share, device i takes the share that maximises `w_i x_i - lambda z_i`, where
`x_i(z) = (s_i R_i(z) - E_i) / (t_i R_i(z) + D_i)` is the most it can keep and still finish at T
(`s = T - fixed_s`, `t = compute_s`, `E = fixed_bits`, `D = bits`), concave in z. In the interior

    R'(z) / (t R + D)^2 = lambda / (w (s D + t E)),

one equation in the signal-to-noise ratio `u = signal / z`, solved by Newton's method in log-log
scale from the last answer. A device at its least or most kept fraction takes just the share that
needs (Lambert's W). The sum `w x - lambda (z - budget)` bounds the best weighted kept fraction
from above: it is the dual function, and where it falls short of the budget T is proved too soon.

Source: interior stationarity and the dual are this project's; see docs/solvers.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.problem import JointProblem
from airtune.solve.rates import BLOCK, LN2, Curves, log_slope, signal_ratio

_LOG_RATIO = (-27.6, 69.0)
"""Range of ln u: from 1e-12 (rate within 5e-13 of its limit) to 1e30 (no bandwidth at all)."""
_LEAST_SHARE = 18.4
"""ln of an equal share over the least share considered: a hundred-millionth of it."""
_RATIO_STEPS = 40
_WORTH_SPLITTING = 512
"""Devices from which on it pays to go on with those alone that have not arrived."""
_RATIO_TOLERANCE = 3e-5
"""Step in ln u after which Newton's next error is about 1e-9; the dual feels its square."""


Kind = Literal["radio", "air", "alone"]
"""Shannon's law, perhaps with a cap; a measured capacity whose air time is shared; a link of one's own."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The devices of one block of a problem, prepared; every column has shape (n,)."""

    kind: Kind
    rows: Ints | slice
    curves: Curves
    fixed_s: Floats
    compute_s: Floats
    fixed_bits: Floats
    bits: Floats
    weight: Floats
    least_kept: Floats
    most_kept: Floats
    top_rate: Floats
    """Rate as the bandwidth grows without bound, in bit/s; of the whole link where one has it."""
    gain: Floats
    """`D^2 ln 2 / scale`: turns the right-hand side into a function of u alone."""
    burden: Floats
    """`t * top_rate / D`: computation against transmission."""
    most_ratio: Floats
    """ln u at which a device has next to nothing of its link, and so its least kept fraction."""
    kink: Floats | None
    """Share up to which the cap binds; None where no device has one."""


@dataclass(frozen=True, slots=True)
class BestResponse:
    """The answers, and the sums and derivatives that the search for T and prices needs."""

    share: Floats
    kept: Floats
    log_ratio: Floats
    load: Floats
    """Sum of shares on each link, shape (links,)."""
    load_by_price: Floats
    """Derivative of the load by ln(price), at most 0; 0 = nobody on that link is in the interior."""
    load_by_time: Floats
    """Derivative of the load by ln(T)."""
    unmet: Bools
    """Links with a device below the most it may keep, shape (links,)."""
    value: float
    """Weighted sum of kept fractions."""
    value_by_time: float
    """Derivative of the value by ln(T) at the same shares, over the interior."""
    clipped_by_time: Floats
    """Derivative by ln(T) of the shares of those at their least or most, shape (links,), <= 0."""

    def dual_by_time(self, price: Floats) -> float:
        """Return the derivative of the dual function by ln(T) at these prices, at least 0."""
        return self.value_by_time - float(price @ self.clipped_by_time)


@dataclass(slots=True)
class _Sums:
    """Running totals over the blocks of one response."""

    load: Floats
    by_price: Floats
    by_time: Floats
    unmet: Floats
    clipped: Floats
    value: float = 0.0
    value_by_time: float = 0.0


def prepare(problem: JointProblem) -> list[Columns]:
    """Split the devices into blocks of one kind that fit the cache and prepare their columns."""
    even, curves = problem.curves.equal_shares(), problem.curves
    has_air = ~np.isfinite(curves.scale)
    kinds: dict[Kind, Bools] = {
        "radio": ~curves.dedicated & ~has_air,
        "air": ~curves.dedicated & has_air,
        "alone": curves.dedicated,
    }
    blocks = []
    for kind, members in kinds.items():
        rows: Ints | None = None if members.all() else np.flatnonzero(members)
        count = len(problem) if rows is None else rows.shape[0]
        for start in range(0, count, BLOCK):
            cut = slice(start, min(start + BLOCK, count))
            blocks.append(_columns(problem, kind, cut if rows is None else rows[cut], even))
    return blocks


def _columns(problem: JointProblem, kind: Kind, rows: Ints | slice, even: Floats) -> Columns:
    curves = problem.curves.take(rows)
    bits, compute_s = problem.bits[rows], problem.compute_s[rows]
    scale = curves.scale if kind == "radio" else np.ones(bits.shape)
    top_rate = {
        "radio": scale * curves.signal / LN2,
        "air": curves.cap,
        "alone": curves.rate(np.ones(bits.shape)),
    }[kind]
    is_capped = kind == "radio" and bool(np.isfinite(curves.cap).any())
    return Columns(
        kind=kind,
        rows=rows,
        curves=curves,
        fixed_s=problem.fixed_s[rows],
        compute_s=compute_s,
        fixed_bits=problem.fixed_bits[rows],
        bits=bits,
        # A device without data would make every price wrong for it; this weight changes nothing.
        weight=np.maximum(problem.weight[rows], 1e-15),
        least_kept=problem.least_kept[rows],
        most_kept=problem.most_kept[rows],
        top_rate=top_rate,
        gain=bits * bits * LN2 / scale,
        burden=compute_s * top_rate / bits,
        most_ratio=np.log(curves.signal / even[rows]) + _LEAST_SHARE,
        kink=curves.kink() if is_capped else None,
    )


def first_ratio(problem: JointProblem, share: Floats) -> Floats:
    """Return ln u at these shares, shape (n,): where the first response starts."""
    return np.clip(np.log(problem.curves.signal / share), *_LOG_RATIO)


def first_price(problem: JointProblem, share: Floats, kept: Floats, finish_s: float) -> Floats:
    """Return a guess of every link's price, shape (links,), from an answer near the optimum.

    At the optimum devices in the interior all value a share at the price, those that keep the most
    value it higher and those that keep the least lower. The guess is the geometric mean over the
    interior, or over everybody on a link where nobody is.
    """
    curves = problem.curves
    worth = problem.weight * (
        (finish_s - problem.fixed_s) * problem.bits + problem.compute_s * problem.fixed_bits
    )
    cost = problem.compute_s * curves.rate(share) + problem.bits
    log_worth = np.log(np.maximum(worth * curves.slope(share) / cost**2, 1e-300))
    counted = ~curves.dedicated & (problem.weight > 0.0)
    inside = counted & (kept > problem.least_kept) & (kept < problem.most_kept)
    links = curves.budget.shape[0]
    has_inside = np.bincount(curves.link, inside, minlength=links) > 0
    counted = np.where(has_inside[curves.link], inside, counted)
    count = np.bincount(curves.link, counted, minlength=links)
    total = np.bincount(curves.link, np.where(counted, log_worth, 0.0), minlength=links)
    return np.exp(total / np.maximum(count, 1.0))


def respond(
    problem: JointProblem,
    blocks: list[Columns],
    finish_s: float,
    price: Floats,
    log_ratio: Floats,
    *,
    tolerance: float = _RATIO_TOLERANCE,
) -> BestResponse:
    """Return every device's best answer to a finish time and prices.

    Args:
        problem: the joint problem.
        blocks: `prepare(problem)`.
        finish_s: T in seconds; every device must be able to meet it with a whole link.
        price: weighted kept fraction per share, shape (links,), positive.
        log_ratio: ln u of the last response, shape (n,): the warm start.
        tolerance: last step in ln u of the interior's equation; a rough answer proves nothing.
    """
    links = price.shape[0]
    share, kept = np.ones(len(problem)), np.ones(len(problem))
    ratio = log_ratio.copy()
    sums = _Sums(*np.zeros((5, links)))
    for block in blocks:
        if block.kind == "alone":
            kept[block.rows] = _alone_response(block, finish_s, sums)
            continue
        z, x, v = _block_response(block, (finish_s, price, tolerance), ratio[block.rows], sums)
        share[block.rows], kept[block.rows], ratio[block.rows] = z, x, v
    return BestResponse(
        share=share,
        kept=kept,
        log_ratio=ratio,
        load=sums.load,
        load_by_price=sums.by_price,
        load_by_time=sums.by_time,
        unmet=sums.unmet > 0,
        value=sums.value,
        value_by_time=sums.value_by_time,
        clipped_by_time=sums.clipped,
    )


def _block_response(
    block: Columns, asked: tuple[float, Floats, float], log_ratio: Floats, sums: _Sums
) -> tuple[Floats, Floats, Floats]:
    """Answer for one block; adds to `sums` and returns (share, kept, ln u)."""
    finish_s, price, tolerance = asked
    slack = finish_s - block.fixed_s
    worth = block.weight * (slack * block.bits + block.compute_s * block.fixed_bits)
    link_price = price[block.curves.link] if price.shape[0] > 1 else price[0]
    target = link_price / worth
    if block.kind == "air":
        share, by_price = _on_line(block, target)
        rate = block.top_rate * share
    else:
        log_ratio, bend = _solve_ratio(target * block.gain, block, log_ratio, tolerance)
        ratio = np.exp(log_ratio)
        share = block.curves.signal / ratio
        rate = block.top_rate * np.log1p(ratio) / ratio
        by_price = -share / bend
    if block.kink is not None:
        share, by_price = _with_cap(block, block.kink, target, share, by_price)
        rate = block.curves.rate(share)
    cost = block.compute_s * rate + block.bits
    kept = (slack * rate - block.fixed_bits) / cost
    by_time = by_price * (-finish_s * block.weight * block.bits / worth)
    value_by_time = block.weight * finish_s * rate / cost
    below = kept < block.most_kept
    clipped = np.flatnonzero(~below | (kept <= block.least_kept))
    if clipped.size:
        kept = np.minimum(np.maximum(kept, block.least_kept), block.most_kept)
        share[clipped], change = _needed_share(block, clipped, finish_s, kept[clipped])
        by_time[clipped] = by_price[clipped] = value_by_time[clipped] = 0.0
        ends = block.curves.link[clipped]
        _add(sums.by_time, ends, change)
        _add(sums.clipped, ends, change)
    link = block.curves.link
    _add(sums.load, link, share)
    _add(sums.by_price, link, by_price)
    _add(sums.by_time, link, by_time)
    _add(sums.unmet, link, below)
    sums.value += float(block.weight @ kept)
    sums.value_by_time += float(value_by_time.sum())
    return share, kept, log_ratio


def _add(total: Floats, link: Ints, column: Floats | Bools) -> None:
    """Add a column's sums on every link to a running total, which it changes."""
    if total.shape[0] == 1:
        total += column.sum()
    else:
        total += np.bincount(link, column, minlength=total.shape[0])


def _solve_ratio(
    target: Floats, block: Columns, log_ratio: Floats, tolerance: float
) -> tuple[Floats, Floats]:
    """Solve `q(u) / (1 + burden ln(1+u)/u)^2 = target`; return ln u and the slope in log-log scale.

    Most devices are there after two or three steps; where few are left, the rest go on alone.
    """
    burden = block.burden
    high = np.minimum(block.most_ratio, _LOG_RATIO[1])
    bend, done = np.empty(log_ratio.shape), log_ratio.copy()
    rows: Ints | None = None
    for _ in range(_RATIO_STEPS):
        u = np.exp(log_ratio)
        above = 1.0 + u
        log_u1 = np.log1p(u)
        q = log_slope(u, log_u1)
        spread = u + burden * log_u1
        slope = u * u / (above * above * q) + 2.0 * burden * q / spread
        part = u / spread
        value = q * part * part
        # The left side goes like u^2 where it is small and like ln(u) where it is large.
        ratio = target / value
        ahead = np.log(ratio)
        ahead += (value > 1.0) * (ratio - 1.0 - ahead)
        fresh = np.minimum(np.maximum(log_ratio + ahead / slope, _LOG_RATIO[0]), high)
        moved = np.abs(fresh - log_ratio)
        log_ratio = fresh
        if rows is None:
            done, bend = fresh, slope
        else:
            done[rows], bend[rows] = fresh, slope
        if float(moved.max()) <= tolerance:
            break
        if moved.shape[0] < _WORTH_SPLITTING:
            continue
        left = np.flatnonzero(moved > tolerance)
        if left.shape[0] < moved.shape[0] // 2:
            rows = left if rows is None else rows[left]
            log_ratio, target, burden, high = (
                log_ratio[left],
                target[left],
                burden[left],
                high[left],
            )
    return done, bend


def _on_line(block: Columns, target: Floats) -> tuple[Floats, Floats]:
    """Return share and its derivative by ln(price) where the rate is a line: closed."""
    # Without a cap the stand-in is never chosen.
    cap = np.where(np.isfinite(block.curves.cap), block.curves.cap, 1.0)
    time = np.maximum(block.compute_s, 1e-12 * block.bits / cap)
    root = np.sqrt(cap / target)
    line = np.maximum((root - block.bits) / (time * cap), 0.0)
    return line, np.where(line > 0.0, -0.5 * root / (time * cap), 0.0)


def _with_cap(
    block: Columns, kink: Floats, target: Floats, share: Floats, by_price: Floats
) -> tuple[Floats, Floats]:
    """Put the capped branch below the kink: there the rate is a line."""
    line, slope = _on_line(block, target)
    # Without a cap the kink is at 0.
    on_line = line < kink
    at_kink = ~on_line & (share <= kink)
    share = np.where(on_line, line, np.maximum(share, np.minimum(kink, 1e300)))
    return share, np.where(at_kink, 0.0, np.where(on_line, slope, by_price))


def _needed_share(
    block: Columns, rows: Ints, finish_s: float, kept: Floats
) -> tuple[Floats, Floats]:
    """Return the share that just meets T at a fixed kept fraction, and its derivative by ln T."""
    left_s = finish_s - block.fixed_s[rows] - block.compute_s[rows] * kept
    rate = (block.fixed_bits[rows] + block.bits[rows] * kept) / left_s
    if block.kind == "air":
        share = rate / block.top_rate[rows]
        return share, -finish_s * share / left_s
    if block.kink is not None:
        curves = block.curves.take(rows)
        share = curves.share_for(rate)
        return share, -finish_s * rate / left_s / curves.slope(share)
    signal, top_rate = block.curves.signal[rows], block.top_rate[rows]
    fraction = rate / top_rate
    ratio = signal_ratio(fraction)
    # ln(1 + u) = fraction u is what the ratio was solved for
    slope = top_rate / signal * log_slope(ratio, fraction * ratio)
    return signal / ratio, -finish_s * rate / left_s / slope


def _alone_response(block: Columns, finish_s: float, sums: _Sums) -> Floats:
    """Return what devices that have a link to themselves keep: what T allows, at no price."""
    growth = block.compute_s + block.bits / block.top_rate
    free = (finish_s - block.fixed_s - block.fixed_bits / block.top_rate) / growth
    kept = np.minimum(np.maximum(free, block.least_kept), block.most_kept)
    sums.value += float(block.weight @ kept)
    sums.value_by_time += float((block.weight * finish_s / growth)[kept == free].sum())
    return kept
