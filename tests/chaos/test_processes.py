"""What the server is made of ends with kill -9, or its disk is full: the run fails and resumes."""

import time
from contextlib import suppress

import pytest
from chaos_bed import DEADLINE_S, OVER_S, PATIENCE_S, below, is_running, kill

COMMAND_S = 3.0
"""What the end of a command takes by itself."""
PAUSE_S = 4.0
"""How long the server waits before it starts its front again, once or twice within a minute."""


def resumed(bed, folder):
    """Go on with a run as soon as the server answers again."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return bed.resume(folder)
        except RuntimeError as error:
            if "ended with 16" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(1.0)


@pytest.mark.parametrize(
    "part", ["airtune.deploy.federation.runner", "airtune.deploy.server.front"]
)
def test_a_server_process_that_is_killed_fails_the_run_and_it_resumes(bed, going, part):
    run = going("train.local_steps=30")
    run.await_round(1)
    [runner] = below("airtune.deploy.federation.runner", bed.server.pid)
    assert kill(part, bed.server.pid)
    after_s, _ = run.lost_after_s(time.monotonic())
    assert after_s <= OVER_S + COMMAND_S
    assert not is_running(runner)
    done = len(run.rows())
    assert resumed(bed, run.folder)["result"]
    assert done >= 1
    assert [row["round"] for row in run.rows()] == [0, 1, 2]


def test_a_front_that_is_killed_serves_again_at_once(bed, going):
    assert kill("airtune.deploy.server.front", bed.server.pid)
    until = time.monotonic() + PAUSE_S + bed.started_s + OVER_S
    document = bed.state / "server.json"
    while document.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    while not document.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    assert document.is_file()
    assert len(going("train.rounds=1").end()) == 1


@pytest.fixture
def disk(bed):
    """The folder of the server's runs, on a small file system of its own."""
    folder = bed.state / "runs"
    if not folder.is_mount():
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    (folder / "filler").unlink(missing_ok=True)


def test_a_full_disk_at_the_server_fails_the_run_and_it_resumes(bed, going, disk):
    run, filler = going("train.local_steps=30", f"deadline_s={DEADLINE_S}"), disk / "filler"
    run.await_round(1)
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # no room is left
        while True:
            file.write(bytes(1 << 16))
    after_s, why = run.lost_after_s(time.monotonic())
    assert "disk is full" in why
    assert after_s <= DEADLINE_S + OVER_S + COMMAND_S  # by the end of the round that goes on
    filler.unlink()
    assert run.rows()
    assert bed.resume(run.folder)["result"]
    assert [row["round"] for row in run.rows()] == [0, 1, 2]
