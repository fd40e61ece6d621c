"""A device serves one run at a time; runs whose devices are free go ahead."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.deploy.labels import read_labels
from airtune.deploy.server.queue import QUEUED, RUNNING, RunRow, blockers, holder
from airtune.deploy.server.runs import Runs
from airtune.errors import DeploymentError, StorageError

FLEET = {
    "n1": {"site": "north", "kind": "orin"},
    "n2": {"site": "north", "kind": "nano"},
    "s1": {"site": "south", "kind": "orin"},
}
NORTH, SOUTH, ORIN = {"site": "north"}, {"site": "south"}, {"kind": "orin"}
LONG_S = 60.0


def row(number: int, where: dict[str, str], status: str = QUEUED, **more: object) -> RunRow:
    return replace(RunRow(number, "r", "ada", status, "now", where=where), **more)


@pytest.mark.parametrize(
    ("earlier", "waits"),
    [
        (row(1, NORTH, RUNNING), []),
        (row(1, SOUTH, RUNNING), [1]),
        (row(1, {}, RUNNING), [1]),
        (row(1, ORIN, RUNNING), [1]),
        (row(1, ORIN, RUNNING, devices=("n1",)), []),
        (row(1, ORIN, RUNNING, devices=("n1", "s1"), evicted=("s1",)), []),
        (row(1, {}, RUNNING, devices=("gone",)), []),
        (row(1, SOUTH, QUEUED), [1]),
        (row(3, SOUTH, QUEUED), []),
        (row(3, SOUTH, RUNNING), [3]),
        (row(1, SOUTH, "finished:failed"), []),
    ],
)
def test_a_run_waits_for_earlier_runs_with_devices_of_its_own(
    earlier: RunRow, waits: list[int]
) -> None:
    mine = row(2, SOUTH)
    assert blockers(mine, [earlier, mine], FLEET) == waits


def test_a_resumed_run_waits_for_its_devices_whatever_their_labels_are_now() -> None:
    mine = row(2, {}, devices=("old",))
    assert blockers(mine, [row(1, {}, RUNNING, devices=("old",)), mine], FLEET) == [1]
    assert blockers(mine, [row(1, {}, RUNNING, devices=("n1",)), mine], FLEET) == []


WHERE = st.sampled_from([{}, NORTH, SOUTH, ORIN, NORTH | ORIN])
DEVICES = st.none() | st.lists(st.sampled_from(sorted(FLEET)), unique=True).map(tuple)


@given(st.lists(st.tuples(WHERE, DEVICES), max_size=6))
def test_no_two_runs_that_started_by_the_rules_share_a_device(
    asked: list[tuple[dict[str, str], tuple[str, ...] | None]],
) -> None:
    rows = {n: row(n, where, devices=named) for n, (where, named) in enumerate(asked)}
    for number, one in rows.items():
        if not blockers(one, rows.values(), FLEET):
            rows[number] = replace(one, status=RUNNING)
    running = [one for one in rows.values() if one.status == RUNNING]
    for name, labels in FLEET.items():
        holding = [one.number for one in running if one.holds(name, labels)]
        assert len(holding) <= 1
        assert holder(name, labels, rows.values()) == (holding[0] if holding else None)
    waiting = [one for one in rows.values() if one.status == QUEUED]
    assert all(blockers(one, rows.values(), FLEET) for one in waiting)


@pytest.mark.parametrize(
    "words", [["site"], ["=x"], ["Site=x"], ["a=b c"], ["a=b", "a=c"], ["-a=b"]]
)
def test_what_is_no_label_is_refused(words: list[str]) -> None:
    with pytest.raises(DeploymentError, match="label"):
        read_labels(words)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Runs whose processes settle on the devices that they are told of, and wait to be stopped."""
    script = tmp_path / "runner.py"
    script.write_text(
        "import json, sys\n"
        "json.loads(sys.stdin.readline())\n"
        "for line in sys.stdin:\n"
        "    names = sorted(json.loads(line).get('present', {}))\n"
        "    print(json.dumps({'event': {'stage': 'told', 'present': names}}), flush=True)\n"
    )
    monkeypatch.setattr("airtune.deploy.server.runs.RUNNER", (str(script),))
    woken: list[list[str]] = []
    made = Runs(
        tmp_path,
        present=lambda: {name: n for n, name in enumerate(FLEET)},
        labels=lambda: FLEET,
        hand=lambda node, run, ticket: None,
        wake=lambda names: woken.append(sorted(names)),
    )
    made.woken = woken
    yield made
    made.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def status(runs: Runs) -> dict[int, str]:
    return {one.number: one.status for one in runs.rows}


