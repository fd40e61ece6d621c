"""Which class has which id, and what a model's config says of it.

The order is decided in one place: that of the recipe; else that of the base's own head, where its
names are those of the data; else sorted (see `airtune.data.labels`). What is trained, recorded and
exported follows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from airtune.model.families import Config, family_of

SINGLE_LABEL = "single_label_classification"


def class_names(config: Config) -> tuple[str, ...]:
    """Return the names of a config's classes in the order of their ids; () where it names none.

    >>> from transformers import BertConfig
    >>> class_names(BertConfig(id2label={1: "no", 0: "yes"}))
    ('yes', 'no')
    """
    named = config.id2label or {}
    return tuple(str(named[key]) for key in sorted(named, key=int))


def order_like(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return for each known class the place of the same one among `names`.

    Names are the same whatever their case, and with blanks, hyphens or underscores between words.

    Returns:
        None where the two are not the same set of classes.

    >>> order_like(["very bad", "good"], ["Good", "VERY_BAD"])
    [1, 0]
    """
    places = {_plain(name): index for index, name in enumerate(names)}
    wanted = [_plain(name) for name in known]
    is_clear = len(places) == len(names) == len(wanted) == len(set(wanted))
    return [places[name] for name in wanted] if is_clear and set(wanted) == set(places) else None


def name_classes_(network: PreTrainedModel, names: Sequence[str]) -> None:
    """Make a classifier say these classes, one label a text or image; changes it.

    Where its config has the same classes in another order, the rows of its head are put in this one.

    Args:
        network: with as many classes as names.
        names: in the order of their ids.
    """
    config = network.config
    order = order_like(class_names(config), names)
    if order is not None:
        _reorder_(network.get_submodule(family_of(config).head), order)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = SINGLE_LABEL


@torch.no_grad()
def _reorder_(head: nn.Module, order: Sequence[int]) -> None:
    """Put the rows of a head's last layer in another order."""
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    for parameter in last.parameters():
        parameter.copy_(parameter[list(order)].clone())


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
