"""Runs in processes of their own: several at once, and if one dies the others go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from airtune import errors
from airtune.errors import AirtuneError, RunInterruptedError, TrainingError
from airtune.recipe import Recipe, check_recipe
from airtune.run import Assets, RunResult, Watch, resume_run, run_recipe, saved_recipe


def run_one(
    recipe: Recipe,
    label: str,
    folder: Path,
    *,
    assets: Assets | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Run a recipe in a folder, or go on with what is there, without a page of its own."""
    if (folder / "run.json").exists() or (folder / "recipe.yaml").exists():
        more = (
            recipe.train.rounds if recipe.train.rounds > saved_recipe(folder).train.rounds else None
        )
        return resume_run(
            folder, rounds=more, label=label, assets=assets, watch=watch, reports=False
        )
    return run_recipe(recipe, folder=folder, label=label, assets=assets, watch=watch, reports=False)


class JobProcesses:
    """The processes of a study; `stop` interrupts them all, and none is begun afterwards."""

    def __init__(self) -> None:
        self._alive: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self, recipe: Recipe, label: str, folder: Path) -> RunResult:
        """Run one in a process of its own and wait for it.

        Raises:
            AirtuneError: what it ended with.
            TrainingError: if the process died.
        """
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        process = spawning.Process(target=_work, args=(recipe.plain(), label, folder, theirs))
        with self._lock:
            if self._is_stopped:
                raise RunInterruptedError("the study was interrupted")
            process.start()
            self._alive.add(process)
        theirs.close()
        said = _heard(ours)
        process.join()
        with self._lock:
            self._alive.discard(process)
        if said is None:
            raise TrainingError(_died(process.exitcode))
        kind, message = said
        if kind:
            raise getattr(errors, kind)(message)
        return resume_run(folder, reports=False)

    def stop(self) -> None:
        """Interrupt every process, as Ctrl-C does."""
        with self._lock:
            self._is_stopped = True
            for process in self._alive:
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, signal.SIGINT)


def _died(code: int | None) -> str:
    """Return how a process ended that said nothing.

    >>> _died(-9)
    'its process was ended by signal 9; where memory ran out, resume the study with fewer --jobs'
    """
    if code is not None and code < 0:
        return (
            f"its process was ended by signal {-code}; where memory ran out, resume the study with "
            "fewer --jobs"
        )
    return (
        f"its process ended with code {code}; what it printed says why; resume the study to retry"
    )


def _heard(ours: Connection) -> tuple[str, str] | None:
    try:
        kind, message = ours.recv()
    except EOFError:
        return None
    return str(kind), str(message)


def _work(values: Mapping[str, Any], label: str, folder: Path, theirs: Connection) -> None:
    """Run in a new process; what an error says goes back to the one that waits."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_one(check_recipe(values, name=label), label, folder)
        theirs.send(("", ""))
    except AirtuneError as error:
        theirs.send((type(error).__name__, str(error)))
    except KeyboardInterrupt:
        theirs.send((RunInterruptedError.__name__, "interrupted"))


def _end_with_parent() -> None:
    """End this process when the one that began it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
