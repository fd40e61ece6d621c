"""A client of a message is a process of its own, whatever becomes of it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from airtune.deploy.messenger import in_a_fork, serve


def _code(work: Callable[[], None]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(in_a_fork(work), 0)[1])


def _raise() -> None:
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("work", "code"),
    [(lambda: None, 0), (lambda: sys.exit(0), 0), (lambda: sys.exit(3), 3), (_raise, 1),
     (lambda: sys.exit("why"), 1)],
)  # fmt: skip
def test_a_client_ends_with_the_code_of_its_work(work: Callable[[], None], code: int) -> None:
    assert _code(work) == code


def test_what_a_client_changes_stays_in_it(tmp_path: Path) -> None:
    here: list[int] = []

    def work() -> None:
        here.append(os.getpid())
        (tmp_path / "who").write_text(str(os.getpid()))

    assert _code(work) == 0
    assert here == []
    assert int((tmp_path / "who").read_text()) != os.getpid()


def test_a_messenger_ends_when_it_is_told_to_though_no_node_answers() -> None:
    looks = iter([True, True, False])
    serve("127.0.0.1:1", b"secret", is_wanted=lambda: next(looks))
    assert next(looks, None) is None
