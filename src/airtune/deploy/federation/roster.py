"""The devices of a run by number: what each said when it joined, and the fleet that this makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.deploy import PROBES
from airtune.engine.message import Joined
from airtune.errors import FleetError
from airtune.fleet import Fleet, load_fleet
from airtune.recipe import Recipe, fleet_of
from airtune.records import storage, write_atomically


@dataclass(frozen=True, slots=True)
class Roster:
    """The devices of a run, by number."""

    names: tuple[str, ...]
    joined: tuple[Joined | None, ...]
    """What each said when it joined; None = it could not."""

    @property
    def samples(self) -> tuple[int, ...]:
        """Training examples of each device."""
        return tuple(0 if item is None else item.rows for item in self.joined)


def joined_fleet(
    recipe: Recipe, roster: Roster, run_folder: Path, *, kept: Path | None = None
) -> Fleet:
    """Return the recipe's fleet where it names these devices, or else what they measured.

    Args:
        recipe: of the run.
        roster: its devices.
        run_folder: keeps the probes, for when the run is resumed.
        kept: where the server keeps those of devices whose agents name none; None = nowhere.

    Raises:
        FleetError: if it names others.
    """
    if isinstance(recipe.fleet.source, dict) or Path(str(recipe.fleet.source)).exists():
        fleet = fleet_of(recipe)
        if tuple(fleet.names) == roster.names:
            return fleet
        raise FleetError(
            f"the recipe's fleet names {', '.join(fleet.names)}, connected are "
            f"{', '.join(roster.names)}; name the devices alike and in alphabetical order, or "
            "leave fleet.source out to take what the devices measured"
        )
    folder = run_folder / PROBES
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, item in zip(roster.names, roster.joined, strict=True):
        path = folder / f"{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(_probe(name, item, kept), indent=1))
    return load_fleet(folder, bandwidth_mhz=recipe.fleet.bandwidth_mhz)


def _probe(name: str, item: Joined | None, kept: Path | None) -> dict[str, Any]:
    """Return a device's probe: its agent's, else the server's, with cautious guesses for what it never measured."""
    memory = (None if item is None else item.memory_bytes) or 4e9
    guess = {
        "schema": 1,
        "name": name,
        "flops_per_s": 2e10,
        "memory_bytes": memory,
        "up_mbps": 20.0,
        "down_mbps": 50.0,
    }
    measured = dict(item.probe) if item is not None else {}
    if not measured and kept is not None and (kept / f"{name}.json").is_file():
        measured = json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
    return guess | measured | {"name": name} | ({} if measured else {"details": {"probed": False}})
