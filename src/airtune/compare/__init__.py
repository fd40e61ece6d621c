"""Studies: methods times seeds, or any keys of a recipe times seeds, and the page on them.

    <output>/<time>-compare-<name>/
        compare.json      recipe, what is compared, seeds, baseline: what the report reads
        runs/<label>-s<seed>/    a run folder each
        report.html, comparison.csv, curves.csv, comparison.tex, quality-vs-time.svg, ...

A run that has finished is never run again; one that was interrupted goes on from its checkpoint. A
run that cannot be is left out and named, and so is one that fails; the others go on. A study may be
given more methods, values, seeds or rounds afterwards.
"""

from airtune.compare.entries import Entry, baseline_of, entries_of, rows_of, swept
from airtune.compare.protocol import Protocol, protocol_of
from airtune.compare.study import (
    CompareWatch,
    Comparison,
    LeftOut,
    compare_methods,
    resume_comparison,
    sweep_recipe,
)

__all__ = [
    "CompareWatch",
    "Comparison",
    "Entry",
    "LeftOut",
    "Protocol",
    "baseline_of",
    "compare_methods",
    "entries_of",
    "protocol_of",
    "resume_comparison",
    "rows_of",
    "sweep_recipe",
    "swept",
]
