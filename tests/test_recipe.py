"""Recipes: every fault is named, all of them at once, and nothing is bent to fit."""

import re

import pytest
import yaml

from airtune.data import DataSpec
from airtune.errors import RecipeError
from airtune.plan import CodecSpec
from airtune.recipe import (
    Recipe,
    check_recipe,
    commented_recipe,
    dump_recipe,
    load_recipe,
    parse_yaml,
)
from airtune.recipe.faults import _ELSEWHERE, keys_at


def message(values=None, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(values or {}, overrides=overrides)
    return str(caught.value)


def test_the_default_needs_nothing():
    recipe = load_recipe()
    assert recipe.model.source == "embedded"
    assert recipe.data.source == "embedded:arithmetic"
    assert recipe.fleet.source == "pocket"
    assert recipe.method.name == "jcpba"


def test_all_faults_are_reported_together():
    text = message(
        {
            "nmae": "x",
            "seed": -1,
            "train": {"rounds": 0, "learning_rat": 1e-3},
            "lora": {"r": "8"},
            "data": {"sorce": "a"},
            "method": {"name": "jcpba", "budgt": 1},
            "model": 5,
        }
    )
    assert "has 8 faults" in text
    for line in (
        "nmae: unknown key, did you mean name?",
        "seed: must be at least 0, got -1",
        "train.rounds: must be at least 1, got 0",
        "train.learning_rat: unknown key, did you mean learning_rate?",
        "lora.r: must be a whole number, got '8'",
        "data.sorce: unknown key, did you mean source?",
        "method.budgt: jcpba has no such setting; did you mean budget?",
        "model: must be a section with keys of its own, got 5",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.local_steps=2.5"], "train.local_steps: must be a whole number, got 2.5"),
        (["train.weight_decay=.inf"], "train.weight_decay: must be a finite number, got inf"),
        (
            ["lora.target_modules=3"],
            "lora.target_modules: must be all-linear or a list, [a, b], got 3",
        ),
        (["model.device=gpu"], "model.device: must be auto, cpu, cuda or cuda:1, got 'gpu'"),
        (["model.dtype=int8"], "model.dtype: must be float32, bfloat16 or float16, got 'int8'"),
        (["model.load_in_4bit=1"], "model.load_in_4bit: must be true or false, got 1"),
        (["quality_budget=2x"], "quality_budget: must be a share such as 2% or 0.02, got '2x'"),
        (["quality_budget=150%"], "quality_budget: must be below 1, got '150%'"),
        (["fleet.dropout='0.5'"], "fleet.dropout: must be a share such as 2% or 0.02, got '0.5'"),
        (["deadline_s=soon"], "or a duration such as 90s, 5m or 6h, got 'soon'"),
        (["limits.joules_per_round=lots"], "or an energy such as 2kJ or 0.1kWh, got 'lots'"),
        (["data.alpha=-1"], "data: alpha must be above 0, got -1"),
        (["calibration.budgets=[0.3, 0.1]"], "calibration.budgets: must rise, got 0.3, 0.1"),
        (["compare.seeds=[a]"], "compare.seeds.0: must be a whole number, got 'a'"),
        (["compare.seeds=[]"], "compare.seeds: needs at least 1 entry, got []"),
        (["name=a/b"], "name: may have letters, digits and . _ + -, got 'a/b'"),
        (["fleet.source=5"], "fleet.source: must be text or a mapping, {key: value}, got 5"),
        (["fleet.participation=0"], "fleet.participation: must be above 0, got 0"),
        (["target={metric: loss}"], "target.value: is missing"),
        (
            ["target={metric: accuracy, value: 0.5}"],
            "target.metric of causal-lm must be loss or perplexity, got 'accuracy'",
        ),
        (["method.name=jcbpa"], "method.name: there is no method 'jcbpa'; did you mean jcpba?"),
        (["method.max_prune=1.5"], "method.max_prune: must be auto or in [0, 1), got 1.5"),
    ],
)
def test_a_fault_names_key_allowed_and_value(overrides, expected):
    assert expected in message(overrides=overrides)


def test_a_fault_of_a_list_is_said_once():
    assert "needs at least" not in message(overrides=["compare.seeds=[a]"])


def test_overrides_read_yaml():
    recipe = load_recipe(
        overrides=["train.learning_rate=3e-4", "data.labels=[a, b]", "quality_budget=2%"]
    )
    assert recipe.train.learning_rate == 3e-4
    assert recipe.data.labels == ("a", "b")
    assert recipe.quality_budget == pytest.approx(0.02)


