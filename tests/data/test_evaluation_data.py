import pytest

from airtune.data import DataSpec, load_federated

pytestmark = pytest.mark.data


def load(shared_text, tokenizer, train, test, **settings):
    spec = DataSpec(source=str(shared_text / train), test=str(shared_text / test), **settings)
    return load_federated(spec, tokenizer=tokenizer, devices=10, seed=0)


def test_gsm8k_has_an_answer_for_every_prompt(shared_text, tokenizer):
    data = load(
        shared_text,
        tokenizer,
        "gsm8k_train.jsonl",
        "gsm8k_test.jsonl",
        limit=200,
        max_length=512,
        columns={"prompt": "question", "completion": "answer"},
    )
    assert (data.counts["rows"], data.counts["test_rows"]) == (200, 1319)
    assert len(data.test_prompts) == 1319
    assert data.test_prompts[0][1] == "18"


def test_yahoo_has_ten_named_topics(shared_text, tokenizer):
    data = load(
        shared_text,
        tokenizer,
        "yahoo_train.jsonl",
        "yahoo_test.jsonl",
        task="classification",
        partition="dirichlet",
        alpha=0.5,
    )
    assert (data.counts["rows"], data.counts["test_rows"]) == (801, 199)
    assert len(data.labels) == 10
    assert data.labels[8] == "Family & Relationships"


def test_yahoo_is_a_language_modelling_set_too(shared_text, tokenizer):
    data = load(
        shared_text,
        tokenizer,
        "yahoo_train.jsonl",
        "yahoo_test.jsonl",
        limit=100,
        columns={"text": "text", "group": "label_name"},
        partition="shards",
    )
    assert len(data.counts["groups"]) == 10
    assert data.labels == ()


def test_sst2_is_two_classes(shared_text, tokenizer):
    data = load(
        shared_text,
        tokenizer,
        "sst2_train.jsonl",
        "sst2_dev.jsonl",
        limit=500,
        task="classification",
        columns={"text": "text", "label": "label"},
    )
    assert data.labels == ("0", "1")
    assert data.counts["test_rows"] == 872


def test_qqp_is_pairs(shared_text, tokenizer):
    columns = {
        "text": "sentence1",
        "text_pair": "sentence2",
        "label": "label",
        "label_name": "label_name",
    }
    data = load(
        shared_text,
        tokenizer,
        "qqp_train.jsonl",
        "qqp_dev.jsonl",
        limit=200,
        test_limit=200,
        task="classification",
        columns=columns,
    )
    assert data.labels == ("False", "True")
    single = load(
        shared_text,
        tokenizer,
        "qqp_train.jsonl",
        "qqp_dev.jsonl",
        limit=200,
        test_limit=200,
        task="classification",
        columns={"text": "sentence1", "label": "label"},
    )
    assert data.counts["tokens"] > 1.5 * single.counts["tokens"]
