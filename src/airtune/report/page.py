"""The page of a run or a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from airtune.data.ledger import recorded_lines
from airtune.plan import Ints
from airtune.report import (
    bandit,
    curves,
    decisions,
    learnt,
    memory,
    pace,
    rounds,
    solver,
    sparsity,
    split,
    svg,
    verdict,
)
from airtune.report.cards import cards, table, titles
from airtune.report.figure import Figure
from airtune.report.html import render
from airtune.report.protocol import protocol_table
from airtune.report.study import RunSeries, Study, with_metric
from airtune.report.summary import Summary, summarise
from airtune.report.wording import count_rounds, count_seeds
from airtune.units import format_seconds


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page with the words around it."""

    key: str
    """Name of the figure in the page's data."""
    title: str
    caption: str
    fallback: str = ""
    """An SVG for readers without scripts."""


def render_page(study: Study, summary: Summary) -> str:
    """Return the whole page."""
    figures: dict[str, Figure] = {}
    runs = _inspected(study)
    context: dict[str, Any] = {
        "title": title_of(study),
        "subtitle": _subtitle(study),
        "headline": verdict.headline(study, summary),
        "cards": cards(study, summary),
        "table": table(study, summary),
        "protocol": protocol_table(study, summary),
        "quality": _quality(study, summary, figures),
        "equal": sparsity.equal_sparsity(study),
        "equal_titles": sparsity.TITLES,
        "deployed": sparsity.deployed(study),
        "deployed_titles": sparsity.DEPLOYED,
        "gain": _gain(study, figures),
        "inspected": [_inspect(run, figures) for run in runs],
        "data_lines": recorded_lines(study.first.record.header),
        "limits": verdict.limits(study, summary),
        "methods": _method_lines(study),
        "recipe": _recipe(study),
        "assumptions": _assumptions(study),
        "provenance": _provenance(study),
        "assumed": assumption_line(study),
        "titles": titles(study),
    }
    return render("page.html", context, figures, [_data(run) for run in runs])


def title_of(study: Study) -> str:
    """Return the page's title."""
    if study.baseline is None:
        return study.name if study.name == study.focus else f"{study.name}: {study.focus}"
    return f"{study.name}: {len(study.methods)} methods compared"


def assumption_line(study: Study) -> str:
    """Return what every figure must say of the fleet and the clock behind it."""
    fleet = study.first.record.header.get("fleet") or {}
    said = [str(line) for line in fleet.get("assumptions") or []]
    clock = "simulated on a virtual clock; times, bytes and energy come from the cost model"
    name = str(fleet.get("name") or "unnamed")
    first = said[0].removeprefix(f"{name}: ").rstrip(".") if said else ""
    return f"Fleet {name}, {clock}. {first[:1].upper()}{first[1:]}{'.' if first else ''}".rstrip()


def quality_svg(study: Study, summary: Summary, kind: curves.Kind) -> str:
    """Return the quality curves as an SVG document."""
    what = {"time": "virtual wall-clock", "bytes": "bytes on the air"}[kind]
    title = f"{study.label} against {what}"
    chart = curves.quality_chart(study, summary, kind)
    return svg.write_chart(chart, title[0].upper() + title[1:], assumption_line(study))


def _quality(study: Study, summary: Summary, figures: dict[str, Figure]) -> list[Plot]:
    plots = []
    seeds = len(study.seeds)
    spread = (
        f"mean over {count_seeds(seeds)}, band from the lowest to the highest seed; "
        if (seeds > 1)
        else ""
    )
    for kind, what in (("time", "virtual wall-clock"), ("bytes", "bytes on the air")):
        chart = curves.quality_chart(study, summary, "time" if kind == "time" else "bytes")
        if not chart.curves:
            continue
        key = f"quality-{kind}"
        figures[key] = curves.draw(chart)
        better = "higher" if study.metric.higher else "lower"
        mark = "" if study.target is None else " A dot marks the target."
        caption = f"{spread}{better} is better.{mark}"
        drawn = quality_svg(study, summary, "time" if kind == "time" else "bytes")
        plots.append(Plot(key, f"Against {what}", caption[0].upper() + caption[1:], Markup(drawn)))
    return plots + _accuracy(study, figures, spread)


