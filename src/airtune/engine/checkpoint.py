"""Checkpoints: all that a run needs to go on, saved after every round, whole or not at all.

    checkpoint/round-000012/
        tensors.safetensors   global adapters and trained head
        arrays.npz            importance, what is kept, the arrays of the method's state, and what
                              the engine remembers
        state.json            the rest, with checksums of itself and of the other two; written last

A folder is filled under another name, forced to the disk and renamed, so a kill at any moment leaves
the last whole one. The last two are kept, and the best one. Nothing is ever unpickled. Random generators need no
place here: every draw is made by key (`airtune.keys`).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from airtune.engine.checks import checked_state
from airtune.engine.devices import pack_devices, unpack_devices
from airtune.errors import CheckpointError
from airtune.model.importance import Importance, Means
from airtune.model.kept import Kept
from airtune.model.mending import gram_tensors, grams_of
from airtune.model.state import GlobalState
from airtune.plan import State
from airtune.plan.method import StateValue
from airtune.records import storage

SCHEMA = 1
KEPT_CHECKPOINTS = 2

Json = dict[str, Any]
Arrays = dict[str, NDArray[np.generic]]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after some whole rounds."""

    rounds: int
    """Rounds that are finished."""
    time_s: float
    """Virtual time at which the next round begins."""
    state: GlobalState
    method: State
    progress: Json = field(default_factory=dict)
    """What the loop remembers, in plain values."""
    engine: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """What the engine remembers beside the state."""


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, identity: str, best: int | None = None
) -> None:
    """Save a checkpoint and remove all but the last two and the best one.

    Args:
        folder: the run's `checkpoint` folder; made where it is missing.
        checkpoint: the run after a whole round.
        identity: a hash of what the run is made from; only such a run may go on from here.
        best: rounds after which the model was best; None = not known.

    Raises:
        StorageError: if the disk is full; the checkpoints that were there stay.
        MethodError: if the method's state holds something else than arrays and plain values.
    """
    files = _encode(checkpoint, identity)
    partial = folder / ".partial"
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for name, content in files.items():
                _write(partial / name, content)
            _force(partial)
            target = folder / _name(checkpoint.rounds)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            _force(folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    for old in _saved(folder)[:-KEPT_CHECKPOINTS]:
        if best is None or old.name != _name(best):
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, *, identity: str, rounds: int | None = None) -> Checkpoint | None:
    """Load the newest checkpoint, or that after so many rounds; None where there is none.

    Raises:
        CheckpointError: if it is damaged, of a newer version, or belongs to another run; the message
            names the file.
    """
    saved = [path for path in _saved(folder) if rounds is None or path.name == _name(rounds)]
    if not saved:
        return None
    newest = saved[-1]
    older = f", or remove {newest} to go on from {saved[-2].name}" if len(saved) > 1 else ""
    document = _read_document(newest / "state.json", older)
    if document["identity"] != identity:
        raise CheckpointError(
            f"{newest} belongs to another run: its recipe, data or model differ from this one's; "
            "resume with the recipe it was started with"
        )
    contents = {
        name: _read_checked(newest / name, document["checksums"][name], older)
        for name in ("tensors.safetensors", "arrays.npz")
    }
    try:
        tensors = load_tensors(contents["tensors.safetensors"])
        with np.load(io.BytesIO(contents["arrays.npz"]), allow_pickle=False) as archive:
            arrays: Arrays = dict(archive)
        ordered = {name: tensors[name] for name in document["tensors"]}
        return _decode(document, ordered, arrays)
    except (SafetensorError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{newest} is damaged: {error}; restore it{older}") from error


def _encode(checkpoint: Checkpoint, identity: str) -> dict[str, bytes]:
    state, remembered = checkpoint.state, checked_state(checkpoint.method)
    tensors = {
        f"{kind}/{name}": tensor.detach().cpu().contiguous()
        for kind, group in _groups(state).items()
        for name, tensor in group.items()
    }
    arrays = {f"method/{k}": v for k, v in remembered.items() if isinstance(v, np.ndarray)}
    arrays |= _importance_arrays(state.importance) | _kept_arrays(state.kept)
    arrays |= {f"devices/{k}": v for k, v in pack_devices(state.devices).items()}
    arrays |= {f"engine/{k}": v for k, v in checkpoint.engine.items()}
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in remembered.items()
        if not isinstance(value, np.ndarray)
    }
    files = {"tensors.safetensors": save_tensors(tensors), "arrays.npz": _pack(arrays)}
    document = {
        "schema": SCHEMA,
        "identity": identity,
        "rounds": checkpoint.rounds,
        "time_s": checkpoint.time_s,
        "state_round": state.round,
        "method": plain,
        "progress": checkpoint.progress,
        # the order of adapters decides sums and dropout masks; safetensors sorts
        "tensors": list(tensors),
        "checksums": {name: zlib.crc32(content) for name, content in files.items()},
    }
    document["crc32"] = zlib.crc32(_canonical(document))
    # state.json says what the others must be, so it is written last
    return {**files, "state.json": json.dumps(document, indent=1).encode()}


