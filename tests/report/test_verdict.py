import json

import pytest

from airtune.report import summarise
from airtune.report.study import load_study
from airtune.report.verdict import headline, limits, straggler_rows


def said(folder):
    study = load_study([folder])
    return headline(study, summarise(study)), " ".join(limits(study, summarise(study)))


def test_five_seeds_make_a_claim(comparison):
    text, _ = said(comparison)
    assert text.startswith("jcpba needs ")
    assert "less time to the target than fedavg-lora (95" in text


def test_three_seeds_make_an_indication(small_comparison):
    text, _ = said(small_comparison(("jcpba", "fedavg-lora"), range(3), rounds=20))
    assert "This is only an indication with 3 seeds; use at least 5." in text


def test_one_seed_makes_an_observation(small_comparison):
    text, _ = said(small_comparison(("jcpba", "fedavg-lora"), (0,), rounds=20))
    assert text.endswith("so this is an observation, not evidence.")


def test_methods_that_are_alike_are_not_told_apart(small_comparison):
    text, where = said(small_comparison(("fedprox", "fedavg-lora"), range(5), rounds=20))
    assert "of fedprox and fedavg-lora does not differ significantly" in text
    assert "fedprox and fedavg-lora do not differ significantly in time" in where


def test_a_control_that_is_as_fast_is_named(small_comparison):
    _, where = said(small_comparison(("uniform", "fedavg-lora", "jcpba"), range(5), rounds=20))
    assert "uniform is slower than the fastest of the other methods, jcpba: +" in where


def test_a_slower_method_is_said_to_need_more(small_comparison):
    folder = small_comparison(("fedavg-lora", "jcpba"), range(5), rounds=20)
    plan = json.loads((folder / "compare.json").read_text())
    (folder / "compare.json").write_text(json.dumps({**plan, "baseline": "jcpba"}))
    _, where = said(folder)
    assert "fedavg-lora needs more time to the target than jcpba: +" in where


@pytest.mark.parametrize("target", [0.5, None])
def test_a_run_that_did_not_arrive_says_so(build_run, target):
    text, _ = said(build_run(target=target))
    assert ("missed the target" in text) == (target == 0.5)
    assert ("No target was set." in text) == (target is None)


def test_a_target_that_nobody_reaches_gives_no_saving(small_comparison):
    text, where = said(small_comparison(("jcpba", "fedavg-lora"), range(3), rounds=6))
    assert text.startswith("The time to the target of jcpba and fedavg-lora cannot be compared")
    assert "jcpba never reached the target." in where


def test_lost_updates_are_counted(build_run):
    _, where = said(build_run(rounds=10))
    assert "1 of 120 updates (0.8 %) came after the deadline." in where
    assert "1 of 120 updates (0.8 %) were refused as invalid." in where


def test_a_method_that_prunes_nothing_says_so(build_run):
    _, where = said(build_run(method="fedavg-lora"))
    assert "fedavg-lora pruned nothing in any round" in where


def test_of_a_method_that_cuts_no_pruning_is_expected(build_split):
    folder = build_split(method="fedavg-lora")
    assert "pruned nothing" not in said(folder)[1]


def test_a_run_that_has_not_ended_says_so(build_run):
    _, where = said(build_run(ends=False))
    assert "jcpba with seed 0 has not ended: 30 of 30 rounds are recorded." in where


def test_a_run_without_rounds_says_so(build_run):
    text, where = said(build_run(rounds=0))
    assert "jcpba recorded no round." in where
    assert "missed" in text


def test_the_straggler_is_the_last_whose_update_counts(build_run):
    run = load_study([build_run()]).first
    devices = run.record.devices
    rows = straggler_rows(run)
    assert len(rows) == 30
    for row in rows:
        same = (devices["round"] == devices["round"][row]) & (devices["status"] == "ok")
        assert devices["finish_s"][row] == devices["finish_s"][same].max()


def test_how_stale_updates_were_is_said(build_run):
    study = load_study([build_run()])
    rounds = study.first.record.rounds
    for row in rounds:
        row["buffered"] = {"staleness": {"a": 0, "b": 0}, "in_flight": 1}
    rounds[-1]["buffered"]["staleness"] = {"a": 3, "b": 0}
    where = " ".join(limits(study, summarise(study)))
    share = f"{1 / (2 * len(rounds)):.0%}"
    assert f"asynchronous: {share} of the updates" in where
    assert "at most 3 rounds earlier" in where
