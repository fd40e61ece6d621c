"""Class names: one order for data, head and config."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from airtune.data.labels import label_map
from airtune.data.table import table_from_rows
from airtune.errors import ModelError
from airtune.model.base import load_base
from airtune.model.classes import class_names, name_classes_, order_like

SIZES = {
    "vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16,
}  # fmt: skip


def classifier(*names, **settings):
    torch.manual_seed(0)
    config = BertConfig(id2label=dict(enumerate(names)), **SIZES, **settings)
    return BertForSequenceClassification(config).eval()


def ids_of(labels, *, known, given=()):
    table = table_from_rows([{"label": label} for label in labels], source="rows.jsonl")
    return list(label_map(table, "label", name_column=None, labels=given, known=known).values())


@pytest.mark.parametrize(
    ("labels", "known", "wanted"),
    [
        (["b", "a"], ("b", "a"), ["b", "a"]),
        (["very bad", "good"], ("Very_Bad", "GOOD"), ["very bad", "good"]),
        (["b", "a"], ("LABEL_0", "LABEL_1"), ["a", "b"]),
        (["b", "a"], ("b", "a", "c"), ["a", "b"]),
        (["b", "a", "c"], ("b", "a"), ["a", "b", "c"]),
        (["A", "a"], ("a", "A"), ["A", "a"]),
        ([10, 2], ("10", "2"), ["10", "2"]),
        (["b", "a"], (), ["a", "b"]),
    ],
)
def test_the_order_is_the_heads_where_the_classes_are_the_same(labels, known, wanted):
    assert ids_of(labels, known=known) == wanted


def test_the_recipes_order_goes_before_the_heads():
    assert ids_of(["b", "a"], known=("b", "a"), given=("a", "b")) == ["a", "b"]


def test_a_head_in_another_order_says_the_same_of_each_class():
    one, other = classifier("yes", "no", "may be"), classifier("yes", "no", "may be")
    name_classes_(other, ["May be", "YES", "no"])
    ids = torch.arange(3, 9)[None]
    assert torch.equal(one(ids).logits[:, [2, 0, 1]], other(ids).logits)
    assert class_names(other.config) == ("May be", "YES", "no")
    assert other.config.label2id == {"May be": 0, "YES": 1, "no": 2}


def test_a_config_says_that_a_text_has_one_label():
    network = classifier("a", "b", problem_type="multi_label_classification")
    name_classes_(network, ["a", "b"])
    assert network.config.problem_type == "single_label_classification"


def test_names_that_are_not_clear_have_no_order():
    assert order_like(["a", "A"], ["A", "a"]) is None


@pytest.fixture
def saved(tmp_path):
    classifier("a", "b", "c").save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    return tmp_path


def test_a_head_of_another_number_of_classes_is_drawn_anew(saved):
    one, two = (load_base(saved, labels=2, classes=("x", "y"), device="cpu") for _ in range(2))
    assert one.network.classifier.weight.shape[0] == 2
    assert one.fingerprint == two.fingerprint
    assert class_names(one.network.config) == ("x", "y")


def test_weights_that_do_not_fit_the_config_are_refused(saved):
    config = BertConfig.from_pretrained(saved)
    config.intermediate_size = 24
    config.save_pretrained(saved)
    with pytest.raises(ModelError, match=r"do not fit its config: .* is \(16,\), .* \(24,\)"):
        load_base(saved, labels=3, device="cpu")
