import json
from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import CheckpointError
from airtune.report import write_report
from airtune.report.bandit import (
    choice_figures,
    gain_figure,
    last_tree,
    learners,
    rewards_of,
    sentence,
    tree_figures,
)
from airtune.report.sparsity import deployed, equal_sparsity, final_sparsity
from airtune.report.study import load_study


@pytest.fixture(scope="module")
def study(bandits):
    return load_study([bandits])


def test_the_recorded_tree_tiles_the_square_and_counts_every_trial(study):
    tree = last_tree(study.of("fedspine")[0])
    low, high = tree.sides[:, ::2], tree.sides[:, 1::2]
    assert np.prod(high - low, axis=1).sum() == pytest.approx(1.0)
    assert tree.sides.shape[0] > 4, "it was refined"
    answered = [8] + [7] * 18  # the first fails, one is away from the second round on
    weight = sum((n + 1) * 0.98**age for age, n in enumerate(reversed(answered)))
    assert tree.trials.sum() == pytest.approx(weight, rel=1e-3)
    assert ((tree.paid >= 0) & (tree.paid <= 1)).all()


def test_every_group_has_its_square_and_private_bandits_one(study):
    squares = tree_figures(study.of("fedspine")[0])
    assert list(squares) == ["Group 0 (fastest)", "Group 1", "Group 2 (slowest)"]
    assert list(tree_figures(study.of("private")[0])) == ["All devices"]
    trace = squares["Group 1"]["data"][0]
    grid = np.array(trace["z"], float)
    assert grid.shape == (len(trace["y"]) - 1, len(trace["x"]) - 1)
    assert squares["Group 1"]["layout"]["yaxis"]["ticktext"] == ["2", "4", "8"]


def test_groups_are_told_means_of_their_own_devices(study):
    run = study.of("fedspine")[0]
    figure = choice_figures(run)["Pruned weights, by group"]
    devices, played = run.record.devices, run.record.rounds[9]["notes"]["played"]
    member = [device for device, group, _ in played if group == 0]
    rows = (devices["round"] == 9) & np.isin(devices["device"], member)
    shown = figure["data"][0]["y"][9]
    assert shown == pytest.approx(devices["pruned"][rows].mean(), rel=1e-3)


def test_gain_is_the_sum_of_what_the_reward_was_more_than_the_controls(study):
    assert learners(study) == ("fedspine", ["fedspine random", "private"])
    line = gain_figure(study)["data"][0]
    pairs = zip(study.of("fedspine"), study.of("fedspine random"), strict=True)
    gain = np.mean([np.sum(rewards_of(one) - rewards_of(other)) for one, other in pairs])
    assert line["y"][-1] == pytest.approx(gain, rel=1e-3)
    assert line["name"] == "over fedspine random"


def test_a_method_that_learns_nothing_has_no_bandit(study, build_run):
    assert "does not use a bandit" in sentence(study.of("fedspine random")[0])
    plain = load_study([build_run()])
    assert (last_tree(plain.first), gain_figure(plain), equal_sparsity(plain)) == (None, None, [])


def test_quality_is_compared_at_the_sparsity_reached(study):
    lines = {line.method: line for line in equal_sparsity(study)}
    sparsity, quality, against = lines["fedspine random"].cells
    assert sparsity.main.startswith("50")
    assert quality.main == "65.0 %"
    assert "+7.0 pt" in against.main
    assert against.tone == "better"
    assert lines["fedspine"].cells[2].small == ("2 others",)


def test_devices_left_out_say_nothing_of_the_sparsity(study):
    run = study.first
    devices = {name: column.copy() for name, column in run.record.devices.items()}
    left_out = np.flatnonzero(devices["round"] == devices["round"].max())[:3]
    devices["local_steps"][left_out], devices["pruned"][left_out] = 0, 0.0
    changed = replace(run, record=replace(run.record, devices=devices))
    assert final_sparsity(changed) == pytest.approx(final_sparsity(run))


def test_an_exported_model_stands_beside_the_dense_one(study, bandits):
    (line,) = deployed(study)
    assert line.method == "fedspine, seed 0"
    assert [cell.main.replace("\xa0", " ") for cell in line.cells] == [
        "50.0 %",
        "0.55 × dense",
        "0.55 × dense",
        "0.65 × dense",
    ]
    assert line.cells[-1].small[-1] == "a token written: 4.0 ms against 5.0 ms"


def test_a_damaged_manifest_is_named(bandits, tmp_path):
    study = load_study([bandits / "runs" / "fedspine-s1"])
    place = study.first.record.folder / "export-merged"
    place.mkdir()
    (place / "airtune.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export-merged/airtune\.json is damaged"):
        deployed(study)
    (place / "airtune.json").write_text(json.dumps({"format": "adapter"}))
    assert deployed(study) == []


def test_a_page_about_loss_shows_accuracy_against_time_too(bandits, tmp_path):
    folder = bandits / "runs" / "fedspine-s2"
    header = json.loads((folder / "run.json").read_text())
    header["target"] = {"metric": "loss", "value": 2.2}
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("rounds.jsonl", "devices.csv", "result.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "run.json").write_text(json.dumps(header))
    assert (
        "Accuracy against virtual wall-clock" in write_report([copy], tmp_path / "out").read_text()
    )
