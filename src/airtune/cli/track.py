"""Curves for the trackers that people have: TensorBoard, MLflow and Weights & Biases, as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from airtune.errors import MissingExtraError, RecipeError
from airtune.run import Watch

Log = Callable[[dict[str, float], int], None]
"""Takes the figures of a round and its number."""

_FIGURES = ("round_s", "end_s", "upload_bytes", "download_bytes", "energy_j", "train_loss")


def tracked(watch: Watch, names: str | None) -> Watch:
    """Return a watch that also tells trackers of each round.

    Args:
        watch: told first.
        names: trackers with commas; None = none.

    Raises:
        RecipeError: if there is no such tracker.
        MissingExtraError: if its package is not installed.
    """
    chosen = [name.strip() for name in names.split(",")] if names else []
    for name in chosen:
        if name not in _TRACKERS:
            raise RecipeError(f"--track takes {', '.join(_TRACKERS)}, got {name!r}")
    libraries = [(_TRACKERS[name][0], _library(name)) for name in chosen]
    logs: list[Log] = []

    def on_folder(folder: Path) -> None:
        logs.extend(start(library, folder) for start, library in libraries)
        watch.on_folder(folder)

    def on_round(record: Mapping[str, Any]) -> None:
        for log in logs:
            log(dict(figures_of(record)), int(record["round"]))
        watch.on_round(record)

    return replace(watch, on_folder=on_folder, on_round=on_round) if chosen else watch


def figures_of(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a round that have a value, by name.

    >>> dict(figures_of({"round_s": 2.0, "train_loss": None, "validation": {"loss": 1.5}}))
    {'round/round_s': 2.0, 'validation/loss': 1.5}
    """
    named = {f"round/{name}": record.get(name) for name in _FIGURES}
    named |= {
        f"validation/{name}": value for name, value in (record.get("validation") or {}).items()
    }
    yield from ((name, float(value)) for name, value in named.items() if value is not None)


def _library(name: str) -> Any:
    module = _TRACKERS[name][1]
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"--track {name} needs the {name} package; install it with pip install "
            f"'airtune[{name}]'"
        ) from error


def _tensorboard(library: Any, folder: Path) -> Log:
    writer = library.SummaryWriter(str(folder / "tensorboard"))

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _mlflow(library: Any, folder: Path) -> Log:
    library.set_experiment("airtune")
    library.start_run(run_name=folder.name)
    return lambda figures, step: library.log_metrics(figures, step=step)


def _wandb(library: Any, folder: Path) -> Log:
    # a resumed run goes on under the id of its folder
    run = library.init(
        project="airtune", name=folder.name, id=folder.name, resume="allow", dir=str(folder)
    )
    return lambda figures, step: run.log(figures, step=step)


_TRACKERS: dict[str, tuple[Callable[[Any, Path], Log], str]] = {
    "tensorboard": (_tensorboard, "torch.utils.tensorboard"),
    "mlflow": (_mlflow, "mlflow"),
    "wandb": (_wandb, "wandb"),
}
"""How each begins, and the module it is."""
