import json

import numpy as np
import pytest

from airtune.errors import CheckpointError
from airtune.report.study import load_study
from airtune.report.summary import summarise


def test_a_comparison_keeps_its_order_and_baseline(comparison):
    study = load_study([comparison])
    assert study.methods == ("jcpba", "fedavg-lora", "uniform")
    assert study.baseline == "fedavg-lora"
    assert study.focus == "jcpba"
    assert study.seeds == [0, 1, 2, 3, 4]
    assert study.recipe == "name: synthetic\n"
    assert not study.missing


def test_one_run_has_no_baseline(build_run):
    study = load_study([build_run()])
    assert study.baseline is None
    assert study.target == 2.6
    assert study.first.quality.shape == (30,)


def test_runs_by_hand_make_a_comparison(build_run):
    study = load_study([build_run("a", method="jcpba"), build_run("b", method="fedavg-lora")])
    assert study.baseline == "fedavg-lora"


def test_equal_runs_are_told_apart_by_folder(build_run):
    study = load_study([build_run("a"), build_run("b")])
    assert study.methods == ("jcpba", "jcpba (b)")
    assert study.baseline == "jcpba"


def test_runs_that_are_not_there_yet_are_named(small_comparison):
    folder = small_comparison(("jcpba",), (0,), rounds=2)
    plan = json.loads((folder / "compare.json").read_text())
    plan |= {"methods": ["jcpba", "fedprox"], "seeds": [0, 1]}
    (folder / "compare.json").write_text(json.dumps(plan))
    assert load_study([folder]).missing == (
        "jcpba with seed 1",
        "fedprox with seed 0",
        "fedprox with seed 1",
    )


def test_without_a_target_none_is_made_up(small_comparison):
    folder = small_comparison(("jcpba", "fedavg-lora"), (0, 1), rounds=8, target=None)
    study = load_study([folder])
    assert study.target is None
    row = summarise(study).rows["fedavg-lora"]
    first, other = study.of("fedavg-lora")[0], study.of("jcpba")[0]
    end_s = min(first.end_s[-1], other.end_s[-1])
    assert row.at_time[0] == first.quality[np.flatnonzero(first.end_s <= end_s)[-1]]
    sent = min(first.traffic_bytes[-1], other.traffic_bytes[-1])
    assert row.at_bytes[0] == first.quality[np.flatnonzero(first.traffic_bytes <= sent)[-1]]


def test_bytes_and_time_only_rise(build_run):
    run = load_study([build_run()]).first
    assert (np.diff(run.traffic_bytes) > 0).all()
    assert (np.diff(run.end_s) > 0).all()


def test_a_folder_without_runs_is_an_error(tmp_path):
    (tmp_path / "compare.json").write_text('{"methods": [], "seeds": []}')
    with pytest.raises(CheckpointError, match="there is no run to report on in"):
        load_study([tmp_path])
    (tmp_path / "compare.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"compare.json is damaged"):
        load_study([tmp_path])
    with pytest.raises(CheckpointError, match="is not a run folder"):
        load_study([tmp_path / "nothing"])