def _accuracy(study: Study, figures: dict[str, Figure], spread: str) -> list[Plot]:
    """Return accuracy against wall-clock where the page is about another metric."""
    seen = None if study.metric.name == "accuracy" else with_metric(study, "accuracy")
    if seen is None:
        return []
    figures["accuracy-time"] = curves.draw(curves.quality_chart(seen, summarise(seen), "time"))
    caption = f"{spread}higher is better."
    return [
        Plot(
            "accuracy-time", "Accuracy against virtual wall-clock", caption[0].upper() + caption[1:]
        )
    ]


def _gain(study: Study, figures: dict[str, Figure]) -> Plot | None:
    figure = bandit.gain_figure(study)
    if figure is None:
        return None
    figures["gain"] = figure
    caption = (
        "Cumulative mean reward minus that of the control, averaged over shared seeds; above 0 is "
        "better. Rewards of two runs are not fully comparable: judge by the time to the target."
    )
    return Plot("gain", "Reward compared with simpler controls", caption)


def _inspected(study: Study) -> list[RunSeries]:
    """Return the runs with something to look into: each method's first seed, focus first."""
    order = [study.focus, *(name for name in study.methods if name != study.focus)]
    return [run for name in order if (run := study.of(name)[0]).record.devices["round"].size]


def _inspect(run: RunSeries, figures: dict[str, Figure]) -> dict[str, Any]:
    shown = rounds.shown_devices(run)
    name = f"{run.method}-s{run.seed}"
    maps, constant = decisions.heatmaps(run, shown)
    knobs = []
    for title, figure in maps.items():
        figures[f"{name}-{title}"] = figure
        knobs.append(Plot(f"{name}-{title}", title, ""))
    paced = pace.pace_figures(run) | learnt.learnt_figures(run, shown)
    for title, (figure, caption) in paced.items():
        figures[f"{name}-pace-{title}"] = figure
        knobs.append(Plot(f"{name}-pace-{title}", title, caption))
    return {
        "name": name,
        "method": run.method,
        "seed": run.seed,
        "knobs": knobs,
        "constant": constant,
        "sampled": _sampled(run, shown),
        "bandit": bandit.bandit_panel(run, name, figures),
        "split": split.split_panel(run, name, figures, shown),
        "memory": _memory(run, shown, name, figures),
        "solver": _solver(run, name, figures),
        "solver_sentence": solver.solver_sentence(run),
    }


def _memory(run: RunSeries, shown: Ints, name: str, figures: dict[str, Figure]) -> list[Plot]:
    plots = []
    if parts := memory.waterfall(run):
        figures[f"{name}-waterfall"] = parts[0]
        plots.append(Plot(f"{name}-waterfall", "The device nearest to its memory limit", parts[1]))
    if limits := memory.limits_figure(run, shown):
        figures[f"{name}-memory"] = limits
        caption = "Highest peak memory of each device over all rounds, and its limit."
        if memory.planned_peaks(run):
            caption += " Bars: measured on the devices. Diamonds: planned."
        plots.append(Plot(f"{name}-memory", "Peak memory and limit of each device", caption))
    return plots


def _solver(run: RunSeries, name: str, figures: dict[str, Figure]) -> list[Plot]:
    plots = []
    if gap := solver.gap_figure(run):
        figures[f"{name}-gap"] = gap
        caption = "Relative gap between each plan and the proven bound; values below 1e-12 are drawn at 1e-12."
        plots.append(Plot(f"{name}-gap", "Gap to the optimum", caption))
    if forecast := solver.forecast_figure(run):
        figures[f"{name}-forecast"] = forecast
        plots.append(
            Plot(
                f"{name}-forecast",
                "Planned and actual round time",
                "The planned time of each round, and the time that it took.",
            )
        )
    return plots


