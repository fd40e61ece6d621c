"""What a bandit knows and does: its boxes and what they paid, its choices, its gain on controls.

Read from the notes of the rounds (`tree`, `played`, `reward_before`, see `methods/fedspine`): a
method that writes them is shown, whatever its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airtune.plan import Floats, Ints
from airtune.report.curves import colour_index
from airtune.report.figure import Figure, axis, colour_of, dash_of, label, layout
from airtune.report.stats import smooth
from airtune.report.study import RunSeries, Study, column

_SIDES = 4
"""Columns of a box before those of the groups: its low and high ratio, its low and high rank."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The boxes as they stood when the last round chose."""

    sides: Floats
    """Shape (boxes, 4), in [0, 1]."""
    trials: Floats
    """Discounted, shape (groups, boxes)."""
    paid: Floats
    """Mean reward, shape (groups, boxes)."""


def last_tree(run: RunSeries) -> Tree | None:
    """Return the last recorded tree of a run; None where nothing was learnt."""
    rows = [
        row["notes"]["tree"] for row in run.record.rounds if (row.get("notes") or {}).get("tree")
    ]
    if not rows:
        return None
    table = np.array(rows[-1], float)
    known = table[:, _SIDES:].reshape(table.shape[0], -1, 2)
    return Tree(table[:, :_SIDES], known[:, :, 0].T, known[:, :, 1].T)


def tree_figures(run: RunSeries) -> dict[str, Figure]:
    """Return the square of each group with what its boxes paid, by the group's name."""
    tree = last_tree(run)
    if tree is None:
        return {}
    names = group_names(tree.trials.shape[0])
    return {name: _square(run, tree, group) for group, name in enumerate(names)}


def group_names(count: int) -> list[str]:
    """Return what groups are called; they are in the order of their seconds for each FLOP.

    >>> group_names(3)
    ['Group 0 (fastest)', 'Group 1', 'Group 2 (slowest)']
    """
    if count == 1:
        return ["All devices"]
    ends = {0: " (fastest)", count - 1: " (slowest)"}
    return [f"Group {group}{ends.get(group, '')}" for group in range(count)]


def _square(run: RunSeries, tree: Tree, group: int) -> Figure:
    """Draw one group's square: a heatmap on the edges of all boxes, with the boxes' outlines."""
    low_x, high_x, low_y, high_y = tree.sides.T
    x, y = np.unique(np.append(low_x, high_x)), np.unique(np.append(low_y, high_y))
    middle_x, middle_y = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
    inside = (
        (low_x <= middle_x[None, :, None])
        & (middle_x[None, :, None] < high_x)
        & (low_y <= middle_y[:, None, None])
        & (middle_y[:, None, None] < high_y)
    )
    box = np.argmax(inside, axis=2)
    tried, paid = tree.trials[group], tree.paid[group]
    told = [_told(row, tree.sides[row], tried, paid) for row in range(tried.size)]
    trace = {
        "type": "heatmap",
        "x": x.tolist(),
        "y": y.tolist(),
        "z": [[float(f"{paid[k]:.4g}") if tried[k] > 0.0 else None for k in row] for row in box],
        "text": [[told[k] for k in row] for row in box],
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "hoverongaps": False,
        "zmin": 0,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "len": 1,
            "x": 1.01,
            "xpad": 4,
            "nticks": 5,
            "title": {"text": "reward", "side": "right"},
        },
    }
    figure = layout(x=axis("share of the remaining pruning (%)"), y=axis("LoRA rank"), height=380)
    figure["xaxis"] |= {"range": [0, 1], "tickformat": ".0%", "showgrid": False}
    figure["yaxis"] |= {"range": [0, 1], "showgrid": False, **_rank_ticks(run)}
    figure["shapes"] = [
        {
            "type": "rect",
            "x0": a,
            "x1": b,
            "y0": c,
            "y1": d,
            "line": {"color": "var(--line)", "width": 1},
        }
        for a, b, c, d in tree.sides.tolist()
    ]
    return {"data": [trace], "layout": figure}


def _told(row: int, sides: Floats, tried: Floats, paid: Floats) -> str:
    low, high = f"{100 * sides[0]:.0f}", f"{100 * sides[1]:.0f} %"
    return f"ratio {low}-{high}<br>mean reward {paid[row]:.2f} in {tried[row]:.1f} trials"


