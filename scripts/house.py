"""Prints how large the package is and how many pieces a round runs through. A look, not a limit.

python scripts/house.py              # lines, files, classes, names with two meanings
python scripts/house.py --rounds     # and the files and functions of one round of two methods
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "airtune"
SMALL = [
    "data.limit=60",
    "data.test_limit=10",
    "data.max_length=40",
    "fleet.devices=3",
    "train.rounds=1",
    "train.local_steps=1",
    "threads=1",
]


def main() -> None:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", action="store_true", help="profile a round of two methods")
    asked = parser.parse_args()
    figures = dict(sizes())
    if asked.rounds:
        for method in ("fedavg-lora", "sft"):
            files, functions = pieces_of_a_round(method)
            figures |= {f"files of {method}": files, f"functions of {method}": functions}
    for name, value in figures.items():
        print(f"{name:42s} {value:8d}")


def sizes() -> Iterator[tuple[str, int]]:
    """Yield what can be counted without running anything."""
    paths = sorted(PACKAGE.rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    nodes = [list(ast.walk(ast.parse(text))) for text in texts]
    classes = Counter(
        node.name for tree in nodes for node in tree if isinstance(node, ast.ClassDef)
    )
    lines = {path: text.count("\n") for path, text in zip(paths, texts, strict=True)}
    rooms: Counter[str] = Counter()
    for path, count in lines.items():
        rooms[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] += count
    yield "lines", sum(lines.values())
    yield "files", len(paths)
    yield "files of more than 400 lines", sum(count > 400 for count in lines.values())
    yield "classes", classes.total()
    yield "class names with two meanings", sum(count > 1 for count in classes.values())
    yield "functions", sum(isinstance(node, ast.FunctionDef) for tree in nodes for node in tree)
    yield "# fmt: skip", sum(text.count("# fmt: skip") for text in texts)
    yield "public, without a docstring", sum(map(_undocumented, nodes))
    for room, count in rooms.most_common(8):
        yield f"lines of {room}", count


def pieces_of_a_round(method: str) -> tuple[int, int]:
    """Return how many files and functions of the package the loop's one small round calls."""
    from airtune import load_recipe
    from airtune.loop import rounds
    from airtune.run import run_recipe

    seen: set[tuple[str, str]] = set()
    once = rounds._execute

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    def watched(*given: Any) -> Any:
        sys.setprofile(look)
        try:
            return once(*given)
        finally:
            sys.setprofile(None)

    rounds._execute = watched
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(overrides=[*SMALL, f"method.name={method}"])
        run_recipe(recipe, folder=Path(folder) / "run", reports=False)
    rounds._execute = once
    return len({file for file, _ in seen}), len(seen)


def _undocumented(nodes: list[ast.AST]) -> int:
    """Count what can be reached by its name; functions within functions cannot."""
    owners = (
        node
        for node in nodes
        if isinstance(node, ast.Module)
        or (isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    )
    return sum(
        isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        for owner in owners
        for node in owner.body
    )


if __name__ == "__main__":
    main()
