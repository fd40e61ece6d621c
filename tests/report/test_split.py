import itertools
import json
import re

import numpy as np
import pytest

from airtune.report import write_report
from airtune.report.rounds import shown_devices
from airtune.report.split import leakage_figure, sentence, split_panel, step_figure
from airtune.report.study import load_study


@pytest.fixture
def run(build_split):
    return load_study([build_split(devices=6, rounds=4)]).first


def test_every_part_of_a_split_is_drawn(run):
    figures = {}
    run.record.devices["server_s"][:] = 0.5
    panel = split_panel(run, "a", figures, shown_devices(run))
    titles = [title for _, title, _ in panel["plots"]]
    assert titles == [
        "The first step",
        "Bytes by direction",
        "Cut and codec",
        "Share of the link, slot by slot",
        "Privacy: what the activations reveal",
    ]
    assert {key for key, _, _ in panel["plots"]} == set(figures)
    assert panel["sentence"].endswith(" The server computed 12.0 s in all.")
    json.dumps(figures, allow_nan=False)


def test_bytes_are_told_against_their_bound(run):
    said = sentence(run.record.rounds)
    assert said.startswith("20 steps in 4 rounds: 34.3 MiB")
    assert "−6.2 % of the entropy bound" in said
    assert re.search(r"; adapters of split devices took \S+ [MKG]iB more\.$", said)


def test_the_phases_of_a_step_follow_one_another(run):
    row = run.record.rounds[0]
    data = step_figure(run, row, shown_devices(run)).figure["data"]
    assert [trace["name"] for trace in data] == [
        "forward",
        "upload",
        "server and waiting",
        "download",
        "backward",
        "server",
    ]
    for first, second in itertools.pairwise(data[:5]):
        ends = np.add(first["base"], first["x"])
        assert np.allclose(ends[1:], second["base"][1:], rtol=1e-4)
    assert data[-1]["y"] == ["server"]
    assert data[4]["x"][0] == 0.0


def test_a_server_that_takes_turns_has_a_span_for_each(build_split):
    run = load_study([build_split(turns=True, devices=6, rounds=2)]).first
    data = step_figure(run, run.record.rounds[0], shown_devices(run)).figure["data"]
    assert len(data[-1]["x"]) == 6
    assert np.allclose(data[2]["x"], 0.05, rtol=1e-3)


def test_images_have_no_tokens_to_find(run):
    found = [{"cut": 1, "codec": "fp16", "explained": 0.4, "token_recovery": None, "chance": None}]
    part = leakage_figure(found)
    assert [trace["name"] for trace in part.figure["data"]] == ["fp16"]
    assert leakage_figure([]) is None


def test_a_run_that_cuts_nothing_has_no_panel(build_run, tmp_path):
    run = load_study([build_run()]).first
    assert split_panel(run, "a", {}, shown_devices(run)) is None
    assert 'id="split"' not in write_report([run.record.folder], tmp_path).read_text()