def _rank_ticks(run: RunSeries) -> Figure:
    """Return ticks at the powers of two between the smallest and the largest rank."""
    settings = run.record.header["method"].get("settings") or {}
    least = int(settings.get("min_rank") or 0)
    most = int((run.record.header.get("workload") or {}).get("rank") or 0)
    if not 1 <= least < most:
        return {"showticklabels": False}
    steps = int(np.floor(np.log2(most / least) + 1e-9))
    ranks = [least * 2**step for step in range(steps + 1)]
    places = np.log2(np.array(ranks) / least) / np.log2(most / least)
    return {"tickvals": places.tolist(), "ticktext": [str(rank) for rank in ranks]}


def choice_figures(run: RunSeries) -> dict[str, Figure]:
    """Return what each group was told over the rounds, by title, as means over its devices."""
    tree = last_tree(run)
    if tree is None:
        return {}
    rounds, group = _grouped(run)
    names = group_names(tree.trials.shape[0])
    return {
        title: _lines(run, name, (rounds, group, names), percent=percent)
        for name, title, percent in (
            ("pruned", "Pruned weights, by group", True),
            ("rank", "LoRA rank, by group", False),
        )
    }


def _grouped(run: RunSeries) -> tuple[Ints, Ints]:
    """Return the rounds with choices, and the group of each row of `devices.csv`; -1 = none."""
    devices = run.record.devices
    group = np.full(devices["round"].size, -1, np.int64)
    rounds = []
    for record in run.record.rounds:
        played = (record.get("notes") or {}).get("played")
        if not played:
            continue
        rounds.append(int(record["round"]))
        table = np.array(played, np.int64)
        is_told = (devices["round"] == record["round"]) & (devices["local_steps"] > 0)
        rows = np.flatnonzero(is_told)
        index = np.searchsorted(table[:, 0], devices["device"][rows])
        group[rows] = table[np.minimum(index, table.shape[0] - 1), 1]
    return np.array(rounds, np.int64), group


def _lines(
    run: RunSeries, name: str, grouped: tuple[Ints, Ints, list[str]], *, percent: bool
) -> Figure:
    rounds, group, names = grouped
    devices = run.record.devices
    unit = ":.1%" if percent else ":.3g"
    traces = []
    for number, title in enumerate(names):
        rows = group == number
        index = np.searchsorted(rounds, devices["round"][rows])
        count = np.bincount(index, minlength=rounds.size)
        total = np.bincount(index, weights=devices[name][rows], minlength=rounds.size)
        mean = [float(f"{t / c:.4g}") if c else None for t, c in zip(total, count, strict=True)]
        traces.append(
            {
                "mode": "lines+markers",
                "name": label(title),
                "x": rounds.tolist(),
                "y": mean,
                "connectgaps": True,
                "marker": {"size": 4},
                "line": {
                    "color": colour_of(number + 1),
                    "width": 1.75,
                    "dash": dash_of(number + 1),
                },
                "hovertemplate": f"%{{y{unit}}} in round %{{x}}",
            }
        )
    figure = layout(
        x=axis("round"),
        y=axis("pruned weights (%)" if percent else "LoRA rank", from_zero=True),
        height=320,
    )
    if percent:
        figure["yaxis"]["tickformat"] = ".0%"
    figure["showlegend"] = len(names) > 1
    return {"data": traces, "layout": figure}


def rewards_of(run: RunSeries) -> Floats:
    """Return the mean reward of each round, shape (rounds - 1,): a round tells it to the next."""
    return column([row.get("notes") or {} for row in run.record.rounds], "reward_before")[1:]


def learners(study: Study) -> tuple[str, list[str]] | None:
    """Return the method that learns and the controls with the same reward; None without both."""
    scored = [name for name in study.methods if np.isfinite(rewards_of(study.of(name)[0])).any()]
    learns = [name for name in scored if last_tree(study.of(name)[0]) is not None]
    controls = [name for name in scored if learns and name != learns[0]]
    return (learns[0], controls) if controls else None


