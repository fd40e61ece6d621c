"""What a comparison by a protocol runs: the methods as they are, or each under faults as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from airtune.compare.entries import Entry
from airtune.errors import RecipeError
from airtune.recipe import Recipe
from airtune.report.protocol import CLEAN, SPENT, ProtocolName, Spent
from airtune.units import parse_bytes, parse_joules, parse_seconds

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

FAULTS: Mapping[str, Mapping[str, Any]] = {
    "outage": {"fleet.availability": 0.7},
    "dropped devices": {"fleet.dropout": 0.2},
    "unlike data": {"data.partition": "dirichlet", "data.alpha": 0.1},
}
"""Fault -> what it sets of the recipe: links that are down in three of ten rounds, devices that
vanish in one of five after they were told what to do, and data that differ between devices."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol of a study."""

    name: ProtocolName
    budget: Mapping[Spent, float] = field(default_factory=dict)
    """Seconds, bytes and joules; {} = what the run of a seed spends that spends least."""

    def crossed(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries with which it is run: for robustness each under every fault too.

        A fault sets keys of the recipe, and stands above what an entry sets.
        """
        if self.name != "robustness":
            return list(entries)
        return [
            entry if fault == CLEAN else Entry(_label(entry, fault), {**entry.values, **changes})
            for entry in entries
            for fault, changes in {CLEAN: {}, **FAULTS}.items()
        ]

    def document(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Return it in plain values, with the method and the fault behind each label."""
        document: dict[str, Any] = {"name": self.name, "budget": dict(self.budget)}
        if self.name == "robustness":
            ends = {_end(fault): fault for fault in FAULTS}
            faults = {}
            for entry in entries:
                end = next((end for end in ends if entry.label.endswith(end)), "")
                method = entry.label.removesuffix(end)
                faults[entry.label] = [method, ends.get(end, CLEAN)]
            document["faults"] = faults
        return document


def protocol_of(recipe: Recipe, name: str | None, budget: str | None) -> Protocol | None:
    """Return the protocol that is asked for; None = a plain comparison.

    Args:
        recipe: what is compared.
        name: of the protocol.
        budget: `time=10m,bytes=50MB,joules=2kJ`, some of them.

    Raises:
        RecipeError: if there is no such protocol, or it lacks a target, or a budget is wrong.
    """
    if name is None:
        if budget is not None:
            raise RecipeError(f"--budget {budget} needs --protocol quality-under-budget")
        return None
    if name not in PROTOCOLS:
        raise RecipeError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    if name == "cost-to-target" and recipe.target is None:
        raise RecipeError(
            "--protocol cost-to-target needs a target that is fixed before the runs; set "
            "target={metric: loss, value: 1.5}, for instance"
        )
    if budget is not None and name != "quality-under-budget":
        raise RecipeError(f"--budget belongs to --protocol quality-under-budget, got {name}")
    return Protocol(name, {} if budget is None else read_budget(budget))


def read_protocol(document: Mapping[str, Any] | None) -> Protocol | None:
    """Return the protocol of a study's document; None = it has none."""
    if not document:
        return None
    budget = {kind: float(document["budget"][kind]) for kind in SPENT if kind in document["budget"]}
    return Protocol(document["name"], budget)


def read_budget(text: str) -> dict[Spent, float]:
    """Read what may be spent: seconds, bytes and joules.

    Raises:
        RecipeError: if it is not understood.

    >>> read_budget("time=10m,joules=2kJ")
    {'time': 600.0, 'energy': 2000.0}
    """
    found: dict[Spent, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            kind, amount = _amount(name, value)
        except ValueError as error:
            raise RecipeError(
                f"--budget must be like time=10m,bytes=50MB,joules=2kJ, got {part.strip()!r}: {error}"
            ) from error
        found[kind] = amount
    return found


def _amount(name: str, value: str) -> tuple[Spent, float]:
    if name == "time":
        return "time", parse_seconds(value)
    if name == "bytes":
        return "bytes", _above_zero(parse_bytes(value))
    if name == "joules":
        return "energy", _above_zero(parse_joules(value))
    raise ValueError("a budget is of time, bytes or joules")


def _above_zero(amount: float) -> float:
    if not amount > 0.0:
        raise ValueError("a budget must be above 0")
    return amount


def _label(entry: Entry, fault: str) -> str:
    return f"{entry.label}{_end(fault)}"


def _end(fault: str) -> str:
    return f", {fault}"
