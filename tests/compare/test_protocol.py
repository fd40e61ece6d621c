"""What a protocol runs, and what is refused before anything runs."""

import json

import pytest
from tests.compare.conftest import TINY, recipe

from airtune.cli.main import invoke
from airtune.compare import compare_methods, entries_of, resume_comparison
from airtune.compare.protocol import FAULTS, Protocol, protocol_of, read_budget, read_protocol
from airtune.errors import RecipeError
from airtune.recipe import fleet_of


def test_robustness_runs_each_method_under_each_fault():
    asked, protocol = recipe(), Protocol("robustness")
    entries = protocol.crossed(entries_of(asked, ["fedavg-lora", "jcpba"]))
    assert len(entries) == 2 * (1 + len(FAULTS))
    document = protocol.document(entries)
    assert document["faults"]["jcpba, outage"] == ["jcpba", "outage"]
    assert document["faults"]["fedavg-lora"] == ["fedavg-lora", "none"]
    by = {entry.label: entry.recipe(asked, 5) for entry in entries}
    assert by["jcpba, unlike data"].data.alpha == 0.1
    assert by["jcpba, dropped devices"].fleet.dropout == 0.2
    assert by["jcpba, outage"].fleet.availability == 0.7
    assert by["jcpba"].fleet == asked.fleet


@pytest.mark.parametrize("name", ["quality-under-budget", "cost-to-target"])
def test_other_protocols_run_the_methods_as_they_are(name):
    entries = entries_of(recipe(), ["fedavg-lora", "jcpba"])
    assert Protocol(name).crossed(entries) == entries


def test_a_protocol_is_read_back_from_its_document():
    asked = Protocol("quality-under-budget", {"time": 60.0, "energy": 5.0})
    assert read_protocol(json.loads(json.dumps(asked.document([])))) == asked
    assert read_protocol(None) is None


def test_budgets_are_of_time_bytes_and_joules():
    assert read_budget("time=1h, bytes=2MB, joules=0.5kWh") == {
        "time": 3600.0,
        "bytes": 2e6,
        "energy": 1.8e6,
    }


@pytest.mark.parametrize(
    ("name", "budget", "said"),
    [
        (
            "speed",
            None,
            "--protocol must be one of quality-under-budget, cost-to-target, robustness",
        ),
        ("cost-to-target", None, "needs a target that is fixed before the runs"),
        (None, "time=1h", "needs --protocol quality-under-budget"),
        ("robustness", "time=1h", "belongs to --protocol quality-under-budget"),
        ("quality-under-budget", "time=soon", "a duration must be like 6h"),
        ("quality-under-budget", "money=3", "a budget is of time, bytes or joules"),
        ("quality-under-budget", "joules=0", "a budget must be above 0"),
    ],
)
def test_what_is_asked_wrongly_is_refused(name, budget, said):
    with pytest.raises(RecipeError, match=said):
        protocol_of(recipe(), name, budget)


def test_availability_thins_the_fleet_and_keeps_old_hashes():
    asked = recipe("fleet.availability=0.5", "fleet.devices=50")
    there = [fleet_of(asked).links_at(number, 0, 0.0).available.mean() for number in range(40)]
    assert 0.4 < sum(there) / len(there) < 0.6
    assert asked.digest() != recipe("fleet.devices=50").digest()
    assert '"availability"' not in json.dumps(sorted(_hashed(recipe())))


def _hashed(asked):
    return asked.hashed()["fleet"]


def test_a_study_by_protocol_is_resumed_with_more_methods(tmp_path):
    asked = recipe(f"output={tmp_path}")
    protocol = Protocol("robustness")
    done = compare_methods(asked, methods=["fedavg-lora"], folder=tmp_path / "s", protocol=protocol)
    assert len(done.runs) == 4
    more = resume_comparison(tmp_path / "s", methods=["best-bandwidth"])
    assert len(more.runs) == 8
    assert len(more.study.protocol["faults"]) == 8
    assert "Protocol: robustness" in done.report.read_text(encoding="utf-8")


def test_the_command_prints_the_protocols_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "compare",
        "--protocol",
        "quality-under-budget",
        "--budget",
        "time=1d",
        "--methods",
        "fedavg-lora,best-bandwidth",
        "--json",
        "--set",
        *TINY,
    ]
    assert invoke(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["protocol"]["values"]) == {"fedavg-lora", "best-bandwidth"}
