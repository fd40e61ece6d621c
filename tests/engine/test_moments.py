"""Second moments cross a network as they were, once for each device, and only if they can be some."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from airtune.cost import gram_bytes
from airtune.cost.shapes import llama_like
from airtune.engine.message import pack_tensors, unpack_tensors
from airtune.engine.moments import (
    BLOB,
    HeldMoments,
    SharedMoments,
    grams_bytes,
    pack_grams,
    read_grams,
)
from airtune.errors import CodecError
from airtune.model.covariance import Covariances, as_sent
from airtune.model.importance import Means
from airtune.model.mending import Grams

SHAPE = llama_like(
    "llama", blocks=2, width=12, heads=3, kv_groups=1, head_dim=3, ffn=14, vocab=20, tied=True
)


def moments(seed=0, size=1.0):
    draw = torch.Generator().manual_seed(seed)

    def part(width):
        factor = size * torch.randn(2, width, width, generator=draw)
        ones = torch.ones(2, width, 1)
        return as_sent(Covariances(factor, ones, torch.rand(2, width, generator=draw)))

    means = Means(*(torch.randn(2, width, generator=draw).double().numpy() for width in (9, 14)))
    return Grams(part(9), part(14), means)


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_what_was_sent_comes_out_bit_for_bit(seed, size):
    sent = moments(seed, size)
    read = read_grams(pack_grams(sent), SHAPE)
    for place in ("attention", "ffn"):
        one, other = getattr(sent, place), getattr(read, place)
        assert torch.equal(one.factor, other.factor)
        assert torch.equal(one.variance, other.variance)
        np.testing.assert_array_equal(getattr(sent.means, place), getattr(read.means, place))


def test_a_number_takes_four_bits_and_the_most_is_known():
    wide = replace(SHAPE, heads=96, head_dim=4, ffn=512)
    parts = [
        Covariances(torch.ones(2, n, n).to(torch.int8), torch.ones(2, n, 1), torch.ones(2, n))
        for n in (384, 512)
    ]
    means = Means(np.ones((2, 384)), np.ones((2, 512)))
    size = len(pack_grams(Grams(*parts, means)))
    assert size == pytest.approx(gram_bytes(wide), rel=0.1)
    assert size <= grams_bytes(wide) <= size + 2048


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ffn/variance", lambda tensor: -tensor),
        ("ffn/variance", lambda tensor: tensor * torch.inf),
        ("attention/mean", lambda tensor: tensor * torch.nan),
        ("attention/mean", lambda tensor: tensor.fill_(1e12)),
        ("attention/step", lambda tensor: tensor * -1),
        ("ffn/levels", lambda tensor: tensor[..., 1:]),
        ("ffn/levels", lambda tensor: tensor.float()),
    ],
)
def test_what_cannot_have_been_measured_is_refused(name, change):
    tensors = unpack_tensors(pack_grams(moments()))
    tensors[name] = change(tensors[name])
    with pytest.raises(CodecError, match=r"second moments .* refused"):
        read_grams(pack_tensors(tensors), SHAPE)
    del tensors[name]
    with pytest.raises(CodecError, match="second moments"):
        read_grams(pack_tensors(tensors), SHAPE)


def test_each_device_is_sent_them_once_and_again_after_it_failed():
    server, device, grams = SharedMoments(), HeldMoments(), moments()
    named, blobs = server.for_task(3, grams)
    assert set(blobs) == {BLOB}
    assert torch.equal(device.of(named, blobs, SHAPE).ffn.factor, grams.ffn.factor)
    server.settle(3, named, is_ok=True)
    assert server.for_task(3, grams) == (named, {})
    assert device.of(named, {}, SHAPE) is not None
    with pytest.raises(CodecError, match="they come with its next task"):
        HeldMoments().of(named, {}, SHAPE)
    server.settle(3, named, is_ok=False)
    assert set(server.for_task(3, grams)[1]) == {BLOB}
    other, fresh = server.for_task(3, moments(seed=1))
    assert other != named
    assert set(fresh) == {BLOB}
    assert server.for_task(3, None) == ("", {})
    assert device.of("", {}, SHAPE) is None
