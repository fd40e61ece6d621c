"""The changes that CONTRIBUTING shows do what it says; its method has tests in tests/methods."""

import torch
from transformers import HeliumConfig, HeliumForCausalLM

from airtune.cost.shapes import llama_like
from airtune.model import families, rules
from airtune.model.aggregate import aggregate
from airtune.model.base import base_of
from airtune.model.kept import keep_all
from airtune.model.lora import init_adapters
from airtune.model.slicing import slice_network
from airtune.model.state import GlobalState, Update
from airtune.plan import AggregateSpec, Workload
from airtune.plan import method as vocabulary

from .pages import examples


def shown(start):
    """Return the piece of CONTRIBUTING that begins so."""
    return next(
        one.text
        for one in examples()
        if one.page == "CONTRIBUTING.md" and one.text.startswith(start)
    )


def test_its_rule_is_the_median_of_the_updates(monkeypatch):
    names = {}
    exec(shown("# model/rules/median.py"), names)
    monkeypatch.setitem(rules.RULES, "median", names["MEDIAN"])
    monkeypatch.setattr(vocabulary, "check_choice", lambda *_: None)
    shape = llama_like(
        "llama", blocks=1, width=8, heads=2, kv_groups=1, head_dim=4, ffn=8, vocab=9, tied=True
    )
    work = Workload(batch=1, tokens=4, local_steps=1, rank=2, lora_targets=("q_proj",))
    state = GlobalState(0, init_adapters(shape, work, 0), {})
    updates = [
        Update(
            device,
            0,
            keep_all(shape),
            2,
            {name: tensor + size for name, tensor in state.adapters.items()},
            {},
            5,
        )
        for device, size in enumerate((0.25, 1e6, 0.5))
    ]
    after = aggregate(AggregateSpec("median"), state, updates, [1, 1, 1], shape=shape)
    for name, tensor in after.adapters.items():
        assert torch.equal(tensor, state.adapters[name] + 0.5)


def test_its_family_is_read_and_sliced_as_transformers_computes_it(monkeypatch):
    row = eval("{" + shown('"helium"') + "}", vars(families))
    monkeypatch.setitem(families.FAMILIES, "helium", row["helium"])
    torch.manual_seed(0)
    network = HeliumForCausalLM(
        HeliumConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )
    base = base_of(network)
    assert base.shape.parameters == sum(one.numel() for one in network.parameters())
    ids = torch.randint(3, 50, (2, 7))
    whole = slice_network(base, keep_all(base.shape))
    torch.testing.assert_close(whole(input_ids=ids).logits, network(input_ids=ids).logits)
