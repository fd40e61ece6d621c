"""A run that was killed at any moment goes on to the same bits."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.loop import training
from tests.loop.training import ROUNDS, TOPK, Wanderer, assert_equal_runs, make_run, resume, train

from airtune.engine.checkpoint import load_checkpoint
from airtune.errors import RunInterruptedError
from airtune.loop import LoopSettings, begin, run_rounds
from airtune.model.server import ServerOptimizer
from airtune.plan import CodecSpec, WorkSpec
from airtune.records import read_run


class Killed(BaseException):
    """Stands for kill -9: no handler of the package catches it."""


def die(folder, **choices):
    """Train until the second round is recorded and not saved."""

    def fatal(record):
        if record["round"] == 1:
            raise Killed

    run, state = make_run(folder, **choices)
    with pytest.raises(Killed):
        run_rounds(run, begin(run, state), on_round=fatal)


@pytest.mark.parametrize("moment", [1, *range(7, 15)])
def test_killed_between_any_two_writes_a_run_resumes_to_the_same_bits(
    whole, tmp_path, monkeypatch, moment
):
    calls, force = [], os.fsync

    def stop(descriptor):
        calls.append(descriptor)
        if len(calls) == 1 + moment:  # the first is the header's
            raise Killed
        force(descriptor)

    folder = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(Killed):
        train(folder)
    monkeypatch.undo()
    resume(folder)
    assert_equal_runs(folder, whole)


def test_a_process_killed_for_real_resumes_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, training.__file__, str(folder)],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(read_run(folder).rounds) == 2
    assert load_checkpoint(folder / "checkpoint", identity="me").rounds == 1
    resume(folder)
    assert_equal_runs(folder, whole)


def test_what_coding_has_lost_goes_on_after_a_kill(whole, tmp_path):
    lossy, folder = tmp_path / "whole", tmp_path / "run"
    train(lossy, upload=TOPK)
    die(folder, upload=TOPK)
    saved = load_checkpoint(folder / "checkpoint", identity="me")
    assert any(name.startswith("uplink/") for name in saved.engine)
    resume(folder, upload=TOPK)
    assert_equal_runs(folder, lossy)
    sent, plain = (read_run(place).rounds[-1] for place in (lossy, whole))
    assert sent["upload_bytes"] < 0.2 * plain["upload_bytes"]
    assert sent["round_s"] < plain["round_s"]


SWITCHES = LoopSettings(decay=0.2, server=ServerOptimizer(average=0.9, momentum=0.5))


def test_a_learning_loop_with_all_its_switches_resumes_to_the_same_bits(whole, tmp_path):
    full, folder = tmp_path / "whole", tmp_path / "run"
    train(full, loop=SWITCHES)
    die(folder, loop=SWITCHES)
    resume(folder, loop=SWITCHES)
    assert_equal_runs(folder, full)
    last, result = read_run(full).rounds[-1], read_run(full).results
    assert last["validation_raw"]["loss"] != last["validation"]["loss"]
    assert result["test_raw"]["loss"] != result["test"]["loss"]
    assert "validation_raw" not in read_run(whole).rounds[-1]


class Cutter(Wanderer):
    """Cuts every device, and remembers what crosses."""

    def plan(self, problem, state, observation):
        plan, state = super().plan(problem, state, observation)
        told, zeros = plan.assignments, np.zeros(len(plan.assignments))
        spec = CodecSpec("topk", keep=0.3, bits=4, predict=not problem.work.device_frozen)
        told = replace(
            told,
            cut=np.ones(len(told), np.int64),
            prune_heads=zeros,
            prune_ffn=zeros,
            codecs=(spec,),
        )
        return replace(plan, assignments=told), state


@pytest.mark.parametrize("frozen", [False, True])
def test_a_killed_split_run_resumes_to_the_same_bits(tmp_path, frozen):
    choices = {"decider": Cutter(), "upload": TOPK, "work": WorkSpec(device_frozen=frozen)}
    one, other = tmp_path / "whole", tmp_path / "run"
    train(one, **choices)
    die(other, **choices)
    saved = load_checkpoint(other / "checkpoint", identity="me")
    assert any(name.startswith("cut/") for name in saved.engine)
    resume(other, **choices)
    assert_equal_runs(other, one)
    split = read_run(one).rounds[-1]["split"]
    assert (split["gradient_down_bytes"] == 0) == frozen
    assert split["steps"] == 2


def test_ctrl_c_leaves_the_last_finished_round_and_says_how_to_go_on(whole, tmp_path):
    folder = tmp_path / "run"
    run, state = make_run(folder)

    def press(record):
        if record["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError, match=f"after 1 of {ROUNDS} rounds.*--resume {folder}"):
        run_rounds(run, begin(run, state), on_round=press)
    resume(folder)
    assert_equal_runs(folder, whole)


def test_a_finished_run_resumes_to_its_own_end(whole, tmp_path):
    folder = tmp_path / "run"
    train(folder)
    assert resume(folder).rounds == ROUNDS
    assert_equal_runs(folder, whole)
