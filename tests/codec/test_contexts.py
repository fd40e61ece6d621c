"""Integers coded by what is known of them come back the same, in fewer bytes, or are refused."""

import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from airtune.codec import contexts, decode, encode
from airtune.codec.deadzone import BY_CONTEXT
from airtune.errors import CodecError
from airtune.plan import CodecSpec

SPEC, FLAGS_AT = CodecSpec("deadzone", step=0.5), 4


def there_and_back(levels):
    return contexts.from_streams(*contexts.to_streams(levels), *levels.shape)


def like_texts(rows=600, channels=64, tokens=40, noise=0.5, seed=0):
    """Rows near those of their tokens; the last third is the first again."""
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(tokens, channels)) * np.linspace(0.2, 2.0, channels)
    found = table[draw.integers(tokens, size=rows)] + noise * draw.normal(size=(rows, channels))
    third = rows // 3
    found[-third:] = found[:third]
    return found.astype(np.float32)


@given(
    arrays(
        np.int16,
        array_shapes(min_dims=2, max_dims=2, max_side=30),
        elements=st.integers(-32767, 32767) | st.integers(-2, 2),
    )
)
@settings(max_examples=60)
def test_any_integers_come_back(levels):
    np.testing.assert_array_equal(there_and_back(levels), levels)


@pytest.mark.parametrize("rows", [1, 255, 257, 5000])
def test_rows_far_back_and_long_chains_come_back(rows):
    steps = np.random.default_rng(0).integers(-1, 2, size=(rows, 16))
    levels = np.clip(np.cumsum(steps, axis=0), -99, 99).astype(np.int16)
    np.testing.assert_array_equal(there_and_back(levels), levels)


def test_it_takes_less_than_zstd_at_its_strongest():
    tensor = like_texts()
    levels = np.rint(tensor / (0.5 * tensor.std())).astype(np.int8)
    payload = encode(tensor, SPEC, np.random.default_rng(0))
    assert payload[FLAGS_AT] & BY_CONTEXT
    assert len(payload) < len(zstandard.ZstdCompressor(level=19).compress(levels.tobytes()))


def test_equal_rows_cost_next_to_nothing():
    once = like_texts(rows=400)
    twice = np.concatenate([once, once])
    one, both = (
        sum(map(len, contexts.to_streams(np.rint(t).astype(np.int16)))) for t in (once, twice)
    )
    # 3 bytes of a reference, before they are coded, and a trifle of a row
    assert both - one < 400 * (3 + 1)


def test_what_arrives_is_what_the_quantiser_says():
    tensor = like_texts()
    means = tensor.mean(axis=0, dtype=np.float32).astype(np.float16).astype(np.float32)
    centred = tensor - means
    step = np.float32(0.5 * centred.std(dtype=np.float64))
    payload = encode(tensor, SPEC, np.random.default_rng(0))
    np.testing.assert_array_equal(
        decode(payload, max_elements=tensor.size), np.rint(centred / step) * step + means
    )


def changed(stream, place, value):
    return stream[:place] + bytes([value]) + stream[place + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head, words, over: (changed(head, 0, 1), words, over), "reference .* cannot be"),
        (lambda head, words, over: (changed(head, 60, 9), words, over), "grade cannot be"),
        (lambda head, words, over: (head, words[:-2], over), "end too early"),
        (lambda head, words, over: (head, words + b"ab", over), "are damaged"),
        (lambda head, words, over: (head, words[:1], over), "do not hold"),
        (lambda head, words, over: (head, words, over + b"ab"), "do not tell"),
        (
            lambda head, words, over: (head[: -64 * 33] + bytes(64 * 33), words, over),
            "has no table",
        ),
    ],
)
def test_streams_that_cannot_be_are_refused(change, message):
    levels = np.random.default_rng(0).integers(-3, 4, size=(20, 16)).astype(np.int16)
    with pytest.raises(CodecError, match=message):
        contexts.from_streams(*change(*contexts.to_streams(levels)), 20, 16)


def test_mutated_payloads_never_crash():
    draw = np.random.default_rng(3)
    payload = encode(like_texts(), SPEC, draw)
    assert payload[FLAGS_AT] & BY_CONTEXT
    for _ in range(100):
        body = bytearray(payload[:-4])
        for _ in range(int(draw.integers(1, 4))):
            body[int(draw.integers(len(body)))] = int(draw.integers(256))
        try:
            back = decode(
                bytes(body) + struct.pack("<I", zlib.crc32(bytes(body))), max_elements=38_400
            )
        except CodecError:
            continue
        assert np.all(np.isfinite(back))
