"""One HTML file that holds its figures, its styles and plotly, and asks no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from airtune.report.figure import Figure


def render(
    template: str,
    context: Mapping[str, Any],
    figures: Mapping[str, Figure],
    runs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a page.

    Args:
        template: its file in this package; it stands on `base.html`.
        context: what the template names.
        figures: plotly's JSON by the name under which the page shows it.
        runs: rounds for the timeline of a run's page.
    """
    page = _environment().get_template(template)
    return page.render(
        **context,
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        plotly=Markup(_plotly_source()),
        data=_embedded({"figures": figures, "runs": list(runs)}),
    )


@cache
def _environment() -> Environment:
    """Return what holds the templates: each is compiled once, however many pages are written."""
    return Environment(
        loader=PackageLoader("airtune", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _embedded(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot end its script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _asset(name: str) -> str:
    return resources.files("airtune.report").joinpath(name).read_text()


def _plotly_source() -> str:
    """Return the library as plotly ships it; importing plotly for it would cost 70 ms."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
    return source.replace("</script", "<\\/script")
