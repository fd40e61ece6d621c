import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from airtune.errors import ModelError, RunExistsError, StorageError
from airtune.model.base import base_of, load_base
from airtune.model.importance import measure
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import attach, head_of, init_adapters, take
from airtune.model.loss import class_logits
from airtune.model.mending import Mending, biased_layers, measure_grams
from airtune.model.plain import plain_config
from airtune.model.save import save_adapter, save_pruned, whole_folder
from airtune.model.slicing import slice_network

SCALE = 2.0
ANY_HEADS = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"]


def logits(network, batch, *, labels):
    if labels:
        return class_logits(network, batch)
    return network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def trained(base, workload_of, targets=()):
    stream = torch.Generator().manual_seed(0)
    adapters = init_adapters(base.shape, workload_of(base.shape, targets=targets), 0)
    noisy = {k: v + 0.1 * torch.randn(v.shape, generator=stream) for k, v in adapters.items()}
    head = head_of(base.network, base.family)
    return noisy, {k: v + 0.1 * torch.randn(v.shape, generator=stream) for k, v in head.items()}


def kept_of(shape, groups, channels):
    return Kept(
        (np.arange(groups),) * shape.blocks, (np.arange(0, shape.ffn)[-channels:],) * shape.blocks
    )


def auto(base):
    return AutoModelForSequenceClassification if base.shape.labels else AutoModelForCausalLM


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("labels", [0, 3])
def test_peft_loads_the_adapter_with_equal_logits(
    make_base, family_name, make_batch, workload_of, tmp_path, labels
):
    base = make_base(family_name, labels=labels)
    adapters, head = trained(base, workload_of)
    base.network.save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, adapters, scale=SCALE, head=head)
    plain = auto(base).from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").base_model.model.eval()
    heads = [head] if head else []
    ours = attach(base.network, base.family, [adapters], scale=SCALE, heads=heads)
    batch = make_batch(base)
    close(
        logits(loaded, batch, labels=base.shape.labels),
        logits(ours.network, batch, labels=base.shape.labels),
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_on_one_of_two_layers_of_like_name_stays_there(
    make_base, make_batch, workload_of, tmp_path
):
    base = make_base("bert")
    adapters, head = trained(base, workload_of, targets=("output.dense",))
    base.network.save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, adapters, scale=SCALE, head=head)
    plain = auto(base).from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").base_model.model.eval()
    wrapped = [name for name, module in loaded.named_modules() if hasattr(module, "lora_A")]
    assert wrapped == [f"bert.encoder.layer.{block}.output.dense" for block in range(2)]


def test_a_merged_model_is_loaded_by_plain_transformers(base, make_batch, workload_of, tmp_path):
    adapters, head = trained(base, workload_of)
    save_pruned(tmp_path / "m", base, keep_all(base.shape), adapters, scale=SCALE, head=head)
    loaded = auto(base).from_pretrained(tmp_path / "m").eval()
    heads = [head] if head else []
    ours = attach(base.network, base.family, [adapters], scale=SCALE, heads=heads)
    batch = make_batch(base)
    close(*(logits(n, batch, labels=base.shape.labels) for n in (loaded, ours.network)))
    assert type(loaded) is type(base.network)


def check_pruned(base, kept, batch, workload_of, folder, mending=None):
    adapters, head = trained(base, workload_of)
    mine = take(adapters, base.shape, kept, 4)
    save_pruned(folder, base, kept, mine, scale=SCALE, head=head, mending=mending)
    loaded = auto(base).from_pretrained(folder).eval()
    sliced = slice_network(base, kept, mending=mending)
    ours = attach(sliced, base.family, [mine], scale=SCALE, heads=[head] if head else [])
    close(*(logits(n, batch, labels=base.shape.labels) for n in (loaded, ours.network)))
    assert loaded.num_parameters() < base.network.num_parameters()
    return loaded


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("name", ANY_HEADS)
def test_any_number_of_heads_is_loaded_by_plain_transformers(
    make_base, make_batch, workload_of, tmp_path, name, labels, groups
):
    base = make_base(name, labels=labels, num_key_value_heads=4)
    kept = kept_of(base.shape, groups, 17)
    loaded = check_pruned(base, kept, make_batch(base), workload_of, tmp_path / "m")
    as_mistral = name == "llama" and groups == 3
    assert loaded.config.model_type == ("mistral" if as_mistral else name)


