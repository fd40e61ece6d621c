"""Where a recipe wants a word, `no`, `1e3` and `null` are words: labels, columns, names, paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel

_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def keep_words(node: yaml.Node, wanted: Any) -> None:
    """Mark the plain scalars of a node that stand where text is wanted as text; changes the node.

    YAML reads `no` as false, `1e3` as a number and `null` as nothing. Where nothing is allowed
    beside text, `null` stays nothing; what is empty stays nothing everywhere.

    Args:
        node: as composed, before values are made of it.
        wanted: the type that a recipe has at this place.

    >>> from airtune.data import DataSpec
    >>> node = yaml.compose("{labels: [no, 1], alpha: 1}")
    >>> keep_words(node, DataSpec)
    >>> yaml.SafeLoader("").construct_document(node)
    {'labels': ['no', '1'], 'alpha': 1}
    """
    options = _options(wanted)
    if isinstance(node, yaml.ScalarNode):
        may_be_null = NoneType in options or node.value in ("", "~")
        if options - {NoneType} == {str} and not (node.tag == _NULL and may_be_null):
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            keep_words(item, _item(options))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            keep_words(value, wanted_at(wanted, [str(key.value)]))


def wanted_at(wanted: Any, path: Sequence[str]) -> Any:
    """Return the type that a recipe has below `wanted`, or None where it does not say."""
    for part in path:
        wanted = next(
            (found for option in _options(wanted) if (found := _below(option, part)) is not None),
            None,
        )
    return wanted


def _options(wanted: Any) -> set[Any]:
    is_union = get_origin(wanted) in (Union, UnionType)
    return set(get_args(wanted)) if is_union else {wanted}


def _item(options: set[Any]) -> Any:
    """Return the type of an entry where one of the options is a tuple of any length."""
    return next((get_args(option)[0] for option in options if get_origin(option) is tuple), None)


def _below(section: Any, key: str) -> Any:
    if get_origin(section) is Mapping:
        return get_args(section)[1]
    if isinstance(section, type) and (issubclass(section, BaseModel) or is_dataclass(section)):
        return _hints(section).get(key)
    return None


@cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section)
