"""List the benchmarks, run one by name or all of them; one JSON object a line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

from benchmarks.figure import Figure

BENCHMARKS = {
    "solvers": "the solvers of bandwidth and pruning: gaps, speed, scale",
    "splits": "the solvers of cuts, codecs and spectrum: gaps, an exact programme, plans of real sizes",
    "model": "sliced models, batched adapters, saving and aggregation",
    "predict": "predicted against measured step time and peak memory",
    "system": "the engine, the planner and the start of a program",
    "codec": "the codec: bytes against bound and other codecs, speed, what it costs",
    "stream": "a split step over gRPC on shaped links against its floor",
    "auto": "plans of auto against the other methods, by rounds times seconds; its solver",
    "federation": "rounds of real processes on links of their own: predicted against measured",
    "crowd": "200 light devices at one server, and what a waiting agent takes",
    "sft": "split gradients, bytes and their cost in loss, delay and memory of split training",
    "jcpba": "the JCPBA tables, reduced",
    "real": "a real language model: what coding its cuts and pruning cost it, as saved",
    "fedspine": "the bandit's regret, training memory and inference of FedSpine",
}


def figures(name: str) -> Iterator[Figure]:
    """Run a benchmark of `BENCHMARKS` and yield its figures as they are measured.

    Raises:
        SystemExit: if its module is not there, naming it.
    """
    module = f"benchmarks.{name}"
    try:
        run = importlib.import_module(module).run
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise SystemExit(f"benchmark {name!r} has no module {module}") from error
    yield from run()


def main(arguments: list[str]) -> int:
    """Run what the command line names; return 0 if every figure holds, else 1."""
    if not arguments:
        for name, subject in BENCHMARKS.items():
            print(f"{name:10} {subject}")
        return 0
    names = list(BENCHMARKS) if arguments == ["all"] else arguments
    if unknown := [name for name in names if name not in BENCHMARKS]:
        known = ", ".join([*BENCHMARKS, "all"])
        print(f"unknown benchmark {unknown[0]!r}, known are {known}", file=sys.stderr)
        return 2
    holds = True
    for name in names:
        for figure in figures(name):
            print(figure.to_json(), flush=True)
            holds &= figure.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
