"""The protocols' tables hold what the records say."""

import json

import numpy as np
import pytest

from airtune.report import write_report
from airtune.report.protocol import protocol_table
from airtune.report.study import load_study
from airtune.report.summary import summarise


@pytest.fixture
def study_of(small_comparison):
    """Return a study of two methods, three seeds and a protocol."""

    def made(protocol, methods=("jcpba", "fedavg-lora"), **changes):
        folder = small_comparison(methods, (0, 1, 2), rounds=12, **changes)
        plan = json.loads((folder / "compare.json").read_text())
        (folder / "compare.json").write_text(json.dumps({**plan, "protocol": protocol}))
        return folder

    return made


def table_of(folder):
    study = load_study([folder])
    return study, protocol_table(study, summarise(study))


def test_quality_is_that_of_the_last_evaluation_within_the_budget(study_of):
    budget = {"time": 40.0, "energy": 9000.0}
    study, table = table_of(study_of({"name": "quality-under-budget", "budget": budget}))
    assert table.titles == ("within 40.0 s", "within 9 kJ", "within all")
    for method in study.methods:
        runs = study.of(method)
        by_time = [run.quality[np.flatnonzero(run.end_s <= 40.0)[-1]] for run in runs]
        both = [
            run.quality[np.flatnonzero((run.end_s <= 40.0) & (run.energy_j <= 9000.0))[-1]]
            for run in runs
        ]
        assert table.values[method]["within 40.0 s"] == pytest.approx(np.mean(by_time))
        assert table.values[method]["within all"] == pytest.approx(np.mean(both))


def test_without_a_budget_all_spend_what_the_thriftiest_spends(study_of):
    study, table = table_of(study_of({"name": "quality-under-budget", "budget": {}}))
    rows = summarise(study).rows
    assert table.titles == ("at equal time", "at equal bytes", "at equal energy", "within all")
    for method, row in rows.items():
        assert table.values[method]["at equal time"] == pytest.approx(row.at_time.mean())
        assert table.values[method]["at equal bytes"] == pytest.approx(row.at_bytes.mean())


def test_costs_to_the_target_are_those_of_the_summary(study_of):
    study, table = table_of(study_of({"name": "cost-to-target"}, target=3.5))
    for method, row in summarise(study).rows.items():
        for kind in ("time", "bytes", "energy", "rounds"):
            mean = np.mean([cost.value for cost in row.cost(kind)])
            assert table.values[method][kind] == pytest.approx(mean)
        assert table.values[method]["hits"] == sum(cost.hit for cost in row.time)


def test_robustness_pairs_every_fault_with_the_run_without(study_of):
    faults = {
        "jcpba": ["jcpba", "none"],
        "fedavg-lora": ["jcpba", "outage"],
        "gone": ["jcpba", "unlike data"],
    }
    study, table = table_of(study_of({"name": "robustness", "faults": faults}, target=None))
    (line,) = table.lines
    clean, outage, gone = line.cells
    rows = summarise(study).rows
    gap = float(np.mean(rows["fedavg-lora"].final - rows["jcpba"].final))
    assert not clean.small
    assert outage.small[0].startswith(study.metric.write_change(gap))
    assert any(text.startswith("time ") for text in outage.small)
    assert gone.main == "–"
    assert table.values["jcpba"]["none"] == pytest.approx(rows["jcpba"].final.mean())


def test_the_page_shows_the_table(study_of):
    folder = study_of({"name": "quality-under-budget", "budget": {"bytes": 1e8}})
    text = write_report([folder], folder).read_text(encoding="utf-8")
    assert "Protocol: quality-under-budget" in text
    assert "within 95.4 MiB" in text


def test_a_study_without_a_protocol_has_no_table(small_comparison):
    study = load_study([small_comparison(("jcpba",), (0,), rounds=4)])
    assert protocol_table(study, summarise(study)) is None