def gain_figure(study: Study) -> Figure | None:
    """Return the reward gained on each control up to each round, averaged over paired seeds.

    The regret against a control is this with the other sign.
    """
    found = learners(study)
    if found is None:
        return None
    name, controls = found
    traces = []
    for control in controls:
        gains = [_gain(one, other) for one, other in _paired(study, name, control)]
        if not gains:
            continue
        length = min(gain.size for gain in gains)
        index = colour_index(study, study.methods.index(control))
        mean = np.mean([gain[:length] for gain in gains], axis=0)
        traces.append(
            {
                "mode": "lines",
                "name": label(f"over {control}"),
                "x": list(range(length)),
                "y": [float(f"{value:.4g}") for value in mean],
                "line": {"color": colour_of(index), "width": 2, "dash": dash_of(index)},
                "hovertemplate": "%{y:+.3g} up to round %{x}",
            }
        )
    figure = layout(x=axis("round"), y=axis("cumulative reward difference"), height=340)
    figure["yaxis"] |= {"zeroline": True, "zerolinecolor": "var(--line)"}
    figure["showlegend"] = True
    return {"data": traces, "layout": figure} if traces else None


def _paired(study: Study, name: str, control: str) -> list[tuple[RunSeries, RunSeries]]:
    others = {run.seed: run for run in study.of(control)}
    return [(run, others[run.seed]) for run in study.of(name) if run.seed in others]


def _gain(one: RunSeries, other: RunSeries) -> Floats:
    ours, theirs = rewards_of(one), rewards_of(other)
    length = min(ours.size, theirs.size)
    return np.asarray(np.nancumsum(ours[:length] - theirs[:length]))


def reward_figure(run: RunSeries) -> Figure | None:
    """Return the mean reward of each round of a run; None where none was given."""
    reward = rewards_of(run)
    if not np.isfinite(reward).any():
        return None
    rounds = column(run.record.rounds, "round")[:-1]
    known = np.isfinite(reward)
    traces = [
        {
            "mode": "markers",
            "name": "a round",
            "x": rounds[known].tolist(),
            "y": reward[known].tolist(),
            "marker": {"size": 5, "color": "var(--c0)"},
            "hovertemplate": "%{y:.3f} in round %{x}",
        },
        {
            "mode": "lines",
            "name": "mean of 5 rounds",
            "x": rounds[known].tolist(),
            "y": smooth(reward[known], 5).tolist(),
            "line": {"color": "var(--c1)", "width": 2.25},
            "hovertemplate": "%{y:.3f} about round %{x}",
        },
    ]
    figure = layout(x=axis("round"), y=axis("mean reward"), height=320)
    return {"data": traces, "layout": figure}


def sentence(run: RunSeries) -> str:
    """Say how fine the tree became and what it holds best for each group."""
    tree = last_tree(run)
    if tree is None:
        return f"{run.method} does not use a bandit."
    parts = [f"The bandit has {tree.sides.shape[0]} boxes of pruning ratio and LoRA rank"]
    for name, tried, paid in zip(
        group_names(tree.trials.shape[0]), tree.trials, tree.paid, strict=True
    ):
        if (tried >= 1.0).any():
            parts.append(_best(name, tree.sides, tried, paid))
    return "; ".join(parts) + "."


def _best(name: str, sides: Floats, tried: Floats, paid: Floats) -> str:
    best = int(np.argmax(np.where(tried >= 1.0, paid, -1.0)))
    low, high = 100 * sides[best, 0], 100 * sides[best, 1]
    return (
        f"{name[0].lower()}{name[1:]} has the highest mean reward ({paid[best]:.2f}) at ratios of "
        f"{low:.0f}-{high:.0f} % and ranks in the {_part(sides[best, 2:])} of the range"
    )


def _part(side: Sequence[float] | Floats) -> str:
    middle = 0.5 * float(side[0] + side[1])
    return "lower third" if middle < 1 / 3 else "upper third" if middle > 2 / 3 else "middle third"


def bandit_panel(run: RunSeries, name: str, figures: dict[str, Figure]) -> dict[str, Any] | None:
    """Put a run's figures among the page's and return their keys and titles; None without a tree."""
    squares = tree_figures(run)
    if not squares:
        return None
    others = choice_figures(run)
    if reward := reward_figure(run):
        others["Mean reward"] = reward
    for title, figure in (squares | others).items():
        figures[f"{name}-bandit-{title}"] = figure
    return {
        "sentence": sentence(run),
        "squares": [(f"{name}-bandit-{title}", title) for title in squares],
        "others": [(f"{name}-bandit-{title}", title) for title in others],
    }
