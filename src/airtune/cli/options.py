"""The options that verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airtune.errors import RecipeError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe file (default: the embedded one) and settings such as train.rounds=5.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe; may be repeated."),
]
Server = Annotated[
    str | None,
    typer.Option(
        help="HOST[:PORT] of a server elsewhere; default: the one that runs from --state here.",
        show_default=False,
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        help="With --server: its ca.crt; default: that of the server's state folder here, or ca.crt.",
        show_default=False,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        help="With --server: your operator key; default: the one beside its ca.crt.",
        show_default=False,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Devices with this label; several = with all of them.",
        show_default=False,
    ),
]


def split_words(
    words: list[str] | None, settings: list[str] | None
) -> tuple[str | None, list[str]]:
    """Tell the recipe's file from the settings in what was typed.

    `--set a=1 b=2` gives one setting to the option and one to the arguments, so both are settings.

    Raises:
        RecipeError: if two files are named.

    >>> split_words(["r.yaml", "lora.r=4"], ["train.rounds=3"])
    ('r.yaml', ['train.rounds=3', 'lora.r=4'])
    """
    typed = list(words or [])
    files = [word for word in typed if "=" not in word or Path(word).is_file()]
    if len(files) > 1:
        raise RecipeError(f"one recipe can be given, got {', '.join(files)}")
    return (files[0] if files else None), [*(settings or []), *(w for w in typed if w not in files)]
