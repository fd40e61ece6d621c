"""The composition root: what is built, that runs repeat and resume exactly, and the controls."""

import json
import shutil

import numpy as np
import pytest
from tests.run.conftest import recipe, rounds_of

from airtune.compare import compare_methods, entries_of, resume_comparison
from airtune.errors import CheckpointError, InfeasibleError, RecipeError, RunExistsError
from airtune.methods import METHODS
from airtune.records import read_run
from airtune.run import build_pieces, choose_method, resume_run, run_recipe
from airtune.run.alone import of_device
from airtune.run.controls import CONTROLS, pooled


def test_a_recipe_becomes_objects(assets):
    pieces = build_pieces(recipe("lora.r=4", "deadline_s=9"), assets)
    workload = pieces.problem.workload
    assert (workload.rank, workload.batch, workload.local_steps) == (4, 2, 1)
    assert workload.lora_targets == tuple(linear.name for linear in pieces.problem.shape.linears)
    assert workload.tokens == max(len(r) for d in assets.data.devices for r in d.train.tokens)
    assert pieces.problem.deadline_s == 9
    assert pieces.engine.train.scale == 4.0
    assert pieces.problem.devices.weight.sum() == pytest.approx(1.0)


def test_only_completions_are_scored(assets):
    workload = build_pieces(recipe(), assets).problem.workload
    targets = [row for device in assets.data.devices for row in device.train.targets]
    scored = np.mean([np.sum(row[1:] >= 0) for row in targets])
    assert workload.scored == pytest.approx(scored / workload.tokens)
    assert 0.0 < workload.scored < 1.0


def test_half_precision_and_classification_reach_the_workload():
    pieces = build_pieces(
        recipe("data.source=embedded:topics", "data.task=classification", "model.dtype=bfloat16")
    )
    assert pieces.problem.workload.trains_head
    assert pieces.problem.workload.dtype_bytes == 2
    assert pieces.problem.shape.labels == len(pieces.assets.data.labels) == 8


def test_the_same_recipe_gives_the_same_run_and_a_stopped_one_too(assets, tmp_path):
    asked = recipe("method.name=best-bandwidth")
    first = run_recipe(asked, folder=tmp_path / "a", assets=assets, reports=False)
    run_recipe(asked, folder=tmp_path / "b", assets=assets, reports=False)
    assert rounds_of(tmp_path / "a") == rounds_of(tmp_path / "b")
    (tmp_path / "b" / "result.json").unlink()
    shutil.rmtree(tmp_path / "b" / "checkpoint" / "round-000002")
    again = resume_run(tmp_path / "b", assets=assets, reports=False)
    assert rounds_of(tmp_path / "a") == rounds_of(tmp_path / "b")
    assert (tmp_path / "a" / "devices.csv").read_bytes() == (
        tmp_path / "b" / "devices.csv"
    ).read_bytes()
    assert {**again.results, "measured": None} == {**first.results, "measured": None}


