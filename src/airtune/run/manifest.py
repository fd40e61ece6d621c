"""What an exported folder says of itself, and whether it is good enough to be written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airtune.data import TOPICS
from airtune.data.exchange import chosen_template
from airtune.errors import ModelError, RunExistsError
from airtune.model.base import BaseModel
from airtune.model.classes import class_names
from airtune.model.gguf.source import is_gguf
from airtune.recipe import Recipe
from airtune.records import RunRecord
from airtune.run.load import base_folder

MANIFEST = "airtune.json"
_MEASURED_ON = "the validation share of the devices"
ANYWAY = "--force, or accept_worse=True from Python"
"""How to export what was not found to be better than the untuned model."""
_FROM = {
    "recipe": "the recipe",
    "tokenizer": "the tokenizer's chat template",
    "default": "airtune's default",
}


def manifest_of(
    recipe: Recipe, base: BaseModel, format: str, quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an exported folder says of itself: base, method, template and quality.

    Args:
        recipe: of the run.
        base: what its model was tuned from.
        format: one of the export's.
        quality: of what is written; see `quality_of`.
    """
    template, origin = _template(recipe, base)
    return {
        "format": format,
        "base": {
            "source": recipe.model.source,
            "revision": _commit(recipe) or recipe.model.revision,
            "fingerprint": base.fingerprint,
        },
        "method": recipe.method.name,
        "id2label": dict(enumerate(class_names(base.network.config)))
        if base.shape.labels
        else None,
        "template": template,
        "template_from": origin,
        "quality": quality,
    }


def quality_of(record: RunRecord, rounds: int) -> dict[str, Any]:
    """Return how good a run's model was before the first round and after so many."""
    done = record.rounds[:rounds]
    validations = [row["validation"] for row in done if row.get("validation")]
    return {
        "untuned": done[0].get("initial") if done else None,
        "tuned": validations[-1] if validations else None,
        "measured_on": f"{_MEASURED_ON}, model after {rounds} of {len(record.rounds)} rounds",
    }


def unmeasured(quality: Mapping[str, Any], prune: float) -> dict[str, Any]:
    """Return the quality of a run, without what was measured on a model that is not written."""
    said = f"what pruning by {prune:g} left of the tuned model was not evaluated"
    return {**quality, "tuned": None, "measured_on": f"untuned on {_MEASURED_ON}; {said}"}


def check_better(folder: Path, quality: Mapping[str, Any], prune: float | None) -> None:
    """Refuse what is worse than the untuned model, or of which nobody knows how good it is.

    Raises:
        ModelError: saying which, and what to do.
    """
    if prune is not None:
        raise ModelError(
            f"prune {prune:g} cuts into a model that the run of {folder} tuned and evaluated "
            f"whole, so how good the result is was not measured; export it all the same ({ANYWAY}) "
            "and evaluate it, or tune with a method that prunes for good, as fedspine does"
        )
    before, after = quality["untuned"], quality["tuned"]
    if before is None or after is None:
        return
    # records hold null for a loss that was not finite
    tuned, untuned = (math.nan if one["loss"] is None else one["loss"] for one in (after, before))
    if not tuned <= untuned:
        raise ModelError(
            f"the model of {folder} has a validation loss of {tuned:.4g}, the untuned one "
            f"{untuned:.4g}; tune it longer, or export it all the same: {ANYWAY}"
        )


def check_place(target: Path) -> None:
    """Refuse to replace what is no export.

    Raises:
        RunExistsError: naming the folder.
    """
    if target.is_file() or (
        target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file()
    ):
        raise RunExistsError(
            f"{target} is there and no export of airtune, so it is never replaced; choose another "
            "folder"
        )


def _template(recipe: Recipe, base: BaseModel) -> tuple[Any, str | None]:
    """Return how prompts and completions became texts, and who says so; None where there are none.

    Whether a file has prompts or plain texts is in its columns alone, so that is left open here.
    """
    data, tokenizer = recipe.data, base.tokenizer
    if data.task != "causal-lm" or data.columns.get("text") or data.source == TOPICS:
        return None, None
    chat = None if tokenizer is None else tokenizer.chat_template
    origin, template = chosen_template(data.template, chat)
    return template, f"{_FROM[origin]}, for rows with a prompt"


def _commit(recipe: Recipe) -> str | None:
    """Return the commit of a base from the hub, which its cache names folders after."""
    if is_gguf(recipe.model.source):
        return None
    folder = base_folder(recipe)
    is_commit = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_commit else None
