"""The self-check refuses what is wrong and accepts what rounding explains."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.data.samples import TextRows
from airtune.errors import ModelError
from airtune.model.base import base_of
from airtune.model.kept import keep_all
from airtune.model.lora import attach, init_adapters
from airtune.model.save import save_adapter, save_pruned
from airtune.model.saved import load_adapted, load_saved
from airtune.plan import Workload
from airtune.run import export as export_module
from airtune.run.replay import replay
from airtune.work.network import tuned_network


@pytest.fixture(scope="module")
def trained(sentiment):
    return export_module._trained(sentiment)


def asked(trained, folder, load=load_saved):
    tuned = tuned_network(trained.base, trained.state, scale=trained.scale, work=trained.work)
    return replay(
        load(folder, trained.base),
        folder,
        tuned.network,
        trained.base,
        trained.samples,
        max_length=32,
    )


def saved(trained, folder, scale=1.0):
    save_pruned(
        folder,
        trained.base,
        keep_all(trained.base.shape),
        trained.state.adapters,
        scale=scale * trained.scale,
        head=trained.state.head,
    )
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_merged_and_adapter_answer_the_runs_own_rows(trained, tmp_path):
    found = asked(trained, saved(trained, tmp_path / "m"))
    save_adapter(
        tmp_path / "a",
        trained.base,
        trained.state.adapters,
        scale=trained.scale,
        head=trained.state.head,
    )
    for one in (found, asked(trained, tmp_path / "a", load_adapted)):
        assert one.rows == len(trained.samples) > 2
        assert one.batched
        assert one.logit_rms < 1e-5
        assert one.saved_loss == pytest.approx(one.loss, abs=1e-4)


def test_names_in_another_order_are_refused(trained, tmp_path):
    folder = saved(trained, tmp_path / "m")
    names = json.loads((folder / "config.json").read_text())["id2label"].values()
    edit(folder / "config.json", id2label=dict(enumerate(reversed(list(names)))))
    with pytest.raises(ModelError, match=r"names its classes neutral, .* tuned were positive"):
        asked(trained, folder)


@pytest.mark.parametrize("scale", [0.5, 0.98, 1.02])
def test_another_scale_of_the_adapters_is_refused(trained, tmp_path, scale):
    with pytest.raises(ModelError, match=r"asked one by one.*rounding explains"):
        asked(trained, saved(trained, tmp_path / "m", scale))


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.dense.bias", "classifier.bias"])
def test_a_dropped_bias_is_refused(trained, tmp_path, name):
    path = saved(trained, tmp_path / "m") / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + torch.linspace(0.0, 0.01, len(tensors[name]))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="answers differently"):
        asked(trained, path.parent)


def test_padding_on_the_side_that_was_not_trained_is_refused(trained, tmp_path):
    folder = saved(trained, tmp_path / "m")
    edit(folder / "tokenizer_config.json", padding_side="left")
    with pytest.raises(ModelError, match="asked in a batch"):
        asked(trained, folder)


def test_a_tokenizer_that_reads_otherwise_is_refused(trained, tmp_path):
    folder = saved(trained, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["apples"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="the tokenizer as saved reads 'so so many apples"):
        asked(trained, folder)


def test_a_prompt_is_read_by_itself_as_its_caller_sends_it(tmp_path):
    sizes = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    base = base_of(
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)), tokenizer=tokenizer
    )
    sent, answer = "Bot: ", "apples are red"
    assert (
        tokenizer(sent).input_ids
        != tokenizer(sent + answer).input_ids[: len(tokenizer(sent).input_ids)]
    )
    folder = tmp_path / "m"
    rows = TextRows((sent + answer,), starts=(len(sent),), special=False, end=True)
    save_pruned(folder, base, keep_all(base.shape), {}, scale=1.0)
    saved = load_saved(folder, base)
    assert replay(saved, folder, base.network, base, rows, max_length=32).rows == 1


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.float32, 2.02), (torch.bfloat16, 4.0)])
def test_the_rounding_of_thirty_blocks_is_accepted_and_a_small_fault_is_not(dtype, wrong, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    base = base_of(LlamaForCausalLM(config).to(dtype), tokenizer=tokenizer)
    names = tuple(linear.name for linear in base.shape.linears)
    work = Workload(batch=1, tokens=8, local_steps=1, rank=2, lora_targets=names)
    adapters = {
        name: 0.1 * torch.randn(tensor.shape)
        for name, tensor in init_adapters(base.shape, work, 0).items()
    }
    tuned = attach(base.network, base.family, [adapters], scale=2.0).train(False).network
    texts = ("two red apples and one pear", "how many apples are left", "seven")
    rows = TextRows(texts, starts=(0, 0, 0), special=True, end=True)
    for scale, is_right in ((2.0, True), (wrong, False)):
        folder = tmp_path / f"{scale}"
        save_pruned(folder, base, keep_all(base.shape), adapters, scale=scale)
        if is_right:
            found = replay(load_saved(folder, base), folder, tuned, base, rows, max_length=32)
            assert found.logit_rms < (1e-3 if dtype == torch.float32 else 0.5)
        else:
            with pytest.raises(ModelError, match="rounding explains"):
                replay(load_saved(folder, base), folder, tuned, base, rows, max_length=32)
