"""A few rows much longer than the others change nothing for the others, and are kept themselves."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.codec import decode, encode, payload_bytes
from airtune.codec.outliers import ROWS_APART, outlying_rows
from airtune.cost.most import most_payload_bytes
from airtune.errors import CodecError
from airtune.plan import CodecSpec

SPECS = [
    CodecSpec("deadzone", step=0.75),
    CodecSpec("topk", keep=0.3, bits=4),
    CodecSpec("topk", keep=0.03, bits=4),
]
FLAGS_AT, EACH_SPEC = 4, pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)


def like_a_llama(rows=160, channels=48, ratio=105.0, every=40, seed=0, scale=1.0):
    """Normal rows; every so often a first token's, nearly all of it in one channel."""
    draw = np.random.default_rng(seed)
    tensor = draw.normal(size=(rows, channels)) + draw.normal(size=channels)
    first = draw.normal(size=channels)
    first[channels // 3] = ratio * np.sqrt(2 * channels)
    tensor[::every] = first
    return (scale * tensor).astype(np.float32)


def coded(tensor, spec, seed=0):
    payload = encode(tensor, spec, np.random.default_rng(seed))
    return decode(payload, max_elements=tensor.size), len(payload)


def relative_error(tensor, back):
    return np.square(tensor - back).sum() / np.square(tensor).sum()


@EACH_SPEC
@given(ratio=st.floats(8, 1e4), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_other_rows_arrive_as_if_nothing_stood_out(spec, ratio, scale, seed):
    tensor = like_a_llama(ratio=ratio, scale=scale, seed=seed)
    apart = outlying_rows(tensor)
    assert apart.sum() == 4
    back, _ = coded(tensor, spec)
    alone, _ = coded(tensor[~apart], spec)
    np.testing.assert_array_equal(back[~apart], alone)
    assert relative_error(tensor[apart], back[apart]) < 1e-6


@EACH_SPEC
def test_equal_rows_that_stand_out_cost_little_more_than_one(spec):
    tensor = like_a_llama(rows=800, channels=64)
    apart = outlying_rows(tensor)
    size, rest = coded(tensor, spec)[1], coded(tensor[~apart], spec)[1]
    assert size - rest < 3 * 2 * 64 + 160


@EACH_SPEC
@given(
    rows=st.integers(1, 64),
    channels=st.integers(1, 40),
    seed=st.integers(0, 99),
    wide=st.floats(0.0, 4.0),
)
@settings(max_examples=60, deadline=None)
def test_no_payload_exceeds_what_was_promised_whatever_its_rows(spec, rows, channels, seed, wide):
    draw = np.random.default_rng(seed)
    scale = np.exp(wide * draw.normal(size=(rows, 1)))
    tensor = (scale * draw.normal(size=(rows, channels))).astype(np.float32)
    back, size = coded(tensor, spec)
    assert back.shape == tensor.shape
    assert size <= most_payload_bytes(tensor.size, spec, channels=channels)


def test_what_has_no_rows_or_too_many_long_ones_is_coded_as_one():
    long = like_a_llama(every=4)
    for tensor in (long, long[:1], long.reshape(-1, 1), np.zeros_like(long), long[:, :8]):
        assert outlying_rows(np.ascontiguousarray(tensor)) is None
    assert outlying_rows(like_a_llama().reshape(4, 40, 48)).sum() == 4


@EACH_SPEC
def test_the_estimate_holds_where_few_rows_stand_out(spec):
    tensor = like_a_llama(rows=1280, channels=64, every=1280)
    guess = payload_bytes(tensor.size, spec, channels=64)
    assert guess == pytest.approx(coded(tensor, spec)[1], rel=0.15)


def test_a_known_mask_is_used_for_the_other_rows():
    tensor = like_a_llama()
    spec, mask = CodecSpec("topk", keep=0.3, bits=4), np.abs(tensor) > 1.0
    apart = outlying_rows(tensor)
    payload = encode(tensor, spec, np.random.default_rng(0), mask=mask)
    back = decode(payload, max_elements=tensor.size, mask=mask)
    np.testing.assert_array_equal(back[~apart] != 0.0, mask[~apart])
    with pytest.raises(CodecError, match="mask has 5 entries"):
        decode(payload, max_elements=tensor.size, mask=mask.reshape(-1)[:5])


def forged(change):
    body = bytearray(encode(like_a_llama(), SPECS[0], np.random.default_rng(0))[:-4])
    change(body)
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def set_flags(value):
    def change(body):
        body[FLAGS_AT] = value

    return change


def set_shape(*shape):
    def change(body):
        body[6:14] = struct.pack("<2I", *shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_flags(ROWS_APART | 32), "with its own flags"),
        (set_shape(160 * 48, 1), "holds no rows apart"),
        (set_shape(40, 192), "stream 2 declares 21 bytes where the header implies 6"),
        (set_shape(161, 47), "stream 2 declares 21 bytes where the header implies 22"),
    ],
)
def test_a_payload_that_lies_about_its_rows_is_refused(change, message):
    with pytest.raises(CodecError, match=message):
        decode(forged(change), max_elements=160 * 48)


@EACH_SPEC
def test_mutated_payloads_with_rows_apart_never_crash(spec):
    draw = np.random.default_rng(7)
    payload = encode(like_a_llama(rows=24, channels=16, every=12), spec, draw)
    assert payload[FLAGS_AT] & ROWS_APART
    for _ in range(2000):
        body = bytearray(payload[:-4])
        for _ in range(int(draw.integers(1, 4))):
            body[int(draw.integers(len(body)))] = int(draw.integers(256))
        sealed = bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))
        try:
            back = decode(sealed, max_elements=4096)
        except CodecError:
            continue
        assert back.size <= 4096
        assert np.all(np.isfinite(back))