def _decode(document: Json, tensors: Mapping[str, torch.Tensor], arrays: Arrays) -> Checkpoint:
    method: dict[str, StateValue] = dict(document["method"])
    method |= _under("method/", arrays)
    state = GlobalState(
        round=document["state_round"],
        adapters=_under("adapters/", tensors),
        head=_under("head/", tensors),
        importance=_importance(_under("importance/", arrays)),
        kept=_kept(_under("kept/", arrays)),
        devices=unpack_devices(_under("devices/", arrays)),
        merged=_under("merged/", tensors),
        average=_under("average/", tensors),
        velocity=_under("velocity/", tensors),
        grams=grams_of(_under("grams/", tensors)),
    )
    return Checkpoint(
        document["rounds"],
        document["time_s"],
        state,
        method,
        document["progress"],
        _under("engine/", arrays),
    )


def _groups(state: GlobalState) -> dict[str, Mapping[str, torch.Tensor]]:
    return {
        "adapters": state.adapters,
        "head": state.head,
        "merged": state.merged,
        "average": state.average,
        "velocity": state.velocity,
        "grams": {} if state.grams is None else gram_tensors(state.grams),
    }


def _under(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _importance_arrays(importance: Importance | None) -> Arrays:
    if importance is None:
        return {}
    arrays: Arrays = {"groups": importance.groups, "channels": importance.channels}
    if importance.means is not None:
        arrays |= {"attention": importance.means.attention, "ffn": importance.means.ffn}
    return {f"importance/{name}": array for name, array in arrays.items()}


def _importance(arrays: Arrays) -> Importance | None:
    if not arrays:
        return None
    floats = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    means = Means(floats["attention"], floats["ffn"]) if "ffn" in floats else None
    return Importance(floats["groups"], floats["channels"], means)


def _kept_arrays(kept: Kept | None) -> Arrays:
    if kept is None:
        return {}
    return {
        f"kept/{kind}/{block:06d}": row
        for kind, rows in (("groups", kept.groups), ("channels", kept.channels))
        for block, row in enumerate(rows)
    }


def _kept(arrays: Arrays) -> Kept | None:
    if not arrays:
        return None
    groups, channels = (
        tuple(np.asarray(row, np.int64) for _, row in sorted(_under(kind, arrays).items()))
        for kind in ("groups/", "channels/")
    )
    return Kept(groups, channels)


def _pack(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _canonical(document: Json) -> bytes:
    """Return what the checksum of `state.json` is taken of."""
    content = {key: value for key, value in document.items() if key != "crc32"}
    return json.dumps(content, sort_keys=True).encode()


def _read_document(path: Path, older: str) -> Json:
    content = _read(path, older)
    try:
        document: Json = json.loads(content)
        schema, stated = document["schema"], document["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it{older}") from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} was written with schema {schema}, this version reads {SCHEMA}; "
            "resume with the version of airtune that wrote it"
        )
    if stated != zlib.crc32(_canonical(document)):
        raise CheckpointError(f"{path} is damaged: its checksum does not match; restore it{older}")
    return document


def _read_checked(path: Path, checksum: int, older: str) -> bytes:
    content = _read(path, older)
    if zlib.crc32(content) != checksum:
        raise CheckpointError(
            f"{path} is damaged: its checksum is {zlib.crc32(content)}, {checksum} was saved; "
            f"restore it{older}"
        )
    return content


def _read(path: Path, older: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"{path} cannot be read ({reason}); restore it{older}") from error


def _name(rounds: int) -> str:
    return f"round-{rounds:06d}"


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _force(folder: Path) -> None:
    """Force a folder's entries to the disk, without which a rename may be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
