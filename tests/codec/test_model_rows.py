"""A model whose first token and one channel stand out, as in real language models, bears every codec."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.codec import CODECS, decode, encode
from airtune.plan import CodecSpec

CHANNEL, WIDTH = 5, 64
CODED = (
    CodecSpec("identity"),
    CodecSpec("fp16"),
    CodecSpec("topk", keep=0.1, bits=4),
    CodecSpec("topk", keep=0.5, bits=5),
    CodecSpec("deadzone", step=0.35),
    CodecSpec("deadzone", step=0.75),
)


@torch.no_grad()
def activation(*, first, channel):
    """Return what crosses a tiny Llama's first block; token 0 begins each of six texts.

    Args:
        first: how many times as long token 0's row is.
        channel: what is added to one channel of all rows.
    """
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()
    table = network.model.embed_tokens.weight
    table.mul_(50.0)
    table[:, CHANNEL] += channel
    table[0] *= first
    tokens = torch.randint(1, 64, (6, 40), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    caught = []
    handle = network.model.layers[0].register_forward_hook(lambda *given: caught.append(given[2]))
    network(tokens)
    handle.remove()
    return caught[0].reshape(-1, WIDTH).numpy()


def error_of_the_others(rows, spec):
    """Return the relative squared error of the other rows in the other channels."""
    payload = encode(rows, spec, np.random.default_rng(0))
    lost = rows - decode(payload, max_elements=rows.size)
    others = np.ix_(np.arange(len(rows)) % 40 > 0, np.arange(WIDTH) != CHANNEL)
    return np.square(lost[others]).sum() / np.square(rows[others]).sum()


@pytest.mark.parametrize("spec", CODED, ids=lambda spec: spec.label)
def test_rows_and_channels_that_stand_out_take_nothing_from_the_others(spec):
    even = error_of_the_others(activation(first=1.0, channel=0.0), spec)
    uneven = error_of_the_others(activation(first=100.0, channel=400.0), spec)
    assert uneven <= 1.3 * even + 1e-7


def test_every_codec_is_tried():
    assert {spec.kind for spec in CODED} == set(CODECS)