def test_a_run_killed_before_its_first_checkpoint_starts_anew(assets, tmp_path):
    asked = recipe("method.name=fedavg-lora")
    run_recipe(asked, folder=tmp_path / "a", assets=assets, reports=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoint")
    (tmp_path / "b" / "result.json").unlink()
    resume_run(tmp_path / "b", assets=assets, reports=False)
    assert rounds_of(tmp_path / "a") == rounds_of(tmp_path / "b")


def test_the_header_says_what_was_run(assets, tmp_path):
    run_recipe(
        recipe("method.budget=0.2", "target={metric: loss, value: 2}"),
        folder=tmp_path / "a",
        assets=assets,
        reports=False,
    )
    header = read_run(tmp_path / "a").header
    assert header["method"]["settings"]["budget"] == 0.2
    assert header["method"]["reconstructed"]
    assert header["target"] == {"metric": "loss", "value": 2.0, "stop": False}
    assert header["model"]["shape"]["blocks"] == assets.base.shape.blocks
    assert "measurements" not in header
    assert any("the clock counts" in line for line in header["fleet"]["assumptions"])
    assert "wall_s" not in json.dumps(header)


def test_calibration_is_measured_once_and_used_again(assets, tmp_path):
    output = f"output={tmp_path}/out"
    stages = []
    from airtune.run import Watch

    watch = Watch(on_stage=stages.append)
    run_recipe(recipe(output), folder=tmp_path / "a", assets=assets, watch=watch, reports=False)
    assert sum("calibrating" in stage for stage in stages) == 1
    stages.clear()
    run_recipe(recipe(output), folder=tmp_path / "b", assets=assets, watch=watch, reports=False)
    assert not any("calibrating" in stage for stage in stages)
    first, second = (read_run(tmp_path / name).header["measurements"] for name in "ab")
    assert [rate for rate, *_ in first["pruning"]] == [0.0, 0.3]
    assert first == second
    assert "device-seconds" in first["source"]


def test_a_quality_budget_goes_to_methods_that_have_one():
    jcpba = choose_method(recipe("quality_budget=2%"))
    assert jcpba.method.decider.quality_budget == pytest.approx(0.02)
    own = choose_method(recipe("quality_budget=2%", "method.quality_budget=0.05"))
    assert own.method.decider.quality_budget == pytest.approx(0.05)
    assert (
        choose_method(recipe("quality_budget=2%", "method.name=fedavg-lora")).label == "fedavg-lora"
    )


def test_a_method_from_a_file_runs(assets, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from airtune.methods.whole_equal import WholeEqual\n"
        "@dataclass(frozen=True)\n"
        "class Mine(WholeEqual):\n    size: int = 1\n"
    )
    result = run_recipe(
        recipe(f"method.name={path}:Mine", "method.size=3"),
        folder=tmp_path / "a",
        assets=assets,
        reports=False,
    )
    header = read_run(result.folder).header
    assert header["method"]["name"] == "Mine"
    assert header["method"]["settings"] == {"size": 3}
    with pytest.raises(RecipeError, match="did you mean size"):
        recipe(f"method.name={path}:Mine", "method.sise=3")


def test_other_weights_do_not_resume(assets, tmp_path):
    run_recipe(
        recipe("method.name=fedavg-lora"), folder=tmp_path / "a", assets=assets, reports=False
    )
    (tmp_path / "a" / "result.json").unlink()
    path = tmp_path / "a" / "run.json"
    path.write_text(path.read_text().replace(assets.base.fingerprint, "0" * 64))
    with pytest.raises(CheckpointError, match="has other weights"):
        resume_run(tmp_path / "a", assets=assets, reports=False)


def test_changed_rows_do_not_resume(tmp_path):
    source = tmp_path / "rows.jsonl"
    rows = [{"text": f"a{number} b c d e"} for number in range(40)]
    source.write_text("\n".join(map(json.dumps, rows)))
    with_data = recipe("method.name=fedavg-lora", f"data.source={source}")
    run_recipe(with_data, folder=tmp_path / "a", reports=False)
    (tmp_path / "a" / "result.json").unlink()
    source.write_text(source.read_text().replace("a7 ", "a8 "))
    with pytest.raises(CheckpointError, match=r"rows\.jsonl' are not what they were"):
        resume_run(tmp_path / "a", reports=False)


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(RunExistsError, match="already there"):
        run_recipe(recipe(), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, assets):
    folder = tmp_path_factory.mktemp("compare") / "c"
    asked = recipe(f"output={folder.parent}", "train.rounds=1")
    methods = [
        "fedavg-lora",
        "untuned",
        "local-only",
        "pooled",
        {"name": "jcpba", "budget": 0.3, "label": "pruned"},
    ]
    return compare_methods(asked, methods=methods, seeds=[0], folder=folder)


def final(compared, label, seed=0):
    record = read_run(compared.folder / "runs" / f"{label}-s{seed}")
    return record.rounds[-1]


def test_controls_begin_at_the_same_model(compared):
    rows = [
        read_run(compared.folder / "runs" / f"{label}-s0").rounds[0]
        for label in ("fedavg-lora", "untuned", "local-only", "pooled", "pruned")
    ]
    starts = [row["initial"]["loss"] for row in rows]
    assert np.allclose(starts, starts[0], rtol=1e-5)


def test_untuned_spends_nothing_and_learns_nothing(compared):
    row = final(compared, "untuned")
    assert row["validation"]["loss"] == row["initial"]["loss"]
    assert (row["upload_bytes"], row["end_s"]) == (0.0, 0.0)


@pytest.mark.parametrize("label", ["local-only", "pooled"])
def test_controls_learn_without_traffic(compared, label):
    record = read_run(compared.folder / "runs" / f"{label}-s0")
    assert record.rounds[-1]["validation"]["loss"] < record.rounds[0]["initial"]["loss"]
    assert sum(row["upload_bytes"] + row["download_bytes"] for row in record.rounds) == 0.0
    assert record.rounds[-1]["end_s"] > 0.0


def test_every_control_of_the_registry_is_carried_out():
    assert {name for name, row in METHODS.items() if row.settings is None} == set(CONTROLS)


def test_a_cut_outside_the_model_is_refused_before_anything_is_measured(tmp_path, assets):
    asked = recipe(f"output={tmp_path}", "method.name=sft", "method.cut=9")
    with pytest.raises(InfeasibleError, match="must leave the server one of"):
        run_recipe(asked, assets=assets)
    assert not list(tmp_path.iterdir())


def test_pooling_changes_no_example(assets):
    one = pooled(assets.data).devices[0]
    assert len(one.train) == sum(len(device.train) for device in assets.data.devices)
    assert len(one.validation) == sum(len(device.validation) for device in assets.data.devices)


def test_labels_and_baseline_reach_the_summary(compared):
    assert list(compared.summary.rows) == [
        "fedavg-lora",
        "untuned",
        "local-only",
        "pooled",
        "pruned",
    ]
    assert "fedavg-lora" not in compared.summary.against
    assert compared.report.is_file()


def test_a_finished_comparison_runs_nothing_again(compared):
    times = {path: path.stat().st_mtime_ns for path in compared.folder.rglob("rounds.jsonl")}
    again = resume_comparison(compared.folder)
    assert times == {
        path: path.stat().st_mtime_ns for path in compared.folder.rglob("rounds.jsonl")
    }
    assert list(again.summary.rows) == list(compared.summary.rows)


def test_a_damaged_comparison_is_named(tmp_path):
    (tmp_path / "compare.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"compare\.json is damaged"):
        resume_comparison(tmp_path)


def test_the_recipes_own_settings_go_to_its_own_method():
    entries = entries_of(recipe("method.solver=bcd"), ["jcpba", "fedavg-lora", "random"])
    assert [entry.values["method"] for entry in entries] == [
        {"name": "jcpba", "solver": "bcd"},
        {"name": "fedavg-lora"},
        {"name": "random"},
    ]
    labels = [entry.label for entry in entries_of(recipe(), [{"name": "jcpba", "solver": "bcd"}])]
    assert labels == ["jcpba (solver=bcd)"]


def test_a_method_of_a_comparison_may_code_its_uploads():
    coded = {"name": "jcpba", "upload": {"kind": "fp16"}}
    plain, other = entries_of(recipe(), ["jcpba", coded])
    assert (plain.values.get("upload"), other.values["upload"]) == (None, {"kind": "fp16"})
    assert plain.label != other.label
    with pytest.raises(RecipeError, match=r"upload\.kind: must be .* got 'zip'"):
        entries_of(recipe(), [{"name": "jcpba", "upload": {"kind": "zip"}}])


def test_all_wrong_methods_of_a_comparison_are_listed():
    with pytest.raises(RecipeError) as caught:
        entries_of(recipe(), ["jcbpa", {"name": "random", "x": 1}])
    assert "did you mean jcpba?" in str(caught.value)
    assert "x: random has no such setting" in str(caught.value)


def test_one_devices_state_is_taken_out_of_the_common_one(assets):
    from airtune.model.state import GlobalState

    tensors = {"0/a": 1, "1/a": 2}
    state = GlobalState(0, tensors, {})
    assert of_device(state, 1).adapters == {"a": 2}
    fresh = GlobalState(0, {"a": 5}, {})
    assert of_device(fresh, 1) is fresh


@pytest.mark.parametrize(
    "method", ["{name: fedspine, form: published}", "{name: flexlora}", "{name: flora}"]
)
def test_what_coding_lost_is_not_added_to_adapters_of_other_axes(method):
    told = recipe(f"method={method}", "upload={kind: deadzone, feedback: true}")
    with pytest.raises(RecipeError, match="new axes"):
        choose_method(told)
    choose_method(recipe(f"method={method}", "upload={kind: deadzone}"))


def test_what_coding_lost_is_added_where_ranks_are_nested():
    choose_method(recipe("method.name=fedspine", "upload={kind: deadzone, feedback: true}"))


def test_a_deadline_that_nobody_meets_says_what_the_quickest_needs(assets, tmp_path):
    tight = recipe("method.name=fedavg-lora", "deadline_s=0.01", "train.rounds=1")
    done = run_recipe(tight, folder=tmp_path / "run", assets=assets, reports=False)
    devices = read_run(tmp_path / "run").devices
    name = devices["name"][int(np.argmin(devices["predicted_s"]))]
    assert set(devices["status"]) == {"late"}
    assert f"{name} needs least, about" in done.notes[-1]


def test_a_run_that_holds_nothing_out_is_tested_alone(tmp_path):
    own = recipe("data.held_out=0", "train.rounds=1", "method.name=fedavg-lora")
    results = run_recipe(own, folder=tmp_path / "r", reports=False).results
    assert results["test"]["loss"] > 0
    assert results["validation_best"] is None
    with pytest.raises(RecipeError, match=r"set data\.held_out above 0"):
        recipe("data.held_out=0", "target={metric: loss, value: 1}")
