"""`airtune calibrate`: measure what the knobs cost, before any run asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.options import AsJson, Settings, Words, split_words
from airtune.errors import RecipeError
from airtune.recipe import load_recipe

if TYPE_CHECKING:
    from airtune.plan import Measurements


def calibrate(
    words: Words = None,
    *,
    settings: Settings = None,
    tables: Annotated[
        str | None,
        typer.Option(
            help="Of pruning, ranks, codecs, cut, uploads, steps, with commas, or all; default: those that the recipe's method wants."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what pruning, ranks, codecs and cuts cost this model on these data, and store it.

    Runs, plans and federations of the same recipe use what is stored; what is stored already is shown.

    Examples: airtune calibrate recipe.yaml · airtune calibrate recipe.yaml --tables pruning,cut
    """
    source, changes = split_words(words, settings)
    recipe = load_recipe(source, overrides=changes)
    asked = None if tables is None else _names(tables)
    from airtune.cli.progress import progress, watch_run
    from airtune.run import calibrate_recipe

    with progress(is_quiet=as_json) as display:
        watch = watch_run(display, "", lambda folder: None)
        found = calibrate_recipe(recipe, tables=asked, watch=watch)
    if as_json:
        print_json(found.as_document())
        return
    for line in _lines(found):
        print_line(line)


def _names(text: str) -> tuple[str, ...]:
    from airtune.plan import TABLES

    names = TABLES if text == "all" else tuple(text.split(","))
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise RecipeError(
            f"--tables takes {', '.join(TABLES)}, or all, got {', '.join(map(repr, unknown))}"
        )
    return names


def _lines(found: Measurements) -> Iterator[str]:
    """Say what was measured, a line a setting."""
    for row in found.pruning[1:]:
        yield f"pruning {row.pruned:.0%} of the weights on average needs {_times(row.log_rounds)}"
    if found.pruning:
        yield f"no device should lose more than {found.most_pruned:.0%}: beyond that, the loss did not fall"
    for rank in found.ranks[:-1]:
        yield f"rank {rank.rank} instead of {found.ranks[-1].rank} needs {_times(rank.log_rounds)}"
    if found.cut is not None:
        yield f"splitting the model needs {_times(found.cut)}"
    for codec in found.codecs_measured:
        cuts = [row for row in found.codecs if row.codec == codec]
        costs = ", ".join(f"{_times(row.log_rounds)} at cut {row.cut}" for row in cuts)
        yield f"coding with {codec.label} needs {costs}"
    for other in found.steps:
        if other.log_rounds:
            yield f"{other.local_steps} local steps a round need {_times(other.log_rounds)}"
    for upload in found.uploads[1:]:
        yield f"sending updates by {upload.codec.label} needs {_times(upload.log_rounds)}"
    yield "relative to the whole dense model at full rank; codecs relative to a cut without a codec"
    for line in found.source.split("; "):
        yield f"measured: {line}"


def _times(log_rounds: float) -> str:
    """Return ln K in words.

    >>> _times(0.0), _times(0.25)
    ('as many rounds', '1.28 times the rounds')
    """
    ratio = math.exp(log_rounds)
    return "as many rounds" if abs(ratio - 1.0) < 0.005 else f"{ratio:.2f} times the rounds"
