import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from airtune.errors import ModelError
from airtune.model.base import load_base
from airtune.model.importance import measure
from airtune.model.kept import keep_all
from airtune.model.lora import attach, init_adapters, take
from airtune.model.loss import batch_losses
from airtune.model.save import save_pruned
from airtune.model.slicing import choose_kept, slice_network

pytest.importorskip("bitsandbytes", reason="needs the extra airtune[quantised]")


def test_a_four_bit_base_is_sliced_trained_and_close_to_the_plain_one(
    make_base, make_batch, workload_of, tmp_path
):
    made = make_base("llama", hidden_size=128, head_dim=32, intermediate_size=256)
    made.network.save_pretrained(tmp_path / "m")
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "m")
    losses = []
    for in_4bit in (False, True):
        base = load_base(tmp_path / "m", load_in_4bit=in_4bit, device="cpu")
        batch = make_batch(base)
        kept = choose_kept(
            measure(base.network, base.shape, [], criterion="magnitude"), base.shape, 1, 128
        )
        sliced = slice_network(base, kept)
        query = base.family.linear(sliced, 0, "q_proj")
        assert (type(query).__name__ == "Linear4bit") == in_4bit
        adapters = take(init_adapters(base.shape, workload_of(base.shape), 0), base.shape, kept, 2)
        lora = attach(sliced, base.family, [adapters] * 2, scale=2.0)
        loss = batch_losses(lora.network, batch, devices=2)
        loss.sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in lora.parameters())
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], atol=0.5, rtol=0)
    with pytest.raises(ModelError, match="a 4-bit base cannot be saved merged or pruned"):
        save_pruned(tmp_path / "out", base, keep_all(base.shape), adapters, scale=2.0)