def _data(run: RunSeries) -> dict[str, Any]:
    """Return a run's rounds for the timeline and the table of reasons."""
    shown = rounds.shown_devices(run)
    names = rounds.device_names(run, shown)
    places = rounds.shown_rounds(run, shown.size)
    return {
        "name": f"{run.method}-s{run.seed}",
        "total": len(run.record.rounds),
        "cuts": bool(run.record.devices["cut"].any()),
        "devices": [[index, name] for index, name in names.items()],
        "rounds": [rounds.round_data(run, position, shown) for position in places],
    }


def _sampled(run: RunSeries, shown: Ints) -> str:
    """Say which part of the run the page shows, where it is not all."""
    count = len(set(run.record.devices["device"].tolist()))
    total, kept = len(run.record.rounds), len(rounds.shown_rounds(run, shown.size))
    parts = []
    if shown.size < count:
        parts.append(f"{shown.size} of {count:,} devices: the slowest and an even sample")
    if kept < total:
        parts.append(f"{kept} of {total} rounds, the slowest among them")
    return f"Shown are {' and '.join(parts)}; all are in devices.csv." if parts else ""


def _subtitle(study: Study) -> str:
    header = study.first.record.header
    model, fleet = header.get("model") or {}, header.get("fleet") or {}
    data = header.get("data") or {}
    parts = [str(model.get("source", "")), str(data.get("source") or data.get("name") or "")]
    if fleet:
        parts.append(f"{fleet.get('devices', '?')} devices ({fleet.get('name', 'fleet')})")
    longest = max(len(run.record.rounds) for run in study.runs)
    parts.append(f"{count_rounds(longest)}, {count_seeds(len(study.seeds))}")
    return " · ".join(part for part in parts if part)


def _method_lines(study: Study) -> list[dict[str, Any]]:
    lines = []
    for name in study.methods:
        method = study.of(name)[0].record.header["method"]
        settings = method.get("settings") or {}
        lines.append(
            {
                "name": name,
                "summary": str(method.get("summary") or ""),
                "reconstructed": bool(method.get("reconstructed")),
                "baseline": name == study.baseline,
                "settings": ", ".join(f"{key} = {value}" for key, value in settings.items()),
            }
        )
    return lines


def _recipe(study: Study) -> str:
    if study.recipe:
        return study.recipe
    path = study.first.record.folder / "recipe.yaml"
    return path.read_text() if path.exists() else ""


def _assumptions(study: Study) -> list[str]:
    header = study.first.record.header
    said = [str(line) for line in (header.get("fleet") or {}).get("assumptions") or []]
    measured = _measurements(study)
    return said + [f"Calibration: {one}; its time is not counted on this page" for one in measured]


def _measurements(study: Study) -> list[str]:
    """Return how was measured what was before the runs, each once however many runs share it."""
    keys = ("measurements", "calibration", "split_calibration")  # the last two are of older runs
    found = [run.record.header.get(key) for run in study.runs for key in keys]
    known = [str(one["source"]) for one in found if isinstance(one, Mapping) and one.get("source")]
    return list(dict.fromkeys(line for source in known for line in source.split("; ")))


def _provenance(study: Study) -> list[str]:
    metric = study.metric
    lines = []
    if study.target is not None:
        lines.append(
            f"Target: {study.label} {metric.write(study.target)}, fixed before the runs. A run reaches "
            "the target when the mean of its last three evaluations reaches it."
        )
    lines.append(
        f"Validation: {metric.label} on the devices' held-out data, weighted by data size. Worst "
        f"tenth: mean over the 10 % of devices with the worst {metric.label} at the last validation. "
        "Test: the test set, after the last round."
    )
    if study.target is None and study.baseline is not None:
        lines.append(
            "At equal time: the last validation before the shortest run of the seed ended. At equal "
            "bytes: the last one before more was sent than the most economical run of the seed sent."
        )
    lines.append(
        "Intervals are 95 % percentile bootstraps over paired seeds. With few seeds they are too "
        "narrow, so the report claims an advantage only with five seeds or more."
    )
    wall = [
        row.get("measured", {}).get("wall_s") for run in study.runs for row in run.record.rounds
    ]
    known = [float(value) for value in wall if value is not None]
    if known:
        excluded = ", calibration excluded" if _measurements(study) else ""
        lines.append(
            f"All runs together took {format_seconds(sum(known))} of actual time{excluded}."
        )
    return lines
