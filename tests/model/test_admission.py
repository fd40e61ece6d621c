"""What a model and its tokenizer must agree on, over tokenizers as people have them."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from airtune.data.tokenise import tokenise_classes
from airtune.errors import ModelError
from airtune.model.admission import settle_length_, surplus_tokens, told_surplus
from airtune.model.base import load_base
from airtune.model.batch import collate
from airtune.model.cut import DeviceHalf
from airtune.model.lora import init_adapters
from airtune.model.loss import class_logits
from airtune.model.save import save_adapter
from airtune.model.source import load_tokenizer
from airtune.work.batches import join

WORDS = ("[PAD]", "[UNK]", "<s>", "</s>", "a", "b", "c", "d", "e")


def tokenizer_of(post=None, names=("input_ids", "attention_mask"), **marks):
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if post:
        places = [(mark, WORDS.index(mark)) for mark in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(
            single=post[0], pair=post[1], special_tokens=places
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=list(names), **marks)


PAIRED = ("<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 $B:1 </s>:1")
SEGMENTS = ("input_ids", "token_type_ids", "attention_mask")


@pytest.fixture
def saved(make_base, tmp_path):
    """Save a tiny model with a tokenizer; return the folder."""

    def save(name, tokenizer=None, labels=0, **config):
        network = make_base(name, labels=labels, **config).network
        network.save_pretrained(tmp_path / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_decoder_without_a_pad_token_is_batched_by_plain_transformers(saved, tmp_path, name):
    folder = saved(name, tokenizer_of(eos_token="</s>", unk_token="[UNK]"), labels=2)
    base = load_base(folder, labels=2, device="cpu")
    assert base.network.config.pad_token_id == base.tokenizer.pad_token_id == 1
    base.network.save_pretrained(tmp_path / "out")
    base.tokenizer.save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    texts = ["a b c d e", "a"]
    rows = tokenise_classes(
        texts, None, np.zeros(2, np.int64), tokenizer=base.tokenizer, max_length=9
    )
    batch = collate(rows.sequences(np.arange(2)), [0, 1])
    with torch.no_grad():
        given = plain(**tokenizer(texts, return_tensors="pt", padding=True)).logits
        torch.testing.assert_close(given, class_logits(base.network, batch))


def test_what_the_tokenizer_writes_last_does_not_pad_a_classifier(saved):
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "[UNK]"}
    folder = saved("llama", tokenizer_of(("$A </s>", "$A $B </s>"), **marks), labels=2)
    assert load_tokenizer(folder, classifies=True).pad_token == "[UNK]"
    assert load_tokenizer(folder, classifies=False).pad_token == "</s>"
    del marks["unk_token"]
    folder = saved("llama", tokenizer_of(("$A </s>", "$A $B </s>"), **marks), labels=2)
    with pytest.raises(ModelError, match="no token that can pad"):
        load_tokenizer(folder, classifies=True)


@pytest.mark.parametrize("said", [-1, 4000])
def test_a_pad_outside_the_vocabulary_is_not_used(saved, said):
    folder = saved("llama", tokenizer_of(eos_token="</s>"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"pad_token_id": null', f'"pad_token_id": {said}')
    )
    assert load_tokenizer(folder, classifies=False).pad_token == "</s>"


def test_an_added_pad_token_without_a_row_in_the_embedding_is_not_used(saved):
    tokenizer = tokenizer_of(eos_token="</s>")
    tokenizer.add_tokens([f"<more_{n}>" for n in range(61)])
    tokenizer.pad_token = "<more_60>"
    base = load_base(saved("llama", tokenizer), device="cpu")
    assert base.tokenizer.pad_token == "</s>"
    missing = surplus_tokens(base.tokenizer, base.shape.vocab)
    assert missing == [f"<more_{n}>" for n in range(52, 61)]
    assert told_surplus(missing, 61).startswith("the tokenizer has 9 tokens that")


def test_an_encoder_keeps_the_pad_that_its_positions_follow(saved):
    folder = saved("roberta", tokenizer_of(pad_token="[PAD]", unk_token="[UNK]"), pad_token_id=1)
    assert load_base(folder, labels=3, device="cpu").tokenizer.pad_token_id == 1


def test_ends_of_the_base_stay_behind_the_tokenizers(saved):
    folder = saved("llama", tokenizer_of(eos_token="</s>"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 7]}')
    base = load_base(folder, device="cpu")
    assert base.network.generation_config.eos_token_id == [3, 8, 7]
    assert base.network.config.eos_token_id == 3


def test_an_end_mark_that_only_the_config_names_is_the_tokenizers_too(saved):
    tokenizer = load_tokenizer(saved("llama", tokenizer_of(), eos_token_id=3), classifies=False)
    assert tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_segment_ids_are_those_of_the_tokenizer_alone_joined_and_cut(saved, padding_side):
    tokenizer = tokenizer_of(PAIRED, SEGMENTS, pad_token="[PAD]", padding_side=padding_side)
    base = load_base(saved("bert", tokenizer, labels=3), labels=3, device="cpu")
    one, two = ["a b c d e", "a"], ["b", "c d"]
    rows = tokenise_classes(one, two, np.zeros(2, np.int64), tokenizer=base.tokenizer, max_length=7)
    batch = collate(join([(rows.sequences(np.array([n])), [0]) for n in (0, 1)]), [0, 1])
    plain = base.tokenizer(
        one, two, return_tensors="pt", padding=True, truncation="longest_first", max_length=7
    )
    assert all(torch.equal(batch.inputs[name], plain[name]) for name in SEGMENTS)
    with torch.no_grad():
        torch.testing.assert_close(class_logits(base.network, batch), base.network(**plain).logits)
        half = DeviceHalf(base.network, base.family, [{}], cut=1, scale=1.0)
        at_cut = base.network(**plain, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(half.forward(batch), at_cut)


@pytest.mark.parametrize(("name", "kinds"), [("gpt2", 0), ("roberta", 1), ("distilbert", 0)])
def test_a_model_without_segments_is_given_none_by_anybody(saved, tmp_path, name, kinds):
    tokenizer = tokenizer_of(PAIRED, SEGMENTS, pad_token="[PAD]", unk_token="[UNK]")
    more = {"type_vocab_size": kinds} if kinds else {}
    settled = load_tokenizer(saved(name, tokenizer, labels=2, **more), classifies=True)
    settled.save_pretrained(tmp_path / "out")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "out")("a", "b")


def test_padding_of_a_classifier_is_on_the_right_wherever_it_is_loaded(saved, tmp_path):
    folder = saved("gpt2", tokenizer_of(eos_token="</s>", padding_side="left"), labels=2)
    load_tokenizer(folder, classifies=True).save_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "right"
    assert load_tokenizer(folder, classifies=False).padding_side == "left"


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "qwen2"])
def test_a_folder_without_tokenizer_files_is_refused(saved, name):
    with pytest.raises(ModelError, match=r"no tokenizer files|cannot load model"):
        load_base(saved(name), labels=3, device="cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(make_base, saved, value):
    folder = saved("llama", tokenizer_of(eos_token="</s>"))
    network = make_base("llama").network
    network.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    network.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"1 tensors of .*layers\.1\.mlp\.up_proj\.weight"):
        load_base(folder, device="cpu")


def test_pickled_weights_are_read_only_where_that_is_allowed(make_base, saved):
    folder = saved("llama", tokenizer_of(eos_token="</s>"))
    torch.save(make_base("llama").network.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*model\.allow_pickle: true"):
        load_base(folder, device="cpu")
    assert load_base(folder, device="cpu", allow_pickle=True).shape.blocks == 2


def test_an_output_layer_that_is_neither_there_nor_tied_is_refused(make_base, saved):
    folder = saved("llama", tokenizer_of(eos_token="</s>"), tie_word_embeddings=False)
    bare = make_base("llama", tie_word_embeddings=False).network
    bare.save_pretrained(
        folder,
        state_dict={
            name: tensor for name, tensor in bare.state_dict().items() if "lm_head" not in name
        },
    )
    with pytest.raises(ModelError, match=r"lack 1 tensors of a llama model, lm_head\.weight"):
        load_base(folder, device="cpu")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
def test_a_pooler_that_the_base_lacks_travels_with_the_adapter(
    make_base, saved, workload_of, tmp_path
):
    folder = saved("bert", tokenizer_of(PAIRED, SEGMENTS, pad_token="[PAD]"), labels=3)
    make_base("bert").network.bert.save_pretrained(
        folder,
        state_dict={
            name: tensor
            for name, tensor in make_base("bert").network.bert.state_dict().items()
            if "pooler" not in name
        },
    )
    base = load_base(folder, labels=3, device="cpu")
    assert base.drawn == ("bert.pooler",)
    adapters = init_adapters(base.shape, workload_of(base.shape), 0)
    head = {
        name: tensor + 0.5
        for name, tensor in base.network.state_dict().items()
        if name.startswith("classifier")
    }
    save_adapter(tmp_path / "adapter", base, adapters, scale=2.0, head=head)
    torch.manual_seed(5)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    base.network.load_state_dict(head, strict=False)
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, base.network(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("generation_config.json", {"num_return_sequences": 3}),
        ("generation_config.json", {"max_new_tokens": 0}),
        ("generation_config.json", {"max_new_tokens": "x"}),
        ("config.json", {"max_new_tokens": 0}),
    ],
)
def test_settings_of_generation_that_transformers_refuses_are_named(saved, file, said):
    path = saved("gpt2", tokenizer_of(eos_token="</s>"), labels=0) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(ModelError, match=rf"^{file} of .* repair or remove it"):
        load_base(path.parent, device="cpu")
    assert load_base(path.parent, labels=2, device="cpu").shape.labels == 2  # it writes nothing


def test_a_value_of_the_wrong_kind_is_told_as_one(saved):
    path = saved("gpt2", tokenizer_of(eos_token="</s>")) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "64"}))
    with pytest.raises(ModelError, match="does not take a value in its json files"):
        load_tokenizer(path.parent)


@pytest.mark.parametrize(("limit", "told"), [(3, 8), (9, 9), (None, 10**30)])
def test_a_tokenizer_takes_what_training_read_wherever_it_is_loaded(tmp_path, limit, told):
    tokenizer = tokenizer_of(eos_token="</s>", model_max_length=limit)
    settle_length_(tokenizer, 8)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == pytest.approx(told)
