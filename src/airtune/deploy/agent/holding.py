"""The base model on a device: all of it, or what surrounds the blocks and the first of them.

A task says how many blocks it needs. They are read where the device has the model, by its owner's
word or the recipe's name, or are fetched from the server that offers it: those and nothing else.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from airtune.cost import dense_pass_bytes, peak_memory
from airtune.deploy.agent.stepping import rows_of
from airtune.engine.message import Task
from airtune.errors import MismatchError
from airtune.model.base import BaseModel
from airtune.model.part import held_groups, part_fingerprints
from airtune.plan import ModelShape
from airtune.recipe import Recipe, sent_recipe
from airtune.run.load import is_vision, load_held

if TYPE_CHECKING:  # grpc is needed for what does not come with the task alone
    from airtune.wire.channel import Way


class Holding:
    """What a device holds of one model at a time."""

    def __init__(self, *, model: str | None, compute: str, cache: Path | None, host: str) -> None:
        """Hold nothing yet.

        Args:
            model: folder of the base on this device; None = where the recipe says.
            compute: where torch computes.
            cache: where bases that the server hands out are kept; None = nothing is fetched.
            host: of the server, where a task names a port alone.
        """
        self._model, self._compute, self._cache, self._host = model, compute, cache, host
        self._base: BaseModel | None = None
        self._key = ""

    def recipe(self, task: Task, way: Way | None) -> Recipe:
        """Return the recipe as this device reads it, its base fetched where it is offered and needed.

        Raises:
            MismatchError: if it is of another version, or the base cannot be fetched.
            ConnectionFailedError: if the base does not come.
        """
        return self._fetched(task, self._read(task.setup.recipe), way)

    def _fetched(self, task: Task, recipe: Recipe, way: Way | None) -> Recipe:
        if task.base is None or self._model is not None:
            return recipe
        # grpc is needed for what comes over the stream's port alone
        from airtune.deploy.agent.fetch import fetch_base

        folder = fetch_base(
            task.base,
            task.setup.fingerprint,
            recipe,
            way or self.way_to(task.base.address),
            self._cache,
            groups=self._groups(task),
        )
        if folder is None:
            return recipe
        changes = {"source": str(folder), "revision": None}
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})

    def base(self, task: Task, way: Way | None) -> BaseModel:
        """Return the base with at least the blocks that a task needs, loaded where it is not here.

        Raises:
            ModelError: if it cannot be loaded.
            MismatchError: if its weights are others than the server's.
        """
        recipe = self._read(task.setup.recipe)
        key = json.dumps([recipe.model.model_dump(), task.setup.labels, is_vision(recipe)])
        if self._base is None or key != self._key or self._base.held not in (None, task.blocks):
            # what is held goes before more comes: both may not fit
            self.forget()
            gc.collect()
            recipe = self._fetched(task, recipe, way)
            base = load_held(
                recipe,
                classes=task.setup.labels,
                blocks=task.blocks,
                stays=task.setup.work.labels == "stay",
            )
            self._check(task, base)
            self._base, self._key = base, key
        return self._base

    def forget(self) -> None:
        """Hold nothing: its files may be others when the next task comes."""
        self._base, self._key = None, ""

    def way_to(self, address: str) -> Way:
        """Return how this device reaches what a task names, where it is not the way the task came."""
        # grpc is needed for what does not come with the task alone
        from airtune.wire.channel import Way

        return Way(reached(address, self._host))

    def _groups(self, task: Task) -> frozenset[str] | None:
        """Return the groups of tensors that a task needs; None = all."""
        if task.blocks is None:
            return None
        output = task.setup.work.labels == "stay"  # a tied model has no such file
        return held_groups(task.blocks, output=output) if task.blocks else frozenset()

    def _read(self, text: str) -> Recipe:
        recipe = sent_recipe(
            text, where="the server's recipe cannot be read here", install="on server and devices"
        )
        # whether pickled weights are read is no server's to say
        changes: dict[str, object] = {"device": self._compute, "allow_pickle": False}
        if self._model is not None:
            changes["source"] = self._model
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})

    def _check(self, task: Task, base: BaseModel) -> None:
        """Refuse other weights than the server's: the hash of all, or of each group that is held."""
        wanted = task.setup.fingerprint
        is_same = base.fingerprint == wanted
        if base.held is not None:
            is_same = part_fingerprints(base.network).items() <= task.setup.parts.items()
        if not wanted or is_same:
            return
        is_staged = self._cache is not None and Path(base.source).is_relative_to(self._cache)
        what = "start the run again, its server's model has changed since it began"
        raise MismatchError(
            f"device {task.name} holds other weights than the server: {base.source} is "
            f"{base.fingerprint[:12]}, the server's model is {wanted[:12]}; "
            f"{what if is_staged else 'give both the same model'}"
        )


def needed_bytes(task: Task, shape: ModelShape) -> float:
    """Return what a task takes of a device's memory by the cost model; 0 where that is not known.

    What a device settles for itself it fits into its memory, and joining computes nothing.
    """
    workload = task.setup.workload
    if task.kind in ("measure", "evaluate"):
        return dense_pass_bytes(shape, workload)
    if task.row is None or task.pace is not None:
        return 0.0
    return float(peak_memory(shape, workload, rows_of([task.row])).total[0])


def reached(address: str, host: str) -> str:
    """Return where a device finds what its task names; `:PORT` is at the server it knows.

    >>> reached(":9444", "edge"), reached("10.0.0.1:9444", "edge")
    ('edge:9444', '10.0.0.1:9444')
    """
    return f"{host or '127.0.0.1'}{address}" if address.startswith(":") else address
