"""Where a run is and what it reads: its folder is taken at once, its files by their full paths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from airtune.errors import CheckpointError, RecipeError, RunExistsError, RunInterruptedError
from airtune.fleet import preset_names
from airtune.recipe import Recipe, check_recipe, dump_recipe, load_recipe
from airtune.records import amend_header, storage, write_atomically

RECIPE_FILE = "recipe.yaml"


def new_folder(recipe: Recipe, suffix: str | None = None, *, root: Path | None = None) -> Path:
    """Make the folder of a run that begins now, `<output>/<time>-<name>`, and return it.

    A name that is taken gets a number, so that two runs may begin in one second.

    Args:
        recipe: says the name and, where `root` does not, the folder of run folders.
        suffix: end of the name instead of the recipe's.
        root: the folder of run folders.

    Raises:
        StorageError: if it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parent, name = root or Path(recipe.output), f"{stamp}-{suffix or recipe.label}"
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with storage(folder):
            parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


@contextmanager
def claimed(recipe: Recipe, folder: Path | None) -> Iterator[Path]:
    """Take a run's folder, with the recipe in it, for what the block prepares.

    The folder is given back where the block fails; an interruption leaves it, to be resumed.

    Raises:
        RunExistsError: if it is taken, or holds anything.
        StorageError: if it cannot be written.
    """
    root = Path(recipe.output) if folder is None else folder.parent
    is_new = not root.exists()
    taken = _taken(folder) if folder is not None else new_folder(recipe)
    saved = taken / RECIPE_FILE
    if not _written_first(saved, dump_recipe(resolved(recipe))):
        raise _is_there(taken)
    try:
        yield taken
    except RunInterruptedError:
        raise
    except Exception:
        saved.unlink(missing_ok=True)
        for made in (taken, root) if is_new else (taken,):
            if not any(made.iterdir()):
                made.rmdir()
        raise


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with the full path of every file and folder that it names here."""
    values = recipe.plain()
    for path, index in places_of(recipe).items():
        section = values
        *parents, last = path.split(".")
        for part in parents:
            section = section[part]
        section[last] = index
    values["output"] = str(Path(recipe.output).expanduser().resolve())
    return check_recipe(values)


def places_of(recipe: Recipe) -> dict[str, str]:
    """Return the full path of every file and folder that a recipe's keys name on this machine."""
    method, _, attribute = recipe.method.name.rpartition(":")
    found = {
        "model.source": _full(recipe.model.source),
        "data.source": _full(recipe.data.source),
        "data.test": _full(recipe.data.test),
        "fleet.source": None
        if recipe.fleet.source in preset_names()
        else _full(recipe.fleet.source),
        "method.name": f"{_full(method)}:{attribute}" if method and _full(method) else None,
    }
    return {key: index for key, index in found.items() if index is not None}


def saved_recipe(folder: Path, header: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe that a run folder holds.

    Args:
        folder: the run folder.
        header: of the run's records; None = it has not begun.

    Raises:
        CheckpointError: if it cannot be used, or is not the one that the run was started with.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise CheckpointError(f"the run {folder} has lost its recipe: put {path} back")
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        raise CheckpointError(
            f"the recipe of the run {folder} cannot be used: {error}; put {path}, or the file that "
            "it names, back as it was"
        ) from error
    if header is not None and recipe.digest() != header.get("recipe_hash"):
        raise CheckpointError(
            f"{path} is not the recipe that the run was started with; restore it, "
            "or start a new run with the changed recipe"
        )
    return recipe


def check_moved(
    folder: Path, header: Mapping[str, Any], keys: Collection[str] | None = None
) -> None:
    """Refuse to go on with a run whose model, data or fleet is no longer where it was.

    Args:
        folder: the run folder.
        header: of its records.
        keys: of the recipe, those that are needed; None = all that name a file or folder.

    Raises:
        CheckpointError: naming the key, the path and what to do.
    """
    for key, place in header.get("places", {}).items():
        path = Path(place.rpartition(":")[0] if key == "method.name" else place)
        if not path.exists() and (keys is None or key in keys):
            raise CheckpointError(
                f"{key} of the run {folder} was {path}, and nothing is there now; move it back, or "
                f"make a link to where it is: ln -s WHERE {path}"
            )


def longer(folder: Path, recipe: Recipe, rounds: int) -> Recipe:
    """Return a run's recipe with more rounds; `extend` gives them to the run.

    Raises:
        RecipeError: if they are not more.
    """
    if rounds <= recipe.train.rounds:
        raise RecipeError(
            f"--resume takes more rounds than the {recipe.train.rounds} of {folder}, got "
            f"train.rounds={rounds}; leave it out to go on with those"
        )
    values = recipe.plain()
    values["train"]["rounds"] = rounds
    return check_recipe(values)


def extend(folder: Path, recipe: Recipe) -> None:
    """Give a run the rounds of its recipe made `longer`, ended or not.

    Raises:
        StorageError: if the folder cannot be written.
    """
    with storage(folder):
        (folder / "result.json").unlink(missing_ok=True)
    write_atomically(folder / RECIPE_FILE, dump_recipe(recipe))
    if (folder / "run.json").exists():
        amend_header(folder, {"rounds": recipe.train.rounds})


def _written_first(path: Path, text: str) -> bool:
    """Write a file unless another process has; return whether this one did."""
    with storage(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    return True


def _taken(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _is_there(folder)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_there(folder: Path) -> RunExistsError:
    go_on = f", or continue with airtune run --resume {folder}"
    is_run = (folder / RECIPE_FILE).is_file()
    return RunExistsError(
        f"{'the run folder ' if is_run else ''}{folder} is already there"
        f"{'' if is_run else ' and no run'}; choose another name{go_on if is_run else ''}"
    )


def _full(name: object) -> str | None:
    """Return the full path of what a name leads to here; None where it leads nowhere."""
    if not isinstance(name, str) or not name:
        return None
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else None