def test_gemma_keeps_heads_that_divide_its_width_and_says_so_of_others(
    make_base, make_batch, workload_of, tmp_path
):
    base = make_base("gemma3_text", num_key_value_heads=4)
    check_pruned(base, kept_of(base.shape, 2, 17), make_batch(base), workload_of, tmp_path / "m")
    with pytest.raises(ModelError, match="3 heads do not divide a width of 32"):
        plain_config(base, kept_of(base.shape, 3, 17))


def test_rope_scaling_survives_the_change_to_mistral(make_base, make_batch, workload_of, tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    base = make_base("llama", num_key_value_heads=4, rope_parameters=rope)
    kept = kept_of(base.shape, 3, 17)
    loaded = check_pruned(base, kept, make_batch(base), workload_of, tmp_path / "m")
    assert loaded.config.rope_parameters["factor"] == 4.0


def mending_by(base, batch, mend, *, saved=True):
    means = measure(base.network, base.shape, [batch]).means
    grams = measure_grams(base.network, base.shape, [batch])
    biased = biased_layers(base, saved=saved)
    return Mending(means, grams if mend == "least-squares" else None, biased)


@pytest.mark.parametrize("mend", ["mean", "least-squares"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "bert", "roberta"])
def test_what_mends_a_slice_is_saved_with_it(
    make_base, make_batch, workload_of, tmp_path, name, mend
):
    base = make_base(name)
    batch = make_batch(base)
    groups = 2 if base.family.any_head_count else base.shape.kv_groups
    kept = kept_of(base.shape, groups, 5)
    mending = mending_by(base, batch, mend)
    loaded = check_pruned(base, kept, batch, workload_of, tmp_path / "m", mending=mending)
    assert loaded.config.model_type == name


@pytest.mark.parametrize("switch", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_constants_of_a_number_of_heads_that_llama_lacks_are_saved(
    make_base, make_batch, workload_of, tmp_path, switch
):
    base = make_base("llama", num_key_value_heads=4, **switch)
    batch, kept = make_batch(base), kept_of(base.shape, 3, 17)
    mending = mending_by(base, batch, "mean")
    loaded = check_pruned(base, kept, batch, workload_of, tmp_path / "m", mending=mending)
    assert loaded.config.model_type == "granite"


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta"])
def test_families_that_cannot_have_fewer_heads_say_so(make_base, workload_of, tmp_path, name):
    base = make_base(name)
    kept = kept_of(base.shape, 2, 5)
    mine = take(trained(base, workload_of)[0], base.shape, kept, 4)
    with pytest.raises(
        ModelError, match=f"a plain {name} config cannot have fewer heads, got 2 of"
    ):
        save_pruned(tmp_path / "m", base, kept, mine, scale=SCALE)
    assert not list(tmp_path.iterdir())


def test_a_classifier_with_biases_needs_heads_that_divide_the_width(
    make_base, workload_of, tmp_path
):
    base = make_base("llama", labels=3, num_key_value_heads=4, attention_bias=True)
    kept = kept_of(base.shape, 3, 5)
    mine = take(trained(base, workload_of)[0], base.shape, kept, 4)
    with pytest.raises(ModelError, match=r"3 heads do not divide a width of 32.*none has both"):
        save_pruned(tmp_path / "m", base, kept, mine, scale=SCALE)


def test_a_constant_without_a_bias_to_hold_it_is_refused(
    make_base, make_batch, workload_of, tmp_path
):
    base = make_base("qwen2")
    mending = mending_by(base, make_batch(base), "mean", saved=False)
    kept = kept_of(base.shape, 2, 5)
    mine = take(trained(base, workload_of)[0], base.shape, kept, 4)
    with pytest.raises(ModelError, match=r"down_proj of a qwen2 model has no bias, and its config"):
        save_pruned(tmp_path / "m", base, kept, mine, scale=SCALE, mending=mending)


def test_counts_that_differ_over_blocks_are_refused(base, workload_of, uneven_kept, tmp_path):
    kept = uneven_kept(base.shape)
    mine = take(trained(base, workload_of)[0], base.shape, kept, 4)
    with pytest.raises(ModelError, match="a plain config has one number of groups for all blocks"):
        save_pruned(tmp_path / "m", base, kept, mine, scale=SCALE)


def test_an_existing_folder_is_replaced_only_on_request(make_base, workload_of, tmp_path):
    base = make_base("llama")
    adapters, _ = trained(base, workload_of)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "old").write_text("precious")
    with pytest.raises(RunExistsError, match=r"adapter is already there.*--force"):
        save_adapter(folder, base, adapters, scale=SCALE)
    assert (folder / "old").exists()
    save_adapter(folder, base, adapters, scale=SCALE, overwrite=True)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors"}
    assert "old" not in names


def test_a_full_disk_leaves_nothing_half_written(make_base, workload_of, tmp_path, monkeypatch):
    base = make_base("llama")
    adapters, _ = trained(base, workload_of)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("airtune.model.save.save_file", full)
    with pytest.raises(StorageError, match="the disk is full; free space"):
        save_adapter(tmp_path / "adapter", base, adapters, scale=SCALE)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def precious(tmp_path):
    """A folder that was written before."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("precious")
    yield tmp_path / "m"
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["m", "m/old"]


def test_what_was_there_stays_when_the_new_folder_does_not_get_whole(precious):
    def write_half():
        with whole_folder(precious, overwrite=True) as place:
            (place / "half").write_text("half")
            raise ModelError("not so")

    with pytest.raises(ModelError, match="not so"):
        write_half()


def test_what_was_there_comes_back_when_the_new_folder_cannot_be_moved(precious):
    with (
        pytest.raises(StorageError, match="cannot write"),
        whole_folder(precious, overwrite=True) as place,
    ):
        shutil.rmtree(place)


def test_the_tokenizer_travels_with_the_model(make_base, workload_of, tmp_path):
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    base = base_of(make_base("llama").network, tokenizer=tokenizer)
    save_pruned(
        tmp_path / "m", base, keep_all(base.shape), trained(base, workload_of)[0], scale=SCALE
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("a")["input_ids"] == [0]
    assert load_base(tmp_path / "m", device="cpu").shape == base.shape


def test_a_generation_config_is_exported_as_the_base_has_it(make_base, workload_of, tmp_path):
    """transformers would refuse to save a temperature without sampling once an end mark is added."""
    base = make_base("qwen2")
    said = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    base.network.generation_config = GenerationConfig(**said)
    base.network.generation_config.eos_token_id = 2
    whole = keep_all(base.shape)
    save_pruned(tmp_path / "m", base, whole, trained(base, workload_of)[0], scale=SCALE)
    found = GenerationConfig.from_pretrained(tmp_path / "m").to_dict()
    assert found.items() >= (said | {"eos_token_id": 2}).items()


def test_nothing_to_save_is_said(make_base, tmp_path):
    with pytest.raises(ModelError, match="there are no adapters to save"):
        save_adapter(tmp_path / "a", make_base("llama"), {}, scale=SCALE)


def test_what_another_process_wrote_meanwhile_is_not_replaced_unasked(tmp_path):
    folder = tmp_path / "out"
    with (
        pytest.raises(RunExistsError, match=r"out is already there.*--force"),
        whole_folder(folder, overwrite=False),
    ):
        folder.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
