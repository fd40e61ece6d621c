"""What README and docs show: fenced examples, and the commands among them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A piece of a page that a reader may copy."""

    page: str
    line: int
    kind: str
    """Language of the fence; "" where it names none."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    """Return the fenced pieces of every page, each without its indent."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            found.append(Example(page.name, line, match[2], body))
    return found


def commands() -> list[Example]:
    """Return every line that calls airtune, without its comment."""
    return [
        Example(one.page, one.line + number, "", re.sub(r"\s+#.*", "", line).strip())
        for one in examples()
        for number, line in enumerate(one.text.splitlines())
        if line.startswith("airtune ")
    ]


def method_of_contributing() -> str:
    """Return the file mine.py that CONTRIBUTING shows."""
    return next(one.text for one in examples() if one.text.startswith("# mine.py"))
