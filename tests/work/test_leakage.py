"""The leakage meter sees what is there, and less of it through a codec and deeper in."""

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from airtune.errors import DataError, ModelError
from airtune.model.batch import Sequences
from airtune.model.images import Images, image_base_of
from airtune.plan import CodecSpec
from airtune.work.leakage import measure_leakage

PLAIN, TOPK = CodecSpec(), CodecSpec("topk", keep=0.05, bits=2)


def texts(count, seed):
    draw = np.random.default_rng(seed)
    tokens = tuple(draw.integers(3, 61, draw.integers(5, 15)) for _ in range(count))
    return Sequences(tokens, tokens)


def test_tokens_are_recovered_at_a_shallow_cut_and_hidden_by_a_coarse_codec(base):
    plain, coarse = measure_leakage(
        base, texts(60, 0), texts(20, 1), cuts=[1], codecs=[PLAIN, TOPK]
    )
    assert plain.positions == sum(map(len, texts(20, 1).tokens))
    assert plain.distortion == 0.0
    assert plain.token_recovery > 0.5
    assert plain.chance < 0.1
    assert coarse.token_recovery < 0.5 * plain.token_recovery
    assert coarse.explained < plain.explained - 0.2
    assert coarse.distortion > 0.2


def test_activations_without_information_leak_nothing(base):
    network_block = base.family.block_list(base.network)[0]
    network_block.forward = lambda hidden, *args, **kwargs: torch.randn_like(hidden)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            (found,) = measure_leakage(base, texts(60, 0), texts(20, 1), cuts=[1], codecs=[PLAIN])
    finally:
        # The class's own method shows again; an instance attribute would follow every twin.
        del network_block.forward
    assert found.explained < 0.0
    assert found.token_recovery < 0.1


def test_an_encoder_leaks_through_its_embedding_table(classifier):
    (found,) = measure_leakage(classifier, texts(60, 0), texts(20, 1), cuts=[1], codecs=[PLAIN])
    assert found.token_recovery > 0.5


def test_pixels_of_a_patch_are_recovered():
    config = ViTConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        num_labels=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTForImageClassification(config)
        network.vit.embeddings.patch_embeddings.projection.weight.data.mul_(10)
        base = image_base_of(network)
    draw = np.random.default_rng(0)
    own, unseen = (
        Images(draw.integers(0, 256, (count, 3, 8, 8), np.uint8), np.zeros(count, np.int64))
        for count in (80, 20)
    )
    plain, coarse = measure_leakage(base, own, unseen, cuts=[1], codecs=[PLAIN, TOPK])
    assert plain.positions == 20 * 4
    assert plain.explained > 0.9
    assert coarse.explained < 0.5
    assert plain.token_recovery is None
    assert plain.chance is None


def test_the_same_seed_gives_the_same_figures(base):
    one, again = (
        measure_leakage(base, texts(10, 0), texts(5, 1), cuts=[1], codecs=[TOPK]) for _ in range(2)
    )
    assert one == again


def test_empty_sets_and_cuts_outside_are_refused(base):
    with pytest.raises(DataError, match="examples to fit and to judge on, got 0 and 3"):
        measure_leakage(base, texts(0, 0), texts(3, 0), cuts=[1], codecs=[PLAIN])
    with pytest.raises(ModelError, match="a cut must be between 1 and 1 of 2 blocks, got 2"):
        measure_leakage(base, texts(3, 0), texts(3, 0), cuts=[2], codecs=[PLAIN])
