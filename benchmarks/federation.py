"""Rounds of real processes, predicted against measured: on loopback, shaped and traced links.

A server and three devices, each in a network namespace of a test bed, with TLS and keys. The links of
the traced bed change every second (`testbed.traces`), and so does what crosses them: that is what
the interval is for. Seconds of a machine that has other work are upper bounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from testbed.federation import Compared, compare, federation
from testbed.network import down, up, why_not
from testbed.spec import DeviceSpec, Spec
from testbed.traces import LTE, THREE_G, Playing, drive_of

from benchmarks.figure import Figure, at_least, at_most

ROUNDS, METHODS = 12, ("fedavg-lora", "jcpba", "fedspine", "sft")
ERROR, INSIDE, REST_S, FIRST_S = 0.10, 0.8, 0.5, 15.0
_RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
_SETTINGS = (
    f"train.rounds={ROUNDS}", "data.limit=300", "data.test_limit=40", "threads=1",
    "train.local_steps=6",
)  # fmt: skip
BEDS = {
    "loopback": tuple(DeviceSpec(name, 1000, 1000) for name in ("one", "two", "three")),
    "shaped": (
        DeviceSpec("board", 8, 20),
        DeviceSpec("laptop", 20, 50),
        DeviceSpec("far", 4, 10, delay_ms=30, loss=0.002),
    ),
    "traced": (DeviceSpec("bus", 1, 2), DeviceSpec("train", 1, 2), DeviceSpec("car", 10, 25)),
}
DRIVES = (THREE_G, THREE_G, LTE)


def run() -> Iterator[Figure]:
    """Measure all beds; say why not where none can be made."""
    reason = why_not()
    if reason:
        print(f"federation: skipped, {reason}", file=sys.stderr)
        return
    for name, devices in BEDS.items():
        spec = Spec(f"bench-{name[:4]}", devices)
        down(spec)
        up(spec)
        try:
            with tempfile.TemporaryDirectory() as folder, _links(name, spec):
                yield from _of_bed(name, spec, Path(folder))
        finally:
            down(spec)


def _links(name: str, spec: Spec) -> AbstractContextManager[object]:
    """Return what changes the links of a bed while it is used."""
    if name != "traced":
        return nullcontext()
    return Playing(spec, [drive_of(kind, 600, seed) for seed, kind in enumerate(DRIVES)])


def _of_bed(name: str, spec: Spec, folder: Path) -> Iterator[Figure]:
    rounds: list[Compared] = []
    first_s, unrecorded = [], []
    with federation(spec, folder, probe_s=4.0) as bed:
        for method in METHODS:
            began = time.monotonic()
            done = bed.run(str(_RECIPE), [*_SETTINGS, f"method.name={method}"])
            wall_s = time.monotonic() - began
            found = compare(Path(done["folder"]))
            rounds += found
            print(f"{name}, {method}: {_said(found)}", file=sys.stderr)
            before_s, recorded_s = _recorded(Path(done["folder"]))
            unrecorded.append(wall_s - recorded_s)
            first_s.append(before_s + wall_s - recorded_s)
    text = f"{len(rounds)} rounds, {', '.join(METHODS)}"
    yield at_most(
        f"federation.error[{name}]", statistics.median(row.error for row in rounds), ERROR, text
    )
    inside = sum(row.is_inside for row in rounds) / len(rounds)
    yield at_least(f"federation.inside[{name}]", inside, INSIDE, text)
    rest_s = statistics.median(row.wait_s for row in rounds)
    yield at_most(
        f"federation.rest_s[{name}]", rest_s, REST_S, "of the last device: all but work and links"
    )
    yield at_most(
        f"federation.first_round_s[{name}]",
        statistics.median(first_s),
        FIRST_S,
        "airtune run to the first round; its own start and end included",
    )
    yield Figure(
        f"federation.unrecorded_s[{name}]",
        statistics.median(unrecorded),
        "none",
        True,
        "of airtune run: its start, the report, its end",
    )


def _said(rows: list[Compared]) -> str:
    return " ".join(
        f"{row.predicted_s:.2f}({row.low_s:.2f}-{row.high_s:.2f})/{row.measured_s:.2f}"
        for row in rows
    )


def _recorded(folder: Path) -> tuple[float, float]:
    """Return the seconds that a record holds before the first round, and all of them."""
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    parts: list[Mapping[str, Any]] = [json.loads(line)["measured"] for line in lines]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))["measured"]
    names = ("start_s", "loading_s", "waiting_s", "staging_s", "preparing_s")
    before_s = sum(float(parts[0].get(name, 0.0)) for name in names)
    return before_s, sum(float(part["wall_s"]) for part in (*parts, result))
