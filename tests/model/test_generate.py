import torch
from transformers import GenerationConfig

from airtune.model.generate import write_greedily


def test_a_base_that_searches_beams_and_returns_more_writes_greedily_all_the_same(make_base):
    network = make_base("qwen2").network
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    wanted = ids
    for _ in range(4):
        wanted = torch.cat([wanted, network(input_ids=wanted).logits[:, -1:].argmax(-1)], 1)
    own = GenerationConfig(num_beams=3, num_return_sequences=2, return_dict_in_generate=True)
    network.generation_config = own
    found = write_greedily(network, ids, tokens=4, ends=None, pad=0)
    assert torch.equal(found, wanted[:, 3:])
    assert network.generation_config is own