def test_some_keys_take_a_unit():
    recipe = load_recipe(
        overrides=["deadline_s=5m", "train.seconds=1h", "fleet.availability=50%",
                   "limits.joules_per_round=2kJ", "limits.device_bytes_per_month=500 MB"]
    )  # fmt: skip
    assert (recipe.deadline_s, recipe.train.seconds) == (300.0, 3600.0)
    assert recipe.fleet.availability == 0.5
    assert (recipe.limits.joules_per_round, recipe.limits.device_bytes_per_month) == (2e3, 5e8)


def test_a_key_in_the_wrong_section_is_shown_its_own():
    text = message(overrides=["fleet.deadline_s=3", "rounds=2", "train.devices=4"])
    assert "fleet.deadline_s: unknown key, did you mean deadline_s?" in text
    assert "rounds: unknown key, did you mean train.rounds or " in text
    assert "train.devices: unknown key, did you mean fleet.devices or " in text


def test_a_method_may_be_its_name_alone(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("method: sft\n")
    assert load_recipe(path).method.name == "sft"
    assert load_recipe(path, overrides=["method.cut=2"]).method.settings == {"cut": 2}
    values = {"method": {"name": "jcpba", "penalty_weight": 0.1}}
    assert load_recipe(values, overrides=["method=fedprox"]).method.settings == {}
    assert load_recipe(path, overrides=["method={name: fedspine}"]).method.name == "fedspine"
    with pytest.raises(RecipeError, match="there is no method 'stf'; did you mean sft"):
        load_recipe({"method": "stf"})


def test_overrides_of_unknown_keys_are_listed_together():
    text = message(overrides=["train.ruonds=3", "foo=1", "seed.x=1", "lora.r"])
    assert "--set has 4 faults" in text
    assert "train.ruonds: unknown key, did you mean rounds?" in text
    assert "foo: unknown key, known here: " in text
    assert "seed.x: seed has no keys below it" in text
    assert "'lora.r': must be key=value" in text


def test_another_method_drops_the_settings_of_the_former():
    values = {"method": {"name": "jcpba", "solver": "bcd"}}
    assert load_recipe(values, overrides=["method.name=fedavg-lora"]).method.settings == {}
    kept = load_recipe(values, overrides=["method.max_prune=0.5"]).method.settings
    assert kept == {"solver": "bcd", "max_prune": 0.5}
    order = load_recipe(values, overrides=["method.penalty_weight=0.1", "method.name=fedprox"])
    assert order.method.settings == {"penalty_weight": 0.1}


def test_overriding_leaves_the_given_values_alone():
    values = {"train": {"rounds": 3}}
    load_recipe(values, overrides=["train.rounds=5"])
    assert values == {"train": {"rounds": 3}}


def test_yaml_is_read_as_people_mean_it():
    assert parse_yaml("3e-4", where="x") == 3e-4
    assert parse_yaml("2026-11-20", where="x") == "2026-11-20"
    with pytest.raises(RecipeError, match=r"r.yaml: key 'seed' is given twice, .* in line 2"):
        parse_yaml("seed: 1\nseed: 2", where="r.yaml")
    with pytest.raises(RecipeError, match=r"r.yaml: not readable as YAML in line 2"):
        parse_yaml("a: [1\nb: 2", where="r.yaml")


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no recipe .*write one with airtune init"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="a recipe is a mapping of keys to values, got list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="it is not text in utf-8"):
        load_recipe(tmp_path / "bytes.yaml")


