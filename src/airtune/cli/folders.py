"""Finding run folders by what a person types: a path, or `latest`."""

from __future__ import annotations

from pathlib import Path

from airtune.errors import CheckpointError

LATEST = "latest"
_MARKS = ("run.json", "compare.json")


def find_run(name: str, *, root: Path = Path("runs"), mark: str | None = None) -> Path:
    """Return the folder of a run or comparison.

    Args:
        name: its path, or "latest" for the newest in `root`.
        root: where run folders are made.
        mark: the file it must hold; None = `run.json` or `compare.json`.

    Raises:
        CheckpointError: if there is none.
    """
    marks = (mark,) if mark else _MARKS
    if name == LATEST:
        found = list_runs(root, marks)
        if not found:
            raise CheckpointError(f"there is no run in {root}; start one with airtune run")
        return found[-1]
    folder = Path(name)
    if not any((folder / entry).is_file() for entry in marks):
        raise CheckpointError(
            f"{folder} is no {'run' if mark == 'run.json' else 'run or comparison'}: it holds no "
            f"{' or '.join(marks)}; airtune list runs shows what is there"
        )
    return folder


def list_runs(root: Path, marks: tuple[str, ...] = _MARKS) -> list[Path]:
    """Return the run and comparison folders in `root`, oldest first."""
    paths = {path.parent for mark in marks for path in root.glob(f"*/{mark}")}
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
