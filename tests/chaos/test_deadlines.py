"""Whatever one device does, a round ends by its deadline, and what the others sent counts.

The faults of one device during the second of three rounds; each round's seconds are compared with
the deadline. Needs root and namespaces.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos_bed import CULPRIT, DEADLINE_S, OTHER, OVER_S, ROOT, SPEC, kill, sent_bytes
from testbed.federation import PORT
from testbed.network import (
    CGROUP,
    SERVER_ADDRESS,
    device_space,
    inside,
    is_sending,
    set_link,
    set_rate,
    set_speed,
)

DOWN_S = 5.0
"""How long a link is down, and at most how long the system then waits before it sends again."""
LOST = {"absent", "late", "failed"}


def during_upload(run, rate_mbps):
    """Wait until the culprit sends its update, at such a rate."""
    set_rate(SPEC, CULPRIT, rate_mbps)
    sent = sent_bytes(CULPRIT)
    run.await_that(
        lambda: sent_bytes(CULPRIT) > sent + 30_000 and is_sending(SPEC, CULPRIT), "an upload"
    )


def end_worker(bed, run):
    assert kill("airtune.deploy.agent.worker", bed.agents[CULPRIT].pid)


def end_device_while_it_sends(bed, run):
    during_upload(run, 0.1)
    assert kill("", bed.agents[CULPRIT].pid)
    bed.agents[CULPRIT].wait(60)


def crawl_while_it_sends(bed, run):
    during_upload(run, 0.02)


def slow_down(bed, run):
    if not (CGROUP / device_space(SPEC, CULPRIT)).is_dir():
        pytest.skip("no cpu control group here, so nothing can be made slow")
    set_speed(SPEC, CULPRIT, 0.02)


def cut_link(bed, run):
    set_link(SPEC, CULPRIT, is_up=False)


def mend(bed):
    set_link(SPEC, CULPRIT, is_up=True)
    set_rate(SPEC, CULPRIT, SPEC.devices[CULPRIT].up_mbps)
    if (CGROUP / device_space(SPEC, CULPRIT)).is_dir():
        set_speed(SPEC, CULPRIT, 1.0)
    if bed.agents[CULPRIT].poll() is not None:
        bed.start_agent(CULPRIT)


@dataclass(frozen=True)
class Fault:
    """What is done to a device."""

    strike: Callable
    settings: tuple[str, ...] = ()
    becomes: frozenset[str] = frozenset(LOST)
    """What may come of its second round."""


FAULTS = {
    "its worker ends": Fault(end_worker, becomes=frozenset(LOST | {"ok"})),
    "all of it ends while it sends": Fault(end_device_while_it_sends),
    "it crawls while it sends": Fault(crawl_while_it_sends, becomes=frozenset({"late"})),
    "its processor is at a fiftieth": Fault(
        slow_down, ("train.local_steps=30",), becomes=frozenset({"late"})),
    "its link is cut": Fault(cut_link, ("train.local_steps=30",)),
    "its link is cut in a split round": Fault(
        cut_link, ("method.name=sft", "train.local_steps=20"), becomes=frozenset(LOST | {"refused"})),
    "it crawls in a split round": Fault(
        crawl_while_it_sends, ("method.name=sft", "train.local_steps=20"),
        becomes=frozenset(LOST | {"refused"})),
}  # fmt: skip


def check(rows, found, becomes):
    """Compare every round with its deadline, and what became of whom."""
    assert len(rows) == 3
    for row in rows:
        assert row["round_s"] <= DEADLINE_S + OVER_S, row
    assert {found[number, "two"] for number in range(3)} == {"ok"}
    assert found[1, "one"] in becomes


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_device_holds_nobody_up(bed, going, name):
    fault = FAULTS[name]
    run = going(f"deadline_s={DEADLINE_S}", *fault.settings)
    run.await_round(1)
    try:
        fault.strike(bed, run)
        run.await_round(2)
    finally:
        mend(bed)
    check(run.end(), run.statuses(), fault.becomes)


def test_an_announced_answer_that_never_comes_is_late_at_the_deadline(bed, going):
    kill("", bed.agents[CULPRIT].pid)
    bed.agents[CULPRIT].wait(60)
    keys = bed.keys[SPEC.devices[CULPRIT].name]
    words = [
        sys.executable,
        str(Path(__file__).with_name("mute.py")),
        f"{SERVER_ADDRESS}:{PORT}",
        str(keys),
        "1",
    ]
    with (bed.folder / "mute.log").open("wb") as log:
        mute = subprocess.Popen(
            inside(SPEC, CULPRIT, words), stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
    try:
        run = going(f"deadline_s={DEADLINE_S}")
        rows, found = run.end(), run.statuses()
    finally:
        kill("", mute.pid)
        mute.kill()
        mute.wait(60)
        mend(bed)
    assert "announced" in (bed.folder / "mute.log").read_text()
    check(rows, found, {"late"})


def test_a_link_that_goes_down_and_up_within_a_round_costs_nothing(bed, going):
    run = going("deadline_s=120", "train.local_steps=40")
    run.await_round(1)
    set_link(SPEC, OTHER, is_up=False)
    time.sleep(DOWN_S)
    set_link(SPEC, OTHER, is_up=True)
    rows = run.end()
    assert len(rows) == 3
    assert set(run.statuses().values()) == {"ok"}
    struck, *others = sorted((row["round_s"] for row in rows), reverse=True)
    assert struck <= max(others) + 2 * DOWN_S + OVER_S


def test_a_device_that_dies_in_a_split_round_stops_nobody(bed, going):
    deadline_s = 60
    run = going(
        "method.name=sft", "train.rounds=2", "train.local_steps=40", f"deadline_s={deadline_s}"
    )
    sent = sent_bytes(CULPRIT)
    run.await_that(lambda: sent_bytes(CULPRIT) > sent + 500_000, "some of its forty steps")
    assert kill("airtune.deploy.agent.worker", bed.agents[CULPRIT].pid)
    rows, found = run.end(), run.statuses()
    assert {found[number, "two"] for number in range(2)} == {"ok"}
    assert found[0, "one"] != "ok"
    assert rows[0]["split"]["device_steps"][1] == 40
    assert all(row["round_s"] <= deadline_s + OVER_S for row in rows)


def test_a_device_that_dies_in_an_asynchronous_round_holds_nobody_up(bed, going):
    """Its task is given up by its own deadline; rounds of the other device go on meanwhile."""
    run = going(
        f"deadline_s={DEADLINE_S}", "train.rounds=8", "train.async_buffer=1", "train.local_steps=8"
    )
    run.await_round(1)
    try:
        kill("", bed.agents[CULPRIT].pid)
        bed.agents[CULPRIT].wait(60)
        rows = run.end()
    finally:
        mend(bed)
    assert len(rows) == 8
    assert all(row["round_s"] <= DEADLINE_S + OVER_S for row in rows)
    found = run.statuses()
    assert {status for (_, name), status in found.items() if name == "two"} == {"ok"}
    assert sum(name == "two" for _, name in found) >= 5
    assert all(count["ok"] for count in (row["counts"] for row in rows))
