"""`airtune check`: the contract tests on a method of your own."""

from __future__ import annotations

from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line
from airtune.cli.options import AsJson
from airtune.errors import RecipeError
from airtune.recipe import parse_yaml


def check(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="./mine.py:Mine, or a name that airtune list methods shows."
        ),
    ],
    setting: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings of the method.", show_default=False
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Test a method of your own on a few made-up rounds, against the contract of methods.

    What is wrong is named with file and line (exit code 11).

    Example: airtune check ./mine.py:Mine share_of_even=0.9
    """
    from airtune.methods import build_method, check_method

    built = build_method(method, dict(map(_setting, setting or [])))
    check_method(built)
    if as_json:
        print_json({"method": method, "keeps_the_contract": True})
        return
    print_line(f"{method} keeps the contract")
    print_line(
        "tried in three simulated rounds: it is pure and repeatable, gives every\n"
        "available device a task and a reason, divides no link twice, fits the memory\n"
        "that it may see, cuts only if it declares so, and its state can be saved"
    )


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.removeprefix("method.").partition("=")
    if not (key and equals):
        raise RecipeError(f"{text!r}: a setting must be key=value, share_of_even=0.9 for instance")
    return key, parse_yaml(value, where=text)