def test_a_saved_recipe_reads_back_the_same(tmp_path):
    recipe = load_recipe(
        overrides=[
            "fleet.devices=3",
            "method.solver=bcd",
            "data.labels=[x]",
            "target={metric: loss, value: 2}",
        ]
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert load_recipe(path).digest() == recipe.digest()


def test_the_digest_follows_what_decides_the_numbers():
    base = load_recipe().digest()
    assert load_recipe(overrides=["seed=1"]).digest() != base
    assert load_recipe(overrides=["method.solver=bcd"]).digest() != base
    assert load_recipe(overrides=["name=x", "output=elsewhere"]).digest() == base


@pytest.mark.parametrize("model", [None, "Qwen/Qwen2.5-0.5B"])
@pytest.mark.parametrize("task", ["causal-lm", "classification", "image-classification"])
def test_the_commented_recipe_is_a_recipe(model, task):
    text = commented_recipe(
        file="r.yaml", model=model, data="./my data: x.jsonl", task=task, method="jcpba", fleet=None
    )
    recipe = check_recipe(parse_yaml(text, where="r.yaml"))
    assert recipe.data.source == "./my data: x.jsonl"
    assert recipe.data.task == task
    assert recipe.model.source == (model or "embedded")


def test_the_commented_recipe_names_every_key():
    text = commented_recipe(
        file="r.yaml", model=None, data="d", task="causal-lm", method="jcpba", fleet=None
    )
    sections = [field.annotation for field in Recipe.model_fields.values()]
    names = set(Recipe.model_fields) | set(DataSpec.__dataclass_fields__)
    names |= {key for section in sections for key in getattr(section, "model_fields", {})}
    missing = {
        key
        for key in names
        if f"{key}:" not in text and f"{key} likewise" not in text and f", {key}" not in text
    }
    assert not missing


def test_commented_defaults_are_the_defaults():
    """A new recipe has the learning loop on; every other line says what is the default."""
    text = commented_recipe(
        file="r.yaml",
        model=None,
        data="embedded:arithmetic",
        task="causal-lm",
        method="jcpba",
        fleet=None,
    )
    shown = check_recipe(yaml.safe_load(text))
    default = load_recipe()
    loop = {"decay": 0.2, "server_average": 0.9}
    assert shown.train == default.train.model_copy(update=loop)
    assert shown.upload.spec() == shown.download.spec() == CodecSpec("topk", keep=1.0, bits=8)
    assert shown.lora == default.lora
    assert shown.evaluation == default.evaluation
    assert shown.calibration == default.calibration
    assert shown.fleet == default.fleet


def test_an_upload_has_only_what_its_kind_reads():
    coded = load_recipe(overrides=["upload={kind: deadzone, step: 0.5, keep: 0.2, feedback: true}"])
    assert coded.upload.spec() == CodecSpec("deadzone", step=0.5)
    assert coded.upload.feedback
    assert "upload.keep: must be above 0, got 0" in message(overrides=["upload.keep=0"])
    assert "split.cuts: must rise, got 3, 1" in message(overrides=["split.cuts=[3, 1]"])


WORDS = [
    "no",
    "yes",
    "on",
    "Off",
    "true",
    "null",
    "1e3",
    "007",
    "1.0",
    "0x1F",
    "12:30",
    "2024-01-01",
    "1_000",
]


def test_words_stay_as_written_where_words_are_wanted():
    text = (
        f"data: {{task: classification, labels: [{', '.join(WORDS)}], "
        "columns: {label: on, text: 1e3}, split: no}"
    )
    data = load_recipe(parse_yaml(text, where="r.yaml")).data
    assert list(data.labels) == WORDS
    assert (dict(data.columns), data.split) == ({"label": "on", "text": "1e3"}, "no")


@pytest.mark.parametrize("word", WORDS)
def test_words_stay_as_written_on_the_command_line(word):
    changes = [f"data.labels=[a, {word}]", f"data.columns.text={word}", f"model.source={word}"]
    recipe = load_recipe(overrides=changes)
    assert recipe.data.labels == ("a", word)
    assert (recipe.data.columns["text"], recipe.model.source) == (word, word)


def test_a_saved_recipe_keeps_its_words():
    recipe = load_recipe(overrides=[f"data.labels=[{', '.join(WORDS)}]"])
    assert load_recipe(parse_yaml(dump_recipe(recipe), where="r.yaml")) == recipe


def test_null_is_nothing_where_nothing_is_allowed_and_numbers_are_numbers_elsewhere():
    text = "data: {test: null, subset: ~, revision: , alpha: 1e3, packing: yes}"
    data = load_recipe(parse_yaml(text, where="r.yaml")).data
    assert (data.test, data.subset, data.revision) == (None, None, None)
    assert (data.alpha, data.packing) == (1000.0, True)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lora.alpha", "lora.lora_alpha?"),
        ("train.lr", "train.learning_rate?"),
        ("alpha", "data.alpha or lora.lora_alpha?"),
        ("num_clients", "fleet.devices?"),
    ],
)
def test_a_key_of_another_tool_is_answered_with_ours(word, meant):
    with pytest.raises(RecipeError, match=re.escape(f"{word}: unknown key, did you mean {meant}")):
        load_recipe(overrides=[f"{word}=1"])


def test_a_section_of_a_model_of_data_and_of_a_fleet_may_be_its_source_alone():
    words = {"model": "Qwen/Qwen2.5-0.5B", "data": "./rows.jsonl", "fleet": "phones"}
    said = [f"{section}={source}" for section, source in words.items()]
    for recipe in (load_recipe(words), load_recipe(overrides=said)):
        found = [getattr(recipe, section).source for section in words]
        assert found == list(words.values())


def test_what_other_tools_call_a_key_leads_to_one_that_is_there():
    for meant in _ELSEWHERE.values():
        section, key = meant.split(".")
        assert key in keys_at(Recipe, [section])
