"""What the values of a recipe may be, and what all its sections have in common."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from airtune.units import parse_bytes, parse_joules, parse_seconds

Number = TypeVar("Number", int, float)


def torch_device(value: str) -> str:
    """Refuse what torch would not compute on; ValueError for pydantic, as of all here."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"must be auto, cpu, cuda or cuda:1, got {value!r}")
    return value


def plain_name(value: str) -> str:
    """Refuse what cannot be part of a folder's name."""
    if not re.fullmatch(r"[\w.+-]*", value):
        raise ValueError(f"may have letters, digits and . _ + -, got {value!r}")
    return value


def share_of(value: object) -> object:
    """Turn "2%" into 0.02 and leave numbers as they are."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())
    if found is None:
        raise ValueError(f"must be a share such as 2% or 0.02, got {value!r}")
    return float(found[1]) / 100.0


def duration_of(value: object) -> object:
    """Turn "5m" into seconds and leave numbers as they are."""
    if not isinstance(value, str):
        return value
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise ValueError(
            f"must be a number of seconds, or a duration such as 90s, 5m or 6h, got {value!r}"
        ) from error


def energy_of(value: object) -> object:
    """Turn "2kJ" into joules and leave numbers as they are."""
    if not isinstance(value, str):
        return value
    try:
        return parse_joules(value)
    except ValueError as error:
        raise ValueError(
            f"must be a number of joules, or an energy such as 2kJ or 0.1kWh, got {value!r}"
        ) from error


def size_of(value: object) -> object:
    """Turn "500MB" into bytes and leave numbers as they are."""
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise ValueError(f"must be a size such as 500MB or 1.5GiB, got {value!r}") from error


Name = Annotated[str, AfterValidator(plain_name)]
"""A word of letters, digits and . _ + -."""
TorchDevice = Annotated[str, AfterValidator(torch_device)]
"""auto, cpu, cuda or cuda:1."""
Share = Annotated[float, BeforeValidator(share_of)]
"""A part of a whole: 0.5, or 50%."""
Duration = Annotated[float, BeforeValidator(duration_of)]
"""Seconds: 300, or 5m."""
Energy = Annotated[float, BeforeValidator(energy_of)]
"""Joules: 2000, or 2kJ."""
Size = Annotated[float, BeforeValidator(size_of)]
"""Bytes: 5e8, or 500MB."""


def rising(values: tuple[Number, ...]) -> tuple[Number, ...]:
    """Refuse values that do not rise."""
    if any(right <= left for left, right in pairwise(values)):
        raise ValueError(f"must rise, got {', '.join(map(str, values))}")
    return values


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are not bent to fit."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