def submit(runs: Runs, where: dict[str, str]) -> int:
    return runs.submit({"recipe": "{}"}, name="r", operator="ada", where=where)


def told(runs: Runs, number: int) -> list[list[str]]:
    path = runs._state / "logs" / f"run-{number}.jsonl"
    events = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [event["present"] for event in events if "present" in event]


def test_runs_queue_share_nothing_and_go_ahead_when_devices_are_free(runs: Runs) -> None:
    assert [submit(runs, where) for where in (NORTH, {}, SOUTH)] == [1, 2, 3]
    assert status(runs) == {1: RUNNING, 2: QUEUED, 3: QUEUED}  # 3 does not overtake 2
    until(lambda: told(runs, 1) == [["n1", "n2"]])
    assert runs.evict(1, "n2")
    until(lambda: told(runs, 1)[-1] == ["n1"])
    assert not runs.evict(1, "s1")
    assert runs.stop(2)
    runs.start_free()
    assert status(runs) == {1: RUNNING, 2: "finished:stopped", 3: RUNNING}
    until(lambda: told(runs, 3) == [["s1"]])
    assert runs.woken == [["n1", "n2"], ["s1"]]
    assert runs.stop(1)
    assert not runs.stop(9)


def test_who_stops_a_run_is_told_the_folder_in_which_it_goes_on(runs: Runs) -> None:
    submit(runs, {})
    runs.submit({"recipe": "{}", "resume": "2026-gates"}, name="r", operator="ada", where={})
    submit(runs, {})
    runs._hear(1, {"stage": "running", "folder": "/state/runs/2026-hills"})
    stopped = [runs.stop(number) for number in (3, 2, 1)]
    assert [row and row.folder for row in stopped] == ["", "2026-gates", "2026-hills"]


def test_who_follows_a_queued_run_hears_of_its_end(runs: Runs) -> None:
    submit(runs, {})
    submit(runs, {})
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.extend(runs.follow(2, lambda: True)))
    reader.start()
    until(lambda: bool(lines))
    assert json.loads(lines[0]) == {"stage": "queued: waits for the devices of run 1"}
    assert json.loads((runs._state / "logs" / "run-1.jsonl").read_bytes().split(b"\n")[0]) == {
        "stage": "starting"
    }
    runs.stop(2)
    reader.join(LONG_S)
    assert json.loads(lines[-1]) == {"ended": "finished:stopped"}


def test_a_folder_that_cannot_be_written_ends_no_run_and_takes_no_new_one(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit(runs, NORTH)
    until(lambda: bool(told(runs, 1)))
    monkeypatch.setattr("airtune.deploy.server.runs.write_atomically", refuse)
    with pytest.raises(StorageError, match="is full"):
        submit(runs, SOUTH)
    (runs._state / "logs" / "run-1.jsonl").unlink()
    (runs._state / "logs" / "run-1.jsonl").mkdir()  # nothing can be noted there
    assert runs.evict(1, "n2")
    until(lambda: "is not kept" in caplog.text)
    assert status(runs) == {1: RUNNING}
    assert runs.stop(1)  # it is still listened to
    assert status(runs) == {1: "finished:stopped"}
    assert "list of runs is not written: the disk is full" in caplog.text
    monkeypatch.undo()
    assert submit(runs, SOUTH) == 2


def test_a_queued_run_whose_order_cannot_be_read_fails_alone(runs: Runs) -> None:
    for _ in range(3):
        submit(runs, {})
    (runs._state / "queue" / "run-2.json").write_text("{")
    runs.stop(1)
    until(lambda: status(runs) == {1: "finished:stopped", 2: "finished:failed", 3: RUNNING})


def refuse(path: Path, content: str) -> None:
    raise StorageError(f"the disk is full, {path} was not written")


def test_a_queued_run_outlives_the_server(runs: Runs) -> None:
    submit(runs, {})
    submit(runs, {})
    runs.close()
    again = Runs(
        runs._state,
        present=dict,
        labels=dict,
        hand=lambda node, run, ticket: None,
        wake=lambda names: None,
    )
    assert status(again) == {1: "finished:stopped", 2: QUEUED}
    again.start_free()
    until(lambda: status(again)[2] == RUNNING)
    again.close()
