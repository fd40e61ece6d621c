"""Pairs of texts are read with the segment ids that their tokenizer gives to anybody."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hot", "cold", "wet", "dry"]


@pytest.fixture
def base(tmp_path):
    """A BERT whose answers hang on the segments."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    network = BertForSequenceClassification(
        BertConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
    )
    network.bert.embeddings.token_type_embeddings.weight.data.normal_(std=3.0)
    network.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_figures_of_a_run_on_pairs_are_those_of_its_export(base, tmp_path):
    pairs = [(one, two) for one in WORDS[4:] for two in WORDS[4:]] * 3
    rows = [
        {"text": one, "text_pair": f"{two} wet", "label": "ab"[one < two]} for one, two in pairs
    ]
    for name in ("rows", "test"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(content)
    recipe = load_recipe(
        overrides=[
            f"model.source={base}",
            f"data.source={tmp_path / 'rows.jsonl'}",
            "data.max_length=16",
            f"data.test={tmp_path / 'test.jsonl'}",
            "data.task=classification",
            "fleet.devices=2",
            "train.rounds=1",
            "train.local_steps=4",
            "train.learning_rate=0.01",
            "method.name=fedavg-lora",
            "threads=1",
        ]
    )
    result = run_recipe(recipe, folder=tmp_path / "run", reports=False)
    place = export_run(tmp_path / "run", "merged", accept_worse=True)
    tokenizer = AutoTokenizer.from_pretrained(place)
    network = AutoModelForSequenceClassification.from_pretrained(place).eval()
    inputs = tokenizer(
        [row["text"] for row in rows],
        [row["text_pair"] for row in rows],
        padding=True,
        return_tensors="pt",
    )
    labels = torch.tensor([network.config.label2id[row["label"]] for row in rows])
    with torch.no_grad():
        logits = network(**inputs).logits
        blind = network(inputs["input_ids"], inputs["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert result.results["test"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert result.results["test"]["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert abs(torch.nn.functional.cross_entropy(blind, labels).item() - loss) > 0.01
