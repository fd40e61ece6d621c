"""Finding run folders by what a person types: a path, or `latest`."""

from __future__ import annotations

from pathlib import Path

from airtune.errors import CheckpointError

LATEST = "latest"
_MARKS = ("run.json", "compare.json")


def find_run(name: str, *, root: Path = Path("runs"), marks: tuple[str, ...] = _MARKS) -> Path:
    """Return the folder of a run or comparison.

    Args:
        name: its path, or "latest" for the newest in `root`.
        root: where run folders are made.
        marks: files of which it must hold one.

    Raises:
        CheckpointError: if there is none.
    """
    if name == LATEST:
        found = list_runs(root, marks)
        if not found:
            raise CheckpointError(f"there is no run in {root}; start one with airtune run")
        return found[-1]
    folder = Path(name)
    if not any((folder / entry).is_file() for entry in marks):
        if (folder / "compare.json").is_file():
            raise CheckpointError(
                f"{folder} is a comparison, not a run: its runs are in {folder / 'runs'}, and airtune "
                f"compare --resume {folder} goes on with all of them"
            )
        raise CheckpointError(
            f"{folder} is no {_kind(marks)}: it holds no "
            f"{' or '.join(marks)}; airtune list runs shows what is there"
        )
    return folder


def _kind(marks: tuple[str, ...]) -> str:
    kinds = {"run": "run.json", "comparison": "compare.json"}
    return " or ".join(kind for kind, mark in kinds.items() if mark in marks)


def list_runs(root: Path, marks: tuple[str, ...] = _MARKS) -> list[Path]:
    """Return the run and comparison folders in `root`, oldest first."""
    paths = {path.parent for mark in marks for path in root.glob(f"*/{mark}")}
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
