"""What holds for every test."""

import os
import re

# One thread a process: the tests run in as many processes as there are cores, and start more.
# It is set before torch is imported, and processes that a test starts inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine fails no property
settings.load_profile("any machine")


def slow_tests() -> set[str]:
    """Return the files, tests and cases that `slow.txt` names, and the words in brackets."""
    names, file = set(), ""
    for line in Path(__file__).with_name("slow.txt").read_text().splitlines():
        if line.startswith("  "):
            names.discard(file)
            names.add(f"{file}::{line.strip()}")
        elif not line.startswith("#"):
            file = line
            names.add(file)
    return names


UNKNOWN = pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow; keep the names that no test of the files at hand has."""
    slow = slow_tests()
    found = set()
    for item in items:
        file, _, test = item.nodeid.partition("::")
        function, _, case = test.partition("[")
        words = {f"[{word}]" for word in re.split(r"[-\s\]]", case)}
        names = ({file, f"{file}::{function}", item.nodeid} | words) & slow
        if names:
            item.add_marker(pytest.mark.slow)
        found |= names
    whole = {item.nodeid.partition("::")[0] for item in items}
    if any("::" in argument for argument in config.args):
        whole = set()
    config.stash[UNKNOWN] = {
        name
        for name in slow - found
        if not name.startswith("[")
        and ((file := name.partition("::")[0]) in whole or not (config.rootpath / file).is_file())
    }


@pytest.fixture
def unknown_slow_tests(request: pytest.FixtureRequest) -> set[str]:
    return request.config.stash[UNKNOWN]
