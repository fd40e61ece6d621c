"""Rules of aggregation: how the devices' factors of a layer become the next global ones.

A new rule is one `Rule` in a file here, its name in `plan.method.AggregateRule`, and its row below.
"""

from __future__ import annotations

from collections.abc import Mapping

from airtune.model.rules.products import FACTORED, LIFTED, STACKED
from airtune.model.rules.robust import KRUM, TRIMMED_MEAN
from airtune.model.rules.rule import Rule
from airtune.model.rules.separate import AVERAGE, NESTED, NORM_WEIGHTED
from airtune.plan.method import AggregateRule

RULES: Mapping[AggregateRule, Rule] = {
    "average": AVERAGE,
    "nested": NESTED,
    "norm-weighted": NORM_WEIGHTED,
    "factored": FACTORED,
    "lifted": LIFTED,
    "stacked": STACKED,
    "trimmed-mean": TRIMMED_MEAN,
    "krum": KRUM,
}
