"""What a run needs on a device beside the base model: its data, and how texts are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airtune.data.federated import DeviceData
from airtune.deploy.agent.holding import Holding
from airtune.deploy.agent.stepping import OwnSpeed
from airtune.deploy.reading import OF_RECIPE, check_paths, describe_data, describe_reader, read_data
from airtune.engine.message import Task
from airtune.errors import MismatchError
from airtune.model.base import load_shape
from airtune.plan import ModelShape
from airtune.run.load import is_vision, model_source, read_tokenizer

if TYPE_CHECKING:  # grpc is needed for split rounds alone
    from airtune.split import Samples
    from airtune.wire.channel import Way


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run needs beside the base, at hand."""

    shape: ModelShape
    """Of the whole model."""
    tokenizer: str
    """What its reading of texts is known by."""
    data: DeviceData
    speed: OwnSpeed
    held: str
    """Hash of the data."""
    memory: Samples = field(default_factory=dict)
    """What split rounds remember of these data."""

    def data_in(self, run: int) -> str:
        """Return the hash of the data that the server may know, another one in every run."""
        return hashlib.sha256(f"{run} {self.held}".encode()).hexdigest()


class Loads:
    """Loads what tasks need, once, and keeps that of the last recipe."""

    def __init__(self, holding: Holding, *, data: str, any_path: bool) -> None:
        """Hold nothing yet.

        Args:
            holding: gives the recipe of a task.
            data: file or folder of the device's data, or "recipe".
            any_path: with "recipe", its data may be a file anywhere.
        """
        self._holding, self._data, self._any_path = holding, data, any_path
        self._loaded: dict[str, Loaded] = {}

    def of(self, task: Task, way: Way | None) -> Loaded:
        """Return the data of a run and how texts are read, loaded where they are not at hand.

        Args:
            task: names the recipe, the device and what the server knows of them.
            way: by which files of the model may be fetched.

        Raises:
            MismatchError: if the device reads text otherwise than the server, or its data are not
                those with which it joined the run.
        """
        setup = task.setup
        key = hashlib.sha256(
            f"{setup.recipe}\0{setup.devices}\0{task.device}\0{setup.labels}".encode()
        ).hexdigest()
        if key not in self._loaded:
            self._loaded = {key: self._load(task, way)}
        loaded = self._loaded[key]
        if setup.tokenizer and loaded.tokenizer != setup.tokenizer:
            self._holding.forget()  # its files may be others when the next task comes
            self._loaded = {}
            raise MismatchError(
                f"device {task.name} reads text otherwise than the server: its tokenizer is "
                f"{loaded.tokenizer[:12]}, the server's {setup.tokenizer[:12]}; give both the same "
                "model folder"
            )
        if task.data and loaded.data_in(task.run) != task.data:
            self._loaded = {}
            raise MismatchError(
                f"device {task.name} has come back with other data than those with which it joined "
                f"this run ({len(loaded.data.train)} rows now); start it with the same --data, or "
                "begin a new run"
            )
        return loaded

    def _load(self, task: Task, way: Way | None) -> Loaded:
        setup, recipe = task.setup, self._holding.recipe(task, way)
        if self._data == OF_RECIPE and not self._any_path:
            check_paths(recipe.data)
        tokenizer = None if is_vision(recipe) else read_tokenizer(recipe)
        data = read_data(
            recipe,
            tokenizer,
            self._data,
            labels=setup.labels,
            device=task.device,
            devices=setup.devices,
        )
        shape = load_shape(
            model_source(recipe), labels=len(setup.labels), revision=recipe.model.revision
        )
        return Loaded(
            shape,
            describe_reader(recipe, tokenizer),
            data,
            OwnSpeed(shape, setup.workload),
            describe_data(data),
        )
