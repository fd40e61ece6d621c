"""From a person's data to an exported model with nothing edited by hand."""

import json

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from airtune.data import EMBEDDED_MODEL
from airtune.data.intake import take_in
from airtune.recipe import load_recipe

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
CUES = ("talks", "match", "shares", "rocket")
SHORT = [
    "train.rounds=3",
    "train.local_steps=6",
    "train.learning_rate=0.01",
    "threads=1",
    "evaluation.every=3",
    "fleet.devices=2",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def semicolons(folder):
    """AG-News-like topics from a spreadsheet, in Windows-1252, with a column named `headline`."""
    rows = [f'{n};"Café; {CUES[n % 4]} no. {n}";{TOPICS[n % 4]}\n' for n in range(48)]
    (folder / "news.csv").write_bytes(("id;headline;topic\n" + "".join(rows)).encode("cp1252"))
    return folder / "news.csv"


def logs(folder):
    for name in ("north/app.log", "north/app.log.1", "south/app.log"):
        (folder / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"12:00:{n:02d} {name} pump {n % 7} started\n" for n in range(16))
        (folder / "logs" / name).write_text(lines)
    return folder / "logs"


def clone(folder):
    data = folder / "set" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 48), ("test", 12), ("validation", 4)):
        texts = [f"the {CUES[n % 4]} of {split} {n}" for n in range(count)]
        table = pyarrow.table({"text": texts, "label": [n % 4 for n in range(count)]})
        pyarrow.parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    (folder / "set" / "README.md").write_text("A data set.")
    return folder / "set"


@torch.no_grad()
def accuracy_of(exported, found, network=None):
    """Return what plain transformers reaches on the test rows, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    network = network or AutoModelForSequenceClassification.from_pretrained(exported)
    network.eval()
    right = 0
    texts = found.test.texts(found.columns["text"])
    for text, label in zip(texts, found.test.column(found.columns["label"]), strict=True):
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        said = network.config.id2label[int(network(**ids).logits.argmax())]
        right += said == found.classes[str(label)]
    return right / len(texts)


def adapted(base, exported, found):
    """Return the adapter on its base as peft loads them; classes are named in the data's order."""
    names = dict(enumerate(found.classes.values()))
    network = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(names), id2label=names, label2id={name: n for n, name in names.items()}
    )
    return PeftModel.from_pretrained(network, exported)


@torch.no_grad()
def loss_of(exported, found):
    """Return the mean loss of a token of the test rows by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    network = AutoModelForCausalLM.from_pretrained(exported).eval()
    total, count = 0.0, 0
    for text in found.test.texts(found.columns["text"]):
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        total += float(network(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize(
    ("source", "is_encoder", "task"),
    [
        (semicolons, True, "classification"),
        (logs, False, "causal-lm"),
        (semicolons, False, "classification"),
        (clone, True, "classification"),
        (clone, False, "classification"),
    ],
)
def test_data_go_from_init_to_an_export_that_answers_as_recorded(
    place, airtune, encoder, source, is_encoder, task
):
    data, model = source(place), ["--model", encoder] if is_encoder else []
    code, said, _ = airtune("init", "--data", data, "--method", "fedavg-lora", *model)
    assert code == 0
    recipe = load_recipe("recipe.yaml")
    assert recipe.data.task == task
    assert airtune("plan", "recipe.yaml")[0] == 0
    code, _, err = airtune("run", "recipe.yaml", "--folder", "run", "--set", *SHORT)
    assert code == 0, err
    code, _, err = airtune("export", "run", "--format", "merged", "--force")
    assert code == 0, err
    recorded = json.loads((place / "run" / "result.json").read_text())["test"]
    found = take_in(recipe.data, seed=recipe.seed)
    if task == "classification":
        assert accuracy_of("run/export-merged", found) == pytest.approx(recorded["accuracy"])
        assert "4 classes" in said
    else:
        assert loss_of("run/export-merged", found) == pytest.approx(recorded["loss"], rel=1e-4)
    if is_encoder:
        assert airtune("export", "run", "--format", "adapter", "--force")[0] == 0
        network = adapted(encoder, "run/export-adapter", found)
        assert accuracy_of("run/export-adapter", found, network) == pytest.approx(
            recorded["accuracy"]
        )


def test_init_says_what_it_found_and_writes_it(place, airtune, encoder):
    code, said, _ = airtune("init", "--data", semicolons(place), "--model", encoder)
    recipe = load_recipe("recipe.yaml")
    assert code == 0
    assert "data: columns text: headline, label: topic" in said
    assert "44 rows for training, 4 for the test" in said or "43 rows" in said
    assert dict(recipe.data.columns) == {"text": "headline", "label": "topic"}
    assert recipe.data.encoding == "cp1252"
    assert recipe.data.max_length == 16


def test_columns_without_usual_names_are_guessed_and_said_to_be(place, airtune, encoder):
    rows = [{"n": n, "was": f"pump {n} leaks again", "wer": "ab"[n % 2]} for n in range(40)]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, said, _ = airtune("init", "--data", "a.jsonl", "--model", encoder)
    assert "text: was, label: wer, guessed from their content" in said
    assert dict(load_recipe("recipe.yaml").data.columns) == {"text": "was", "label": "wer"}


def test_few_rows_get_few_devices_and_positions_bound_the_length(place, airtune, encoder):
    rows = [{"text": "pump " * 200, "label": n % 2} for n in range(12)]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    airtune("init", "--data", "a.jsonl", "--model", encoder)
    recipe = load_recipe("recipe.yaml")
    assert (recipe.fleet.devices, recipe.data.max_length) == (2, 64)


def test_texts_without_labels_are_nothing_for_an_encoder(place, airtune, encoder):
    code, _, err = airtune("init", "--data", logs(place), "--model", encoder)
    assert code == 4
    assert "A bert model classifies and needs labels" in err


def test_a_plan_prices_the_texts_and_says_what_would_be_left_out(place, airtune):
    rows = [{"prompt": "why " * (80 if n % 2 else 4), "completion": "so"} for n in range(40)]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, said, _ = airtune("plan", "tiny.yaml", "data.source=a.jsonl")
    assert "data: warning: 20 of 40 rows left out" in said
    document = json.loads(airtune("plan", "tiny.yaml", "data.source=a.jsonl", "--json")[1])
    long = json.loads(airtune("plan", "tiny.yaml", "data.source=gone/here", "--json")[1])
    assert document["round_s"] < long["round_s"]
    assert any("the data are not on this machine" in line for line in long["assumptions"])


def test_a_table_without_a_row_of_names_is_warned_of(place, airtune):
    (place / "a.csv").write_text("".join(f"{n % 2},text number {n}\n" for n in range(60)))
    code, said, _ = airtune("init", "--data", "a.csv", "--task", "classification")
    assert code == 0
    assert "which looks like data: add a row of names" in said
