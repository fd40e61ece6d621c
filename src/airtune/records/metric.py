"""The metrics of quality: direction, range and how each is written, for loop, records and pages.

A quality in the records is a mapping such as `{"loss": 1.2, "worst_tenth": 2.0, "accuracy": 0.5,
"worst_tenth_accuracy": 0.3}`. The worst tenth of a metric is in that metric's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure of quality.

    >>> METRICS["accuracy"].write(0.912), METRICS["loss"].write(0.8899)
    ('91.2 %', '0.8899')
    >>> METRICS["accuracy"].is_better(0.5, 0.4), METRICS["loss"].is_better(0.5, 0.4)
    (True, False)
    """

    name: str
    higher: bool
    """Higher is better."""
    most: float = math.inf
    """End of the range, which begins at 0."""

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def is_share(self) -> bool:
        """A share of right answers, written in percent."""
        return self.most == 1.0

    def write(self, value: float) -> str:
        """Return the value as people read it; a dash for NaN."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:#.4g}".rstrip(".")

    def write_change(self, change: float) -> str:
        """Return an absolute change with its sign, of a share in percentage points."""
        if self.is_share:
            return f"{100 * change:+.1f} pt".replace("-", "−")
        text = f"{change:+#.2g}" if abs(change) < 10.0 else f"{change:+.1f}"
        return text.rstrip(".").replace("-", "−")

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another; any number is better than NaN."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value > other if self.higher else value < other

    def meets(self, value: float, target: float) -> bool:
        """Return whether a value is at least as good as a target."""
        return value >= target if self.higher else value <= target

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values; NaN where there is none."""
        known = [value for value in values if not math.isnan(value)]
        return (max if self.higher else min)(known) if known else math.nan

    def of(self, quality: Mapping[str, Any] | None) -> float:
        """Return this metric of a recorded quality; NaN where it was not measured."""
        return _number(quality, self.name)

    def worst_of(self, quality: Mapping[str, Any] | None) -> float:
        """Return this metric over the tenth of the devices with the worst of it; NaN = unknown."""
        if self.name == "loss":
            return _number(quality, "worst_tenth")
        if self.name == "perplexity":
            worst = _number(quality, "worst_tenth")
            return math.exp(worst) if worst < 700.0 else math.nan
        return _number(quality, f"worst_tenth_{self.name}")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", higher=False),
        Metric("perplexity", higher=False),
        Metric("accuracy", higher=True, most=1.0),
        Metric("exact_match", higher=True, most=1.0),
    )
}


def main_metric(quality: Mapping[str, Any] | None, target: str | None = None) -> Metric:
    """Return the metric that a run is judged by: its target's, else accuracy, else the loss.

    >>> main_metric({"loss": 1.0, "accuracy": 0.5}).name, main_metric({"loss": 1.0}).name
    ('accuracy', 'loss')
    """
    return METRICS[target or ("accuracy" if "accuracy" in (quality or {}) else "loss")]


def range_fault(quality: Mapping[str, Any] | None) -> str | None:
    """Return what is outside its metric's range, in words, or None.

    >>> range_fault({"loss": 2.0, "worst_tenth_accuracy": 1.399})
    'worst_tenth_accuracy must be in [0, 1], got 1.399'
    """
    for key, value in (quality or {}).items():
        metric = METRICS.get("loss" if key == "worst_tenth" else key.removeprefix("worst_tenth_"))
        if metric is None or not isinstance(value, int | float) or math.isnan(value):
            continue
        if not 0.0 <= value <= metric.most:
            return f"{key} must be in [0, {metric.most:g}], got {value:g}"
    return None


def _number(quality: Mapping[str, Any] | None, name: str) -> float:
    value = (quality or {}).get(name)
    return math.nan if value is None else float(value)
