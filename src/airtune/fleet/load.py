"""Finding a fleet: by preset, by catalogue device, from a YAML file, probe files or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from airtune.errors import FleetError
from airtune.fleet.catalogue import DEVICE_KINDS
from airtune.fleet.draw import draw_fleet
from airtune.fleet.fleet import Fleet
from airtune.fleet.probe import fleet_from_probes, read_probes
from airtune.fleet.section import nearest
from airtune.fleet.settings import NO_BANDWIDTH, FleetSettings, read_settings

_PRESETS = Path(__file__).parent / "presets"
_SUFFIXES = (".yaml", ".yml")
_DEEPEST = 8
"""Files that may stand on one another by `base`; more is taken for a circle."""


def preset_names() -> tuple[str, ...]:
    """Return the names of the fleets that come with the package.

    >>> "pocket" in preset_names()
    True
    """
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def preset_summaries() -> dict[str, str]:
    """Return one line on each fleet that comes with the package, by name."""
    return {name: _settings(name).summary for name in preset_names()}


def load_fleet(
    source: str | Path | Mapping[str, object],
    *,
    devices: int | None = None,
    seed: int = 0,
    bandwidth_mhz: float | None = None,
) -> Fleet:
    """Return a fleet with its devices drawn and placed on their links.

    Args:
        source: a preset's name; a YAML file; a folder of probe files, or one of them (`.json`);
            the name of a catalogue device (one such device on a 20 / 50 Mbit/s link); or a mapping
            as a YAML file would hold. A file or mapping may start from another by `base`.
        devices: how many devices in all; None = as the source says. Classes keep their
            proportions and links stay as they are.
        seed: draws the fleet, and every later state of its links.
        bandwidth_mhz: of the fleet's shared radio link, up and down alike; None = as the source
            says.

    Raises:
        FleetError: if there is no such fleet, with every fault of its files, or if a bandwidth is
            given and the fleet has no shared radio link, or several.

    >>> len(load_fleet("pocket", devices=25))
    25
    """
    _check_whole("devices", devices, 1)
    _check_whole("seed", seed, 0)
    if _is_probed(source):
        path = Path(str(source))
        if bandwidth_mhz is not None:
            raise FleetError(NO_BANDWIDTH.format(name=path.stem, mhz=bandwidth_mhz))
        return fleet_from_probes(read_probes(path), name=path.stem, devices=devices, seed=seed)
    settings = _settings(source)
    if bandwidth_mhz is not None:
        settings = settings.on_bandwidth(bandwidth_mhz)
    return draw_fleet(settings, devices=devices, seed=seed)


def _settings(source: str | Path | Mapping[str, object]) -> FleetSettings:
    """Read a source and whatever it stands on by `base`, the nearer layer winning."""
    name = source.get("name", "fleet") if isinstance(source, Mapping) else Path(source).stem
    merged, folder = _read(source, Path())
    for _ in range(_DEEPEST):
        if "base" not in merged:
            return read_settings(merged, name=str(name))
        base = merged["base"]
        if not isinstance(base, str):
            raise FleetError(
                f"base of fleet {name!r} must be a preset or a YAML file, got {base!r}"
            )
        below, folder = _read(base, folder)
        merged = _merge(below, {key: value for key, value in merged.items() if key != "base"})
    raise FleetError(f"base of fleet {name!r} leads in a circle, at {merged['base']!r}; remove one")


def _read(
    source: str | Path | Mapping[str, object], folder: Path
) -> tuple[Mapping[str, object], Path]:
    """Return the mapping a source stands for, and the folder its relative names start from."""
    if isinstance(source, Mapping):
        return source, folder
    if str(source) in preset_names():
        path = _PRESETS / f"{source}.yaml"
    elif str(source) in DEVICE_KINDS:
        return _single_device(str(source)), folder
    else:
        path = folder / source
        if path.suffix not in _SUFFIXES or not path.is_file():
            raise FleetError(_not_found(str(source)))
    return _anchored(_read_yaml(path), path.parent), path.parent


def _is_probed(source: str | Path | Mapping[str, object]) -> bool:
    if isinstance(source, Mapping) or str(source) in preset_names():
        return False
    path = Path(source)
    return path.is_dir() or (path.suffix == ".json" and path.is_file())


def _not_found(source: str) -> str:
    known = (*preset_names(), *DEVICE_KINDS)
    return (
        f"fleet {source!r} is neither a preset ({', '.join(preset_names())}), a catalogue device, "
        f"a YAML file, a probe file nor a folder{nearest(source, known)}; see docs/fleet.md"
    )


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise FleetError(f"fleet file {path} cannot be read: {words}") from error
    if not isinstance(data, dict):
        raise FleetError(
            f"fleet file {path} must hold a mapping with links and devices, "
            f"got {type(data).__name__}"
        )
    return {str(key): value for key, value in data.items()}


def _merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Lay one mapping over another: mappings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _anchored(data: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Make trace file names start from the file that names them, before files are merged."""
    links = data.get("links")
    if not isinstance(links, Mapping):
        return dict(data)
    return {**data, "links": {name: _anchored_link(link, folder) for name, link in links.items()}}


def _anchored_link(link: object, folder: Path) -> object:
    traces = link.get("traces") if isinstance(link, Mapping) else None
    if not isinstance(link, Mapping) or not isinstance(traces, Mapping):
        return link
    files = traces.get("files")
    names = files if isinstance(files, list) else [files]
    # A name that is no text stays as it is, for the reader of traces to refuse.
    anchored = [str(folder / name) if isinstance(name, str) else name for name in names]
    return {**link, "traces": {**traces, "files": anchored}} if files is not None else link


def _single_device(kind: str) -> dict[str, object]:
    return {
        "name": kind,
        "summary": f"one {kind} on a dedicated link",
        "assumptions": [f"{kind}: speed estimated from its data sheet, not probed"],
        "links": {"line": {"kind": "dedicated", "capacity": {"up_mbps": 20, "down_mbps": 50}}},
        "devices": [{"name": kind, "device": kind}],
    }


def _check_whole(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FleetError(
            f"{name} of a fleet must be a whole number of at least {least}, got {value!r}"
        )
